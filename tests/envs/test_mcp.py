"""The MCP environment against a real server process."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from pathlib import Path

import gymnasium
import pytest

from agentrl.envs.errors import ToolFailure

pytest.importorskip("mcp")
from agentrl.envs.mcp import McpEnv
from agentrl.envs.mcp_servers import server_of

SERVER = [sys.executable, str(Path(__file__).with_name("mcp_server.py"))]
TASK = {"question": "2 + 3?", "golden_answers": ["5"]}


def make(**kwargs) -> McpEnv:
    return McpEnv(SERVER, timeout_s=30, **kwargs)


def call(name: str, arguments: str = "{}") -> str:
    return f'<tool>{{"name": "{name}", "arguments": {arguments}}}</tool>'


@pytest.mark.slow
def test_an_episode_with_a_tool():
    env = make()
    prompt, info = env.reset(options=TASK)
    assert '"add"' in prompt and prompt.endswith("2 + 3?") and info["observation_parts"]["body"] == "2 + 3?"
    said, reward, ended, cut, info = env.step("I add. " + call("add", '{"a": 2, "b": 3}'))
    assert (said, reward, ended, cut) == ("\n<result>5</result>\n", 0.0, False, False)
    assert info["kind"] == "tool" and info["latency_s"] > 0
    said, reward, ended, cut, info = env.step("<answer> 5 </answer>")
    assert (said, reward, ended, info["correct"]) == ("", 1.0, True, True)
    start, end = info["answer_span"]
    assert "<answer> 5 </answer>"[start:end] == "5"
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step("<answer> 5 </answer>")


def test_hostile_results_and_errors_are_data():
    env = make(max_turns=2)
    env.reset(options={"question": "?", "golden_answers": ["42"]})
    said, reward, ended, _, _ = env.step(call("hostile"))
    assert reward == 0 and not ended
    assert said.count("</result>") == 1 and "<answer>" not in said and "<tool>" not in said
    said, _, ended, _, _ = env.step(call("fail"))
    assert "error" in said and not ended
    said, reward, ended, cut, _ = env.step(call("add", '{"a": 1, "b": 1}'))  # the final turn calls nothing
    assert (said, reward, ended, cut) == ("", 0.0, False, True)


@pytest.mark.parametrize(
    "action",
    ["", "<tool>", "<tool>{</tool>", "<tool>[1]</tool>", call("unknown"), '<tool>{"name": 3}</tool>', "[" * 5000,
     "<tool>" + "[" * 5000 + "</tool>", "<answer>  </answer>", '<tool>{"name": "add", "arguments": 5}</tool>'],
)  # fmt: skip
def test_what_is_no_call_costs_a_turn(action):
    env = make()
    env.reset(options=TASK)
    said, reward, ended, cut, info = env.step(action)
    assert info["kind"] == "invalid" and "<tool>" in said and not (reward or ended or cut)


@pytest.mark.slow
def test_a_late_tool_and_a_dead_server_are_failures_and_the_next_episode_reconnects():
    env = McpEnv([*SERVER, "own"], timeout_s=20)
    env._timeout_s = 0.5
    env.reset(options=TASK)
    with pytest.raises(ToolFailure, match="did not answer within"):
        env.step(call("slow"))
    env._timeout_s = 20
    with pytest.raises(ToolFailure):
        env.step(call("die"))
    env.reset(options=TASK)
    assert "5" in env.step(call("add", '{"a": 2, "b": 3}'))[0]


def test_asynchronous_steps_share_one_connection():
    envs = [make() for _ in range(8)]

    async def play(env: McpEnv, k: int) -> str:
        await env.areset(options=TASK)
        return (await env.astep(call("add", f'{{"a": {k}, "b": 1}}')))[0]

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*[play(env, k) for k, env in enumerate(envs)])

    assert [s.strip() for s in asyncio.run(all_of_them())] == [f"<result>{k + 1}</result>" for k in range(8)]
    assert server_of(SERVER) is server_of(SERVER)


@pytest.mark.slow
def test_calls_in_flight_of_a_server_that_dies_all_fail_at_once_and_the_next_ones_reconnect(tmp_path):
    """None of them hangs until its deadline, none is cancelled, and what was started for them ends."""
    server = [*SERVER, str(tmp_path / "state")]
    envs = [McpEnv(server, timeout_s=60) for _ in range(8)]
    threads = threading.active_count()

    async def play(env: McpEnv, name: str) -> str:
        await env.areset(options=TASK)
        return (await env.astep(call(name, '{"a": 1, "b": 1}' if name == "add" else "{}")))[0]

    async def all_of_them(*names: str) -> list[str | BaseException]:
        tasks = [asyncio.create_task(play(env, name)) for env, name in zip(envs, names)]
        killer = asyncio.create_task(kill()) if "slow" in names else None
        got = await asyncio.gather(*tasks, return_exceptions=True)
        if killer:
            await killer
        return got

    async def kill() -> None:
        await asyncio.sleep(0.5)
        os.kill(int((tmp_path / "state").read_text()), signal.SIGKILL)

    began = time.monotonic()
    failed = asyncio.run(all_of_them(*["slow"] * 8))
    assert [type(e) for e in failed] == [ToolFailure] * 8 and time.monotonic() - began < 4  # `slow` takes 5 s
    assert asyncio.run(all_of_them(*["add"] * 8)) == ["\n<result>2</result>\n"] * 8
    assert threading.active_count() <= threads


def test_what_is_wrong_at_the_start_is_said():
    with pytest.raises(ToolFailure, match="cannot be reached"):
        McpEnv(["/nonexistent/server"], timeout_s=20)
    with pytest.raises(ValueError, match=r"no tool 'nothing'; there are add"):
        make(tools=["nothing"])
    assert set(make(tools=["add"]).tools) == {"add"}

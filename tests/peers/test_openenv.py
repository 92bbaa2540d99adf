"""OpenEnv's own client and validator against our server, and our client against its server.

`make test-peers` runs this in an environment that has openenv beside agentrl's base; our server runs in the project's.
"""

import asyncio
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import gymnasium
import pytest

pytest.importorskip("openenv")

import agentrl.envs  # noqa: F401  (registers them)
from agentrl.envs.errors import ToolFailure
from tests.peers.served import ROOT, served

ROWS = [
    {"id": "a", "question": "17*23+5?", "golden_answers": ["396"]},
    {"id": "b", "question": "2+2?", "golden_answers": ["4"]},
]


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """`agentrl env serve` with two tasks."""
    data = tmp_path_factory.mktemp("data") / "rows.jsonl"
    data.write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    command = ["agentrl", "env", "serve", "agentrl/Calculator-v0", "--port", "0", "--follow-stdin"]
    with served(*command, "--tasks", f"test={data}") as url:
        yield url


@contextmanager
def theirs():
    """A real OpenEnv server."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.peers.openenv_server"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment,
    ) as process:  # fmt: skip
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.stdin.close()
            process.wait(20)


def made(url, **arguments):
    return gymnasium.make("agentrl/OpenEnv-v0", disable_env_checker=True, url=url, **arguments).unwrapped


def test_openenvs_generic_client_plays_ours(ours):
    from openenv.core import GenericEnvClient

    with GenericEnvClient(base_url=ours).sync() as env:
        begun = env.reset(split="test", index=1, seed=3)
        assert "2+2?" in begun.observation["text"] and not begun.done and begun.reward is None
        found = env.step({"message": "<calc> 2+2 </calc>"})
        assert "4" in found.observation["text"] and (found.reward, found.done) == (0.0, False)
        with pytest.raises(RuntimeError, match="VALIDATION_ERROR"):
            env.step({"text": "x"})
        done = env.step({"message": "<answer> 4 </answer>"})
        assert (done.reward, done.done) == (1.0, True) and done.metadata["correct"]
        assert env.state()["step_count"] == 2
        with pytest.raises(RuntimeError, match="no split 'nope'"):
            env.reset(split="nope", index=0)
        env.reset(split="test", index=0)
        assert env.step({"message": "<answer> 4 </answer>"}).reward == 0.0


def test_openenvs_clients_have_a_session_each(ours):
    from openenv.core import GenericEnvClient

    async def play(index):
        async with GenericEnvClient(base_url=ours) as env:
            text = (await env.reset(split="test", index=index)).observation["text"]
            await env.step({"message": "nothing"})
            return text, (await env.step({"message": f"<answer> {ROWS[index]['golden_answers'][0]} </answer>"})).reward

    async def everything():
        return await asyncio.gather(*(play(i % 2) for i in range(16)))

    for i, (text, reward) in enumerate(asyncio.run(everything())):
        assert ROWS[i % 2]["question"] in text and reward == 1.0


def test_openenv_validate_passes(ours):
    command = [str(Path(sys.executable).with_name("openenv")), "validate", "--url", ours, "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    report = json.loads(result.stdout)
    assert result.returncode == 0 and report["passed"] and report["mode"] == "simulation"
    assert not report["summary"]["failed_criteria"] and report["summary"]["total_count"] == 6


def test_openenvs_server_as_our_environment():
    with theirs() as (_, url):
        env = made(url, observation="text")
        assert env.reset(options={"split": "test", "index": 5})[0] == "5+5?"
        text, reward, terminated, truncated, info = env.step("11")
        assert (text, reward, terminated, truncated) == ("no", 0.0, False, False) and info["correct"] is False
        assert env.state()["step_count"] == 1
        assert env.step("10")[1:4] == (1.0, True, False)
        rows = env.tasks("test")
        assert len(rows) == 700 and rows[-1]["index"] == 699 and rows[5]["question"] == "5+5"
        env.reset(options={"id": "x"})
        with pytest.raises(ToolFailure, match=r"the tool broke .EXECUTION_ERROR"):
            env.step("raise")
        env.close()


def test_openenvs_server_that_dies_is_a_failed_episode():
    with theirs() as (process, url):
        env = made(url, observation="text")
        env.reset(options={"id": "x"})
        process.kill()
        process.wait()
        with pytest.raises(ToolFailure):
            env.step("1")
        with pytest.raises(ToolFailure, match="Refused"):
            env.reset(options={"id": "x"})


def test_openenv_plays_ours_through_our_own_client(ours):
    envs = [made(ours) for _ in range(8)]

    async def play(env):
        await env.areset(options={"id": "one task"})
        return [await env.astep(a) for a in ("<calc> 2+2 </calc>", "<answer> 4 </answer>")]

    async def everything():
        played = await asyncio.gather(*map(play, envs))
        for env in envs:
            await env.aclose()
        return played

    played = asyncio.run(everything())
    assert all(p == played[0] for p in played) and played[0][1][4]["kind"] == "answer"

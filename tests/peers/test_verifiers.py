"""Tasksets of the real verifiers as ours, and our search task as a taskset.

`make test-peers` runs this in an environment that has verifiers beside agentrl's base; the search server runs in the
project's.
"""

import asyncio
import json
from pathlib import Path

import gymnasium
import pytest

pytest.importorskip("verifiers")

import agentrl.envs  # noqa: F401  (registers them)
from agentrl.envs.errors import ToolFailure
from agentrl.errors import EnvError
from tests.peers.served import ROOT, search_server

HERE = str(Path(__file__).parent)
ROWS = [{"id": "q1", "question": "When was Brightkiln founded?", "golden_answers": ["1921"]}]


@pytest.fixture(autouse=True)
def tasksets_are_found(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{HERE}:{ROOT}")


def made(name, **config):
    return gymnasium.make("agentrl/Verifiers-v0", disable_env_checker=True, taskset=name, config=config).unwrapped


def test_a_verifiers_taskset_as_our_environment():
    env = made("vf_sums")
    rows = env.tasks()
    assert [r["index"] for r in rows] == [0, 1, 2, 3, 4] and rows[3]["question"] == "3+3?" and rows[3]["id"] == "sum-3"
    prompt, info = env.reset(options=rows[3])
    assert prompt == "Be brief.\n3+3?" and info["roles"] == ["system", "user"]
    _, reward, terminated, truncated, info = env.step("6")
    assert (reward, terminated, truncated) == (1.5, True, False)
    assert info["rewards"] == {"right": 1.0, "short": 0.5} and info["metrics"] == {"length": 1.0}
    env.reset(options=rows[3])
    assert env.step("it is seven, I think")[1] == 0.0
    env.reset(options=rows[0])
    with pytest.raises(ToolFailure, match="the grader broke"):
        env.step("break")
    with pytest.raises(ToolFailure, match="index is 5"):
        env.reset(options={"index": 5})


def test_many_episodes_of_verifiers_at_once():
    envs = [made("vf_sums") for _ in range(16)]

    async def play(env, i):
        await env.areset(options={"index": i % 5})
        return (await env.astep(str(2 * (i % 5))))[1]

    async def everything():
        await envs[0].areset(options={"index": 0})  # left early
        return await asyncio.gather(*(play(env, i) for i, env in enumerate(envs)))

    assert asyncio.run(everything()) == [1.5] * 16


def test_a_taskset_that_verifiers_does_not_find_is_a_mistake():
    with pytest.raises(EnvError, match="no_such_taskset"):
        made("no_such_taskset").reset()


def test_our_search_task_as_a_verifiers_taskset(tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    with search_server() as url:
        env = made("vf_search", taskset={"data": str(data), "tools": {"retriever": url, "topk": 1}})
        prompt, info = env.reset(options={"index": 0})
        assert '"name": "search"' in prompt and '"name": "open"' in prompt and prompt.endswith(ROWS[0]["question"])
        seen, reward, terminated, *_ = env.step(
            '<tool_call>{"name": "search", "arguments": {"query": "Brightkiln"}}</tool_call>'
        )
        assert "founded in 1921" in seen and seen.startswith("[c]") and (reward, terminated) == (0.0, False)
        seen = env.step('<tool_call>{"name": "open", "arguments": {"id": "c"}}</tool_call>')[0]
        assert "Brightkiln" in seen
        assert "no tool 'fly'" in env.step('<tool_call>{"name": "fly", "arguments": {}}</tool_call>')[0]
        _, reward, terminated, _, info = env.step("I read it. <answer> 1921 </answer>")
        assert (reward, terminated) == (1.0, True) and info["metrics"]["f1"] == 1.0
        env.reset(options={"index": 0})
        assert env.step("<answer> 1922 </answer>")[1] == 0.0
        env.close()

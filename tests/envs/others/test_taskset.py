"""The host's side of verifiers that needs no verifiers: `tests/peers` runs it with the real package."""

import asyncio
from types import SimpleNamespace as Some

import gymnasium
import pytest

import agentrl.envs  # noqa: F401  (registers them)
from agentrl.envs.others.taskset import Episode, completion, content, ended
from agentrl.errors import EnvError

TOOLS = {"model": "episode-1", "tools": [{"type": "function", "function": {"name": "add"}}]}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


def test_an_action_is_a_completion_with_its_calls():
    choice = completion(f"I add. {CALL}{CALL}", TOOLS)["choices"][0]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] == "I add."
    calls = choice["message"]["tool_calls"]
    assert [c["id"] for c in calls] == ["call_0", "call_1"]
    assert calls[0]["function"] == {"name": "add", "arguments": '{"a": 1}'}


@pytest.mark.parametrize(
    ("text", "body"),
    [
        (CALL, {"model": "episode-1"}),  # no tools are offered
        ("<tool_call>{broken}</tool_call>", TOOLS),
        ('<tool_call>{"arguments": {}}</tool_call>', TOOLS),
        ("<tool_call>" + '{"name":' * 5000, TOOLS),
    ],
)
def test_what_is_no_call_stays_text(text, body):
    message = completion(text, body)["choices"][0]["message"]
    assert message == {"role": "assistant", "content": text}


def test_a_request_is_an_observation_of_what_is_new():
    async def play():
        episode = Episode()
        episode.run = asyncio.ensure_future(asyncio.sleep(60))
        messages = [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "u"}]}]
        await episode.asked.put(TOOLS | {"messages": messages})
        first = await episode.next()
        messages = [*messages, {"role": "assistant", "content": "a"}, {"role": "tool", "content": "3"}]
        await episode.asked.put(TOOLS | {"messages": messages})
        second = await episode.next()
        episode.run.cancel()
        return first, second

    first, second = asyncio.run(play())
    assert first["text"].endswith('{"name": "add"}\ns\nu') and first["info"] == {"roles": ["system", "user"]}
    assert second["text"] == "3" and not second["terminated"]
    assert content({"content": [{"type": "image_url"}]}) == "[image_url: not shown]"


def test_an_end_has_rewards_and_a_failure_has_none():
    trace = Some(
        rewards={"right": Some(value=1.0), "left out": None}, metrics={}, stop_condition="x", reward=1.0, errors=[]
    )
    assert ended(Some(ok=True, traces=[trace], errors=[]))["reward"] == 1.0
    error = Some(type="TaskError", message="the grader broke")
    with pytest.raises(RuntimeError, match="TaskError: the grader broke"):
        ended(Some(ok=False, traces=[trace], errors=[error]))
    with pytest.raises(RuntimeError, match="without a trace"):
        ended(Some(ok=True, traces=[], errors=[]))


def test_without_verifiers_the_interpreter_is_asked_for():
    env = gymnasium.make("agentrl/Verifiers-v0", disable_env_checker=True, taskset="sums").unwrapped
    with pytest.raises(EnvError, match=r"No module named 'verifiers'.*python: the interpreter"):
        env.reset()

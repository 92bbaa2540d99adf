"""An environment in the shape of TRL's environment_factory as ours."""

import asyncio
import json
import time

import gymnasium
import pytest

import agentrl.envs  # noqa: F401  (registers them)
from agentrl.envs.errors import ToolFailure
from agentrl.errors import PluginError

TASK = {"id": "q", "question": "Count to two.", "golden_answers": ["2"], "limit": 2}


class Counter:
    """As TRL's guide has them."""

    def reset(self, limit: int = 0, **row):
        self.count, self.limit = 0, limit
        return f" Up to {limit}." if limit else None

    def increment(self, by: int) -> int:
        """Count on.

        Args:
            by: how far
        """
        if by > 10:
            raise ValueError("too far")
        self.count += by
        return self.count

    def _hidden(self) -> str:
        return "never called"

    def get_reward(self) -> float:
        return float(self.count == self.limit)


class Broken(Counter):
    def get_reward(self):
        return "much"


class Asynchronous(Counter):
    async def get_reward(self):
        await asyncio.sleep(0)
        return 0.5


class Unrewarded:
    def reset(self, **row):
        if row.get("bad"):
            raise KeyError("bad")

    def slow(self, seconds: float) -> str:
        """Wait.

        Args:
            seconds: how long
        """
        time.sleep(seconds)
        return "done"


def made(factory=Counter, **arguments):
    return gymnasium.make("agentrl/Trl-v0", disable_env_checker=True, factory=factory, **arguments).unwrapped


def call(name, **arguments):
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def test_its_methods_are_tools_and_its_reward_is_the_reward():
    env = made(f"{__name__}:Counter")
    assert [s["function"]["name"] for s in env.schemas] == ["increment"]
    assert env.schemas[0]["function"]["parameters"]["properties"]["by"]["description"] == "how far"
    prompt, info = env.reset(options=TASK)
    assert prompt.endswith("Count to two. Up to 2.") and info["observation_parts"]["body"].endswith("Up to 2.")
    text, reward, terminated, truncated, info = env.step(call("increment", by=1))
    assert "1" in text and (reward, terminated, truncated) == (0.0, False, False) and info["valid"]
    assert "too far" in env.step(call("increment", by=11))[0]
    assert "wrong" in env.step(call("increment", by="x"))[0]
    env.reset(options=TASK)
    env.step(call("increment", by=2))
    text, reward, terminated, truncated, info = env.step("anything")
    assert (reward, terminated) == (1.0, True) and "correct" not in info  # rollouts ask the reward


def test_the_reward_counts_at_every_end():
    env = made(max_turns=1)
    env.reset(options=TASK)
    env.step(call("increment", by=2))
    assert env.step(call("increment", by=2))[1:4] == (1.0, False, True)
    env = made(Asynchronous)
    env.reset(options=TASK)
    assert env.step("done")[1] == 0.5
    env = made(Unrewarded)
    assert env.reset(options=TASK)[0].endswith(TASK["question"])
    assert env.step("2")[1] == 1.0


def test_what_fails_is_a_failed_episode():
    env = made(Broken)
    env.reset(options=TASK)
    with pytest.raises(ToolFailure, match=r"get_reward.. returned 'much'"):
        env.step("done")
    with pytest.raises(ToolFailure, match=r"reset.. raised KeyError"):
        made(Unrewarded).reset(options=TASK | {"bad": 1})
    with pytest.raises(ValueError, match="without reset"):
        made(dict)
    with pytest.raises(PluginError, match="Nothing"):
        made(f"{__name__}:Nothing")


def test_a_slow_tool_blocks_nobody():
    envs = [made(Unrewarded) for _ in range(16)]

    async def play(env):
        await env.areset(options=TASK)
        return await env.astep(call("slow", seconds=0.2))

    async def everything():
        return await asyncio.gather(*map(play, envs))

    began = time.monotonic()
    assert all("done" in played[0] for played in asyncio.run(everything()))
    assert time.monotonic() - began < 2
    late = made(Unrewarded, timeout_s=0.1)
    late.reset(options=TASK)
    assert "longer than 0.1 s" in late.step(call("slow", seconds=0.3))[0]

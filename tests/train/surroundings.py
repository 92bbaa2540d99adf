"""Environments for runs whose surroundings fail: `Searching-v0` has a scripted agent, `Faulty-v0` a fault to order."""

import hashlib
import os
from pathlib import Path

import gymnasium

from agentrl.envs.errors import ToolFailure
from agentrl.envs.search import SearchEnv
from agentrl.envs.spaces import AnyText


class Searching(SearchEnv):
    """One search, whatever the model says, then an answer that is right or wrong by the length of its text."""

    async def astep(self, action):
        if self._turn < 1:
            return await super().astep("<search> born </search>")
        right = int(hashlib.md5(action.encode()).hexdigest(), 16) % 2
        return await super().astep(f"<answer> {next(iter(self._golden)) if right else 'nobody'} </answer>")


class Faulty(gymnasium.Env):
    """One turn. `fault` is the path of a file: while it is there, its text says what goes wrong.

    `raise`: an exception of the environment; `down`: a tool that is away; anything else is evaluated to be the reward.
    """

    stop_strings = ()

    def __init__(self, fault, slow=False):
        self.observation_space = self.action_space = AnyText()
        self.fault, self.slow = Path(fault), slow

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return str((options or {}).get("question", "q")), {}

    def step(self, action):
        wrong = self.fault.read_text() if self.fault.exists() else ""
        if wrong == "raise":
            raise ZeroDivisionError("the environment's own bug")
        if wrong == "down":
            raise ToolFailure("the judge answered 503")
        if wrong == "kill":
            os.kill(os.getpid(), 9)
        if wrong:
            return "", eval(wrong), True, False, {}
        return "", float(int(hashlib.md5(action.encode()).hexdigest(), 16) % 2), True, False, {}


for _class in (Searching, Faulty):
    gymnasium.register(f"{_class.__name__}-v0", entry_point=f"tests.train.surroundings:{_class.__name__}")

"""An environment in the shape of TRL's `environment_factory` as ours: `agentrl/Trl-v0` (written for TRL 1.16).

An object with `reset(**row)`, whose other public methods are tools. It is made from code that the config names; TRL
itself is not needed. A turn without a call ends the episode, and `get_reward()` scores it where there is one.
Left out: images in what `reset` or a tool returns.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from agentrl import plugins
from agentrl.envs.calls.base import CallFormat
from agentrl.envs.errors import ToolFailure
from agentrl.envs.functions import tool_of
from agentrl.envs.scoring import Reward
from agentrl.envs.tools import Step, ToolEnv, threads

NOT_TOOLS = ("reset", "get_reward")


class TrlEnv(ToolEnv):
    """An object with `reset(**row)` and tools as methods, as TRL's environment_factory makes it: `agentrl/Trl-v0`.

    factory: `module:attribute`, or a callable; called once for each environment. Its plain methods run on threads,
    each call at most `timeout_s` seconds. reward: of the answer, where the object has no `get_reward`. What `reset` and
    `get_reward` raise, and a reward that is no number, is a failed episode; what a tool raises is told to the model.
    The other parameters are those of `agentrl/ToolCalls-v0`.
    """

    def __init__(
        self,
        *,
        factory: str | Callable[[], Any],
        reward: str | Reward | Mapping[str, float] = "exact_match",
        tasks: Sequence[dict[str, Any]] = (),
        call_format: str | CallFormat = "hermes",
        one_call: bool = False,
        max_turns: int = 4,
        timeout_s: float = 60.0,
        prompt_template: str | None = None,
    ) -> None:
        make = plugins.load(factory) if isinstance(factory, str) else factory
        self._object = make()
        kind = type(self._object)
        names = [n for n, _ in inspect.getmembers(kind, inspect.isfunction) if not n.startswith("_")]
        if "reset" not in names:
            raise ValueError(f"factory {factory!r} made a {kind.__name__} without reset(); TRL's environments have one")
        self._own_reward = getattr(self._object, "get_reward", None)
        self._timeout_s = timeout_s
        super().__init__(
            tools=[tool_of(getattr(self._object, n), deadline_s=timeout_s) for n in names if n not in NOT_TOOLS],
            reward=reward, tasks=tasks, call_format=call_format, one_call=one_call, max_turns=max_turns,
            prompt_template=prompt_template,
        )  # fmt: skip

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Begin a row's task: the question, and what the object adds to it."""
        return asyncio.run(self.areset(seed=seed, options=options))

    def step(self, action: str) -> Step:
        """One turn."""
        return asyncio.run(self.astep(action))

    async def areset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """`reset` for an event loop."""
        _, info = ToolEnv.reset(self, seed=seed, options=options)
        said = await self._theirs("reset", self._object.reset, **(options or {}))
        if said is not None and not isinstance(said, str):
            raise ToolFailure(f"reset() returned a {type(said).__name__}; it returns text or nothing")
        parts = info["observation_parts"]
        parts = parts | {"body": parts["body"] + (said or "")}
        return "".join(parts.values()), info | {"observation_parts": parts}

    async def astep(self, action: str) -> Step:
        """`step` for an event loop."""
        text, reward, terminated, truncated, info = await super().astep(action)
        if self._own_reward is not None and (terminated or truncated):
            reward = await self._theirs("get_reward", self._own_reward)
            if not isinstance(reward, int | float) or not math.isfinite(reward):
                raise ToolFailure(f"get_reward() returned {reward!r:.80}; it returns a number")
            info = {k: v for k, v in info.items() if k not in ("correct", "rewards")}  # the object alone knows
        return text, float(reward), terminated, truncated, info

    async def _theirs(self, name: str, call: Callable[..., Any], **arguments: Any) -> Any:
        try:
            if inspect.iscoroutinefunction(call):
                return await asyncio.wait_for(call(**arguments), self._timeout_s)
            blocking = asyncio.get_running_loop().run_in_executor(threads(), partial(call, **arguments))
            return await asyncio.wait_for(blocking, self._timeout_s)
        except TimeoutError as error:
            raise ToolFailure(f"{name}() took longer than {self._timeout_s:g} s") from error
        except Exception as error:
            raise ToolFailure(f"{name}() raised {type(error).__name__}: {str(error)[:300]}") from error

"""Environments of skyrl-gym, GEM and verifiers as ours, in a process of their own.

They are `agentrl/SkyRLGym-v0`, `agentrl/Gem-v0` and `agentrl/Verifiers-v0`.

Whatever they answer late, wrongly shaped or not at all is a ToolFailure: a failed rollout, which is counted. Their text
is data. What does not cross: docs/environments.md has the table.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from hashlib import blake2b
from typing import Any

import gymnasium

from agentrl.envs.errors import ToolFailure
from agentrl.envs.others.hosts import Hosted, hosted
from agentrl.envs.protocol import MAX_BODY_CHARACTERS
from agentrl.envs.spaces import AnyText
from agentrl.envs.waiting import uncounted

Step = tuple[str, float, bool, bool, dict[str, Any]]
OWN_TASK = {"id": "own", "question": "What is 17*23+5?", "golden_answers": ["396"]}
START_S = 120.0  # to import their package and make the first environment


class HostedEnv(gymnasium.Env[str, str]):
    """An environment behind a pipe. Subclasses say what it is; `timeout_s` is for one call of it."""

    def __init__(self, host: Hosted, timeout_s: float, stop_strings: Sequence[str]) -> None:
        if not timeout_s > 0:
            raise ValueError(f"timeout_s is {timeout_s}; it is a number of seconds above 0")
        if isinstance(stop_strings, str):
            raise ValueError(f"stop_strings is {stop_strings!r}; give a list: [{stop_strings!r}]")
        self.observation_space, self.action_space = AnyText(), AnyText()
        self.stop_strings = tuple(stop_strings)
        self._host, self._timeout_s = host, timeout_s
        self._session: int | None = None
        self._playing = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Begin the task of a row; its columns go to the environment."""
        super().reset(seed=seed)
        self._host.ready().result(START_S)
        return self._begun(_waited(self._reset(seed, options), self._timeout_s))

    def step(self, action: str) -> Step:
        """One turn. ToolFailure where the environment fails; the episode is then over."""
        return self._stepped(_waited(self._step(action), self._timeout_s))

    async def areset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """`reset` for an event loop."""
        super().reset(seed=seed)
        with uncounted():  # all episodes wait for one process to start
            await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(self._host.ready())), START_S)
        return self._begun(await self._awaited(self._reset(seed, options)))

    async def astep(self, action: str) -> Step:
        """`step` for an event loop."""
        return self._stepped(await self._awaited(self._step(action)))

    def tasks(self, split: str = "train") -> list[dict[str, Any]]:
        """Rows of the environment's own tasks, where it can list them. ToolFailure where it cannot."""
        self._host.ready().result(START_S)
        rows = _waited(self._host.ask(self._number(), "tasks", split=split), START_S)
        if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
            raise ToolFailure(f"the environment's tasks are {_short(rows)}; a list of rows is wanted")
        return rows

    def close(self) -> None:
        """End the session; the process stays for the others."""
        self._leave()

    # ------------------------------------------------------------------------------------------------------- internal

    def _number(self) -> int:
        if self._session is None:
            self._session = self._host.session()
        return self._session

    def _reset(self, seed: int | None, options: dict[str, Any] | None) -> Future[Any]:
        self._playing = False
        row = dict(options or OWN_TASK)
        chosen = task_seed(options or {}, int(self.np_random.integers(1 << 31)) if seed is None else seed)
        return self._host.ask(self._number(), "reset", seed=chosen, row=row)

    def _step(self, action: str) -> Future[Any]:
        if not self._playing:
            raise gymnasium.error.ResetNeeded("step() was called before reset(), or after the episode ended")
        return self._host.ask(self._number(), "step", action=action)

    async def _awaited(self, future: Future[Any]) -> Any:
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self._timeout_s)
        except TimeoutError as error:
            self._leave()
            raise ToolFailure(f"the environment did not answer within {self._timeout_s:g} s") from error
        except BaseException:
            self._leave()
            raise

    def _leave(self) -> None:
        """Forget the session, whose thread may be busy for long."""
        session, self._session, self._playing = self._session, None, False
        if session is not None:
            with suppress(ToolFailure):
                self._host.ask(session, "close").cancel()

    def _begun(self, data: Any) -> tuple[str, dict[str, Any]]:
        text, info = read_text(data)
        self._playing = True
        return text, info | all_body(text)

    def _stepped(self, data: Any) -> Step:
        step = read_step(data)
        self._playing = not (step[2] or step[3])
        return step


class SkyRLGymEnv(HostedEnv):
    """An environment of skyrl-gym in a process of its own: `agentrl/SkyRLGym-v0`.

    env: its registered id, or `module:attribute` of a class of one's own. env_config: as SkyRL's config has it.
    extras: added to each row's columns, which are the environment's extras (`reward_spec`, `max_turns`, ...). A row
    without `reward_spec` gets one of its golden answers: ground_truth "text" is the first, "target" {"target": all}.
    python: the interpreter that has skyrl-gym, None for this one. stop_strings: where sampling of a turn ends.
    """

    def __init__(
        self,
        *,
        env: str = "gsm8k",
        env_config: Mapping[str, Any] | None = None,
        extras: Mapping[str, Any] | None = None,
        ground_truth: str = "text",
        python: str | None = None,
        stop_strings: Sequence[str] = (),
        timeout_s: float = 60.0,
    ) -> None:
        if ground_truth not in ("text", "target"):
            raise ValueError(f"ground_truth is {ground_truth!r}; it is text or target")
        arguments = {
            "env": env,
            "env_config": dict(env_config or {}),
            "extras": dict(extras or {}),
            "ground_truth": ground_truth,
        }
        super().__init__(hosted(python, "skyrl-gym", arguments), timeout_s, stop_strings)


class GemEnv(HostedEnv):
    """An environment of GEM in a process of its own: `agentrl/Gem-v0`.

    env: its registered id, or `module:attribute` of a class or factory. arguments: for it. GEM chooses the task by a
    seed: the row's `seed`, else one of its `id`, so that a group plays one task. An environment that draws from
    Python's own generator in its steps is not reproducible while others play in its process.
    python: the interpreter that has gem-llm (3.12 at most), None for this one.
    """

    def __init__(
        self,
        *,
        env: str = "game:GuessTheNumber-v0",
        arguments: Mapping[str, Any] | None = None,
        python: str | None = None,
        stop_strings: Sequence[str] = (),
        timeout_s: float = 60.0,
    ) -> None:
        given = {"env": env, "arguments": dict(arguments or {})}
        super().__init__(hosted(python, "gem", given), timeout_s, stop_strings)


class VerifiersEnv(HostedEnv):
    """A taskset of verifiers in a process of its own: `agentrl/Verifiers-v0`.

    taskset: the module whose `__all__` holds it. config: of verifiers' environment, as under its `--env`, for example
    {taskset: {task: {...}}, agent: {runtime: ...}}; the seat is a chat loop whose tool calls are read as Hermes writes
    them. A row's `index` chooses the task (`agentrl env tasks` lists them), else a seed of its id. A taskset's rewards,
    weighted, come at the end. python: the interpreter that has verifiers, None for this one.
    """

    def __init__(
        self,
        *,
        taskset: str,
        config: Mapping[str, Any] | None = None,
        python: str | None = None,
        stop_strings: Sequence[str] = (),
        timeout_s: float = 120.0,
    ) -> None:
        given = {"env": taskset, "arguments": dict(config or {})}
        super().__init__(hosted(python, "verifiers", given, file="taskset"), timeout_s, stop_strings)


# -------------------------------------------------------------------------------------------------- what they answered


def task_seed(row: Mapping[str, Any], seed: int) -> int:
    """The seed that chooses a task: the row's own, else one of its id, else `seed`. Equal for a whole group."""
    own = row.get("seed")
    if isinstance(own, int) and not isinstance(own, bool) and own >= 0:
        return own
    if row.get("id") is None:
        return seed
    return int.from_bytes(blake2b(str(row["id"]).encode(), digest_size=4).digest(), "little") >> 1


def all_body(text: str) -> dict[str, Any]:
    """The info that says: all of it is data, nothing is a protocol's own words."""
    return {"observation_parts": {"open": "", "body": text, "close": ""}}


def read_text(data: Any) -> tuple[str, dict[str, Any]]:
    """Text and info of an answer. ToolFailure where it has none."""
    text = data.get("text") if isinstance(data, dict) else None
    if not isinstance(text, str):
        raise ToolFailure(
            f"the environment's observation is {_short(text if isinstance(data, dict) else data)}, no text"
        )
    info = data.get("info")
    return text[:MAX_BODY_CHARACTERS], info if isinstance(info, dict) else {}


def read_step(data: Any) -> Step:
    """Gymnasium's five of an answer; a reward that is missing is 0. ToolFailure where it has another shape."""
    text, info = read_text(data)
    reward = data.get("reward")
    reward = 0.0 if reward is None else reward
    if not isinstance(reward, int | float) or not math.isfinite(reward):  # a bool is a number here
        raise ToolFailure(f"the environment's reward is {_short(reward)}; it must be a number")
    ends = [data.get(key, False) for key in ("terminated", "truncated")]
    if not all(isinstance(e, bool) for e in ends):
        raise ToolFailure(f"the environment's ends are {_short(ends)}; they are true or false")
    return text, float(reward), ends[0], ends[1], info | all_body(text)


def _waited(future: Future[Any], seconds: float) -> Any:
    try:
        return future.result(seconds)
    except TimeoutError as error:
        raise ToolFailure(f"the environment did not answer within {seconds:g} s") from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:119] + "…"

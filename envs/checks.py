"""The checks of `agentrl.envs.checker`, except for those with hostile text: each yields what is wrong."""

from __future__ import annotations

import asyncio
import inspect
import json
import math
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import gymnasium
from gymnasium.utils.env_checker import check_env as check_with_gymnasium

from agentrl.envs.errors import TaskError

GOLD = "Zxq Golding"
TASK = {"id": "check-0", "question": "Which answer is golden?", "golden_answers": [GOLD]}
MANY_TURNS = 50
LONGEST_STALL_S = 0.5  # of an event loop, in one episode
_KINDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "kind": (str, "a string"),
    "valid": (bool, "a bool"),
    "correct": (bool, "a bool"),
    "query": (str, "a string"),
    "retrieved": (list, "a list of passage ids"),
    "latency_s": ((int, float), "seconds"),
    "answer": ((str, type(None)), "a string or None"),
}


Level = Literal["ok", "warning", "error"]
Problem = tuple[Level, str, str]  # level, message, remedy


class Row(NamedTuple):
    """One step, or a reset (with reward 0)."""

    observation: Any
    reward: Any
    terminated: Any
    truncated: Any
    info: Any


@dataclass
class Subject:
    """What is checked, and how to play it."""

    make: Callable[..., gymnasium.Env[Any, Any]]
    stops: tuple[str, ...] = field(init=False)
    actions: tuple[str, ...] = field(init=False)
    exemplary: bool = field(init=False)
    options: dict[str, Any] | None = field(init=False)
    golden: dict[str, Any] | None = field(init=False)
    tool: str | None = field(init=False)

    def __post_init__(self) -> None:
        env = self.make()
        inner = env.unwrapped
        stops = getattr(inner, "stop_strings", ())
        self.stops = tuple(s for s in ((stops,) if isinstance(stops, str) else stops or ()) if isinstance(s, str) and s)
        self.actions = tuple(getattr(inner, "example_actions", ()))
        self.exemplary = bool(self.actions)
        if not self.actions:  # what the stop strings suggest
            self.actions = tuple(f"{s.replace('/', '')} example {s}" for s in self.stops) or ("an answer",)
        names = inspect.signature(type(inner).__init__).parameters
        self.tool = next((n for n in ("tool", "retriever") if n in names), None)
        try:
            env.reset(seed=0)
            self.options = None  # it has a task of its own
        except Exception:
            self.options = TASK
        try:
            env.reset(seed=0, options=dict(TASK))
            self.golden = TASK
        except Exception:  # its tasks have another form
            self.golden = None
        env.close()

    def reset(self, env: gymnasium.Env[Any, Any]) -> tuple[Any, Any]:
        """With the same seed and task each time."""
        return env.reset(seed=0, options=self.options and dict(self.options))

    def play(
        self, actions: Sequence[str], env: gymnasium.Env[Any, Any] | None = None, *, tool: Any = None
    ) -> list[Row]:
        """The rows of one episode; with a stand-in for the tool it is of the task whose answer is `GOLD`."""
        if tool is not None and self.tool is not None:
            env = self.make(**{self.tool: tool})
            observation, info = env.reset(seed=0, options=self.golden and dict(self.golden))
        else:
            env = env or self.make()
            observation, info = self.reset(env)
        rows = [Row(observation, 0.0, False, False, info)]
        for action in actions:
            rows.append(Row(*env.step(action)))
            if rows[-1].terminated or rows[-1].truncated:
                break
        return rows


def short(text: str) -> str:
    """A piece of any text, printable."""
    text = ascii(text)[1:-1]
    return text if len(text) <= 160 else text[:157] + "..."


def _same(a: Row, b: Row) -> bool:
    def bare(row: Row) -> Any:
        info = {k: v for k, v in row.info.items() if k != "latency_s"} if isinstance(row.info, dict) else row.info
        return (row.observation, row.reward, row.terminated, row.truncated, info)

    return bool(bare(a) == bare(b))


def check_gymnasium(subject: Subject) -> Iterator[Problem]:
    """Gymnasium's own checker; its warnings count as warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            check_with_gymnasium(subject.make().unwrapped)
        except Exception as e:
            yield "error", short(f"{type(e).__name__}: {e}"), "see gymnasium.utils.env_checker"
    for message in dict.fromkeys(str(w.message) for w in caught):
        yield "warning", short(re.sub(r"\x1b\[[0-9;]*m", "", message)), "see gymnasium.utils.env_checker"


def check_text(subject: Subject) -> Iterator[Problem]:
    """Observations and actions are text, any text."""
    env = subject.make()
    observation, _ = env.reset(seed=0)
    if not isinstance(observation, str):
        yield "error", f"observations are {type(observation).__name__}", "rollouts need gymnasium.Env[str, str]"
        return
    space = env.action_space
    if not isinstance(space.sample(), str):
        yield "error", f"actions are {type(space.sample()).__name__}", "rollouts need gymnasium.Env[str, str]"
    elif not all(space.contains(text) for text in ("", "naïve ∑ 東京 <answer>\n", "a" * 10_000)):
        yield (
            "warning",
            f"{space} does not contain every text",
            "models write any text: use agentrl.envs.spaces.AnyText",
        )


def check_stop_strings(subject: Subject) -> Iterator[Problem]:
    """Stop strings are a tuple of strings; there are example actions."""
    env = subject.make().unwrapped
    stops = getattr(env, "stop_strings", None)
    if not hasattr(env, "stop_strings"):
        yield "warning", "there are none", "give the attribute stop_strings, () where only the end of text ends a turn"
    elif isinstance(stops, str):
        yield "error", f"{stops!r} is one string, read as its letters", f"write ({stops!r},)"
    elif not isinstance(stops, tuple | list) or not all(isinstance(s, str) and s for s in stops):
        yield (
            "error",
            f"{stops!r} is not a tuple of non-empty strings",
            "give one, empty where only the end ends a turn",
        )
    if not subject.exemplary:
        yield "warning", "there are no example_actions", "give some, so that the checker can drive the tool"


def check_tasks(subject: Subject) -> Iterator[Problem]:
    """It takes the tasks of a data set."""
    env = subject.make()
    try:
        env.reset(options=dict(TASK))
    except TaskError as e:
        yield "warning", f"a task {sorted(TASK)} is refused: {short(str(e))}", "the rows of the data set must fit"


def check_episode(subject: Subject) -> Iterator[Problem]:
    """Every outcome of the example actions is well formed, and they end the episode."""
    rows = subject.play(subject.actions)
    for i, row in enumerate(rows):
        action = subject.actions[i - 1] if i else ""
        yield from check_row(row, action, first=i == 0)
    if not rows[-1].terminated and subject.exemplary:
        yield "warning", "the example actions do not end the episode", "let the last one answer"


def check_row(row: Row, action: str, *, first: bool = False) -> Iterator[Problem]:
    """What is wrong with one step's outcome."""
    where = "reset()" if first else f"step({short(action)!r})"
    if not isinstance(row.observation, str):
        yield "error", f"{where} gave an observation of type {type(row.observation).__name__}", "give text"
        return
    if isinstance(row.reward, bool) or not math.isfinite(row.reward):
        yield "error", f"{where} gave the reward {row.reward!r}", "give a finite number; raise ToolFailure on failure"
    if not (row.observation or row.terminated or row.truncated):
        yield "warning", f"{where} gave no text though the episode goes on", "tell the model what happened"
    parts = row.info.get("observation_parts")
    if parts is None:
        if row.observation:
            yield (
                "warning",
                f"{where} gave no info['observation_parts']",
                "give {'open', 'body', 'close'}: a cut then keeps the closing text, and only body counts as data",
            )
    elif sorted(parts) != ["body", "close", "open"] or not all(isinstance(v, str) for v in parts.values()):
        yield "error", f"{where}: observation_parts is {short(repr(parts))}", "give the strings open, body, close"
    elif parts["open"] + parts["body"] + parts["close"] != row.observation:
        yield "error", f"{where}: open + body + close is not the observation", "make the observation from its parts"
    for key, (kind, wanted) in _KINDS.items():
        value = row.info.get(key)
        if key in row.info and (not isinstance(value, kind) or (key == "latency_s" and isinstance(value, bool))):
            yield "error", f"{where}: info[{key!r}] is {short(repr(value))}", f"it must be {wanted}"
    span = row.info.get("answer_span")
    if span is not None:
        if len(span) != 2 or not 0 <= span[0] <= span[1] <= len(action):
            yield "error", f"{where}: answer_span is {span!r}", "give (start, end) characters of the action"
        elif str(row.info.get("answer", "")).strip() not in action[span[0] : span[1]]:
            yield "warning", f"{where}: answer_span does not hold the answer", "it should: LLDS weighs those tokens"
    try:
        json.dumps(row.info)
    except (TypeError, ValueError) as e:
        yield "error", f"{where}: info is not JSON ({e})", "rollouts are logged: use plain Python values"


def check_end(subject: Subject) -> Iterator[Problem]:
    """Useless actions come to an end."""
    if len(subject.play(["nothing of use"] * MANY_TURNS)) > MANY_TURNS:
        yield "warning", f"it goes on after {MANY_TURNS} useless actions", "limit the turns; rollout.max_turns does too"


def check_determinism(subject: Subject) -> Iterator[Problem]:
    """Equal seed, task and actions, equal episode."""
    env = subject.make()
    first, again, other = (
        subject.play(subject.actions, env),
        subject.play(subject.actions, env),
        subject.play(subject.actions),
    )
    for name, rows in (("played again", again), ("made anew", other)):
        if len(rows) != len(first) or not all(map(_same, first, rows)):
            yield (
                "warning",
                f"with the same seed, task and actions it answers otherwise when {name}",
                "use self.np_random",
            )


def check_apart(subject: Subject) -> Iterator[Problem]:
    """Two environments that are played in turn do not notice each other."""
    alone = subject.play(subject.actions)
    one, two = subject.make(), subject.make()
    played = subject.play(subject.actions[:-1], one)
    subject.play(subject.actions, two)
    if len(played) == len(subject.actions):  # the episode still goes on
        played.append(Row(*one.step(subject.actions[-1])))
    if len(played) != len(alone) or not all(map(_same, alone, played)):
        yield "error", "one environment changes what another answers", "keep no state of an episode outside self"


def check_async(subject: Subject) -> Iterator[Problem]:
    """`areset` and `astep` do what `reset` and `step` do."""
    env = subject.make().unwrapped
    has = [callable(getattr(env, name, None)) for name in ("areset", "astep")]
    if not any(has):
        return
    if not all(has):
        yield "error", f"there is {'areset' if has[0] else 'astep'} alone", "give both or neither"
        return

    async def episode() -> list[Row]:
        observation, info = await env.areset(seed=0, options=subject.options and dict(subject.options))  # type: ignore[attr-defined]
        rows = [Row(observation, 0.0, False, False, info)]
        for action in subject.actions:
            rows.append(Row(*await env.astep(action)))  # type: ignore[attr-defined]
            if rows[-1].terminated or rows[-1].truncated:
                break
        return rows

    async def watched() -> tuple[list[Row], float]:
        longest, playing = 0.0, asyncio.create_task(episode())
        while not playing.done():
            began = time.perf_counter()
            await asyncio.sleep(0.01)
            longest = max(longest, time.perf_counter() - began)
        return playing.result(), longest

    (rows, longest), wanted = asyncio.run(watched()), subject.play(subject.actions)
    if longest > LONGEST_STALL_S:
        yield (
            "error",
            f"astep blocks: other episodes stood still for {longest:.1f} s",
            "await what takes time, or drop areset and astep: step then runs on a thread",
        )
    if len(rows) != len(wanted) or not all(map(_same, rows, wanted)):
        yield "error", "astep answers otherwise than step", "both must play the same game"

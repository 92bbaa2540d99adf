"""Playing episodes: a `Player` holds what they share, and plays one, or groups of many at once.

What is sampled is kept as token ids; what the environment says is encoded by `ChatFormat` and appended. A failure of a
tool, a network or an environment's time limit ends the episode as data (`Trajectory.error`); any other exception is a
bug and stops everything.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, TypeVar

import httpx

from agentrl.config import RolloutConfig
from agentrl.envs.errors import ToolFailure
from agentrl.envs.waiting import time_limit
from agentrl.errors import EnvError
from agentrl.retriever.errors import RetrieverError
from agentrl.rewards import reaches
from agentrl.rollouts.chat import ChatFormat, PromptTooLong, parts_of
from agentrl.rollouts.pool import EnvHandle, EnvPool
from agentrl.rollouts.spans import token_span
from agentrl.types import Sampler, Task, Trajectory, Turn

__all__ = ["EnvPool", "Episode", "Player", "lost_its_tool"]

T = TypeVar("T")
TOOL_ERRORS = (ToolFailure, RetrieverError, httpx.HTTPError, OSError)  # the last includes TimeoutError


CONTEXT, REWARD = "context: ", "reward: "  # how errors begin for which no tool is to blame


class Failed(Exception):
    """The episode cannot go on; the text is for `Trajectory.error`."""


def lost_its_tool(t: Trajectory) -> bool:
    """Whether a tool, a server or the network failed it: played again, it may succeed."""
    return t.error is not None and not t.error.startswith((CONTEXT, REWARD))


@dataclass(frozen=True)
class Episode:
    """One that is to be played. Played again, it is the same: seeds follow from `sample_id`."""

    task: Task
    group_id: str
    sample_id: str


Ended = Callable[[Episode, Trajectory, float], Trajectory]  # the last: seconds that it took


async def guarded(call: Awaitable[T], timeout_s: float) -> T:
    """Await an environment's call; a failing or slow tool raises Failed."""
    try:
        async with time_limit(timeout_s) as deadline:
            result = await call
            until = deadline.when()
            if until is not None and asyncio.get_running_loop().time() > until:  # it never let go of the loop meanwhile
                raise Failed(
                    f"timeout: the environment took longer than rollout.tool_timeout_s = {timeout_s:g} s, and held up "
                    "every other episode: let its astep await, or drop areset and astep, so that step runs on a thread"
                )
            return result
    except TOOL_ERRORS as error:
        if isinstance(error, TimeoutError) and deadline.expired():
            raise Failed(
                f"timeout: the environment took longer than rollout.tool_timeout_s = {timeout_s:g} s"
            ) from error
        raise Failed(f"{type(error).__name__}: {error}") from error
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        # Nobody has cancelled the episode: what it waited for was (the call of a client that lost its connection).
        raise Failed("CancelledError: the environment's call was cancelled from inside") from error


@dataclass(frozen=True)
class Player:
    """What all episodes of a run, or of an evaluation, have in common."""

    sampler: Sampler
    pool: EnvPool
    chat: ChatFormat
    config: RolloutConfig
    seed: int = 0  # sessions and the environments' seeds follow from it and the sample's id alone
    temperature: float | None = None  # None: the config's
    concurrency: int | None = None  # episodes at once; None: the config's
    correct_threshold: float = 1.0  # reward from which an episode is correct where its environment does not say
    formats: Mapping[str, ChatFormat] = field(default_factory=dict)  # by `Task.env`, with their own limits; else `chat`
    ended: Ended | None = None  # told of each episode as it ends; what it returns stands in the result

    def collect(self, tasks: Sequence[Task], group_size: int, *, prefix: str = "") -> list[Trajectory]:
        """`play_groups` for callers without an event loop: runs it on the pool's. Ctrl-C leaves nothing behind."""
        return self.pool.run(self.play_groups(tasks, group_size, prefix=prefix))

    def replay(self, episodes: Sequence[Episode]) -> list[Trajectory]:
        """`play_all` for callers without an event loop."""
        return self.pool.run(self.play_all(episodes))

    async def play_groups(self, tasks: Sequence[Task], group_size: int, *, prefix: str = "") -> list[Trajectory]:
        """Play `group_size` episodes of each task; see `episodes_of` for their names and `play_all` for the rest."""
        return await self.play_all(episodes_of(tasks, group_size, prefix))

    async def play_all(self, episodes: Sequence[Episode]) -> list[Trajectory]:
        """The trajectories, in the order of `episodes`, whatever finished first.

        Equal arguments of equal players give equal episodes. The first exception cancels the other episodes and is
        raised as it is.
        """
        done: list[Trajectory | None] = [None] * len(episodes)
        todo = iter(range(len(episodes)))

        async def work() -> None:
            for k in todo:
                e = episodes[k]
                try:
                    handle = self.pool.take(e.task.env)
                except TOOL_ERRORS as error:  # its server cannot be started, or is away
                    done[k] = self._told(e, _never_began(e, error, self.sampler.policy_version), 0.0)
                    continue
                began = time.perf_counter()
                try:
                    found = await self.play(handle, e.task, e.group_id, e.sample_id)
                finally:
                    self.pool.give(handle)
                done[k] = self._told(e, found, time.perf_counter() - began)

        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(min(self.concurrency or self.config.concurrency, len(episodes))):
                    workers.create_task(work())
        except BaseExceptionGroup as several:
            raise several.exceptions[0] from None  # the others were cancelled because of it, or came after it
        played = [t for t in done if t is not None]
        if len(played) < len(episodes):  # a task that is cancelled from inside ends without a word
            raise AssertionError(f"{len(episodes) - len(played)} of {len(episodes)} episodes ended without a result")
        return played

    def _told(self, episode: Episode, found: Trajectory, seconds: float) -> Trajectory:
        return found if self.ended is None else self.ended(episode, found, seconds)

    async def play(self, handle: EnvHandle, task: Task, group_id: str, sample_id: str) -> Trajectory:
        """Play one episode of `task`.

        The conversation's session is released at the end. The episode is truncated after `max_turns` actions, or where
        the context has no room for another action of `max_tokens_per_turn`. It is correct where the environment's last
        info says so (`correct`), else where the reward reaches `correct_threshold`. Where a tool fails, the trajectory
        has an `error`, the turns so far, and a reward of NaN: nobody knows what it would have earned.
        """
        session = session_of(self.seed, sample_id)
        turns: list[Turn] = []
        reward, correct, terminated, truncated, error = 0.0, False, False, False, None
        try:
            terminated, truncated, correct = await self._play(handle, task, session, turns)
            reward = math.fsum(t.reward for t in turns)
        except Failed as failure:
            reward, error = math.nan, str(failure)
        finally:
            self.sampler.release(session)
        return Trajectory(
            sample_id=sample_id,
            group_id=group_id,
            env_id=handle.id,
            policy_version=min((t.policy_version for t in turns), default=self.sampler.policy_version),
            turns=tuple(turns),
            reward=reward,
            correct=correct,
            terminated=terminated,
            truncated=truncated,
            error=error,
        )

    async def _play(self, handle: EnvHandle, task: Task, session: int, turns: list[Turn]) -> tuple[bool, bool, bool]:
        """Append to `turns` until the episode ends; (terminated, truncated, correct). Raises Failed."""
        chat, sampler = self.formats.get(task.env, self.chat), self.sampler
        config = chat.config if self.formats else self.config
        timeout_s, max_tokens = config.tool_timeout_s, config.max_tokens_per_turn
        temperature = config.temperature if self.temperature is None else self.temperature
        stop = tuple(config.stop) or handle.stop_strings
        begun = await guarded(handle.reset(seed=session & 0x7FFFFFFF, options=task.options), timeout_s)
        observation, info = unpacked(begun, handle, "reset", ("observation", "info"))
        try:
            new = chat.start(parts_of(text_of(observation, handle), info))
        except PromptTooLong as error:
            raise Failed(f"{CONTEXT}{error}") from error
        context = list(new)
        while True:
            version = sampler.policy_version
            sample = await sampler.sample(
                context, max_tokens=max_tokens, stop=stop, temperature=temperature, session=session
            )
            if not sample.ids or len(sample.ids) != len(sample.logprobs):
                raise AssertionError(
                    f"the engine returned {len(sample.ids)} tokens and {len(sample.logprobs)} log-probabilities"
                )
            context += sample.ids
            record: dict[str, Any] = {
                "prompt_ids": new,
                "action_ids": sample.ids,
                "logprobs": sample.logprobs,
                "action": sample.text,
                "stop": sample.stop,
                "policy_version": version,
            }
            began = time.perf_counter()
            try:
                answer = await guarded(handle.step(chat.spoken(sample.text)), timeout_s)
                latency_s = time.perf_counter() - began
                parts_of_step = ("observation", "reward", "terminated", "truncated", "info")
                observation, reward, terminated, truncated, info = unpacked(answer, handle, "step", parts_of_step)
                reward = number_of(reward, handle)
                if not math.isfinite(reward):
                    raise Failed(f"{REWARD}{handle.id} returned {reward!r} for an action")
            except Failed as failure:
                latency_s = time.perf_counter() - began
                turns.append(
                    Turn(
                        **record, observation="", reward=math.nan, info={"error": str(failure), "latency_s": latency_s}
                    )
                )
                raise
            parts = parts_of(text_of(observation, handle), info)
            span = info.get("answer_span")
            results = info.get("messages", ())
            turn_info = {k: v for k, v in info.items() if k not in ("observation_parts", "answer_span", "messages")}
            turn_info.setdefault("latency_s", latency_s)
            turns.append(
                Turn(
                    **record,
                    observation=chat.shown(parts, results),
                    reward=reward,
                    info=turn_info,
                    answer_span=None if span is None else token_span(chat.tokenizer, sample.ids, sample.text, span),
                )
            )
            if not (terminated or truncated):
                new = chat.extend(sample.ids, sample.stop, parts, results)
                context += new
                truncated = len(turns) >= config.max_turns or len(context) + max_tokens > config.max_context
            if terminated or truncated:
                total = math.fsum(t.reward for t in turns)
                correct = info.get("correct", reaches(total, self.correct_threshold))
                return bool(terminated), bool(truncated), bool(correct)


def episodes_of(tasks: Sequence[Task], group_size: int, prefix: str = "") -> list[Episode]:
    """`group_size` episodes of each task, ordered by task, then by sample.

    Group ids are `{prefix}{task.id}`, with `/2` and so on for a task that occurs again: its groups stay apart, and no
    id of a data set has a slash. Sample ids are `{group id}-{i}`. AssertionError where two groups would have one name.
    """
    used: set[str] = set()
    ids = {task.id for task in tasks}
    out = []
    for task in tasks:
        name, again = task.id, 1
        while name in used or (again > 1 and name in ids):
            again += 1
            name = f"{task.id}/{again}"
        used.add(name)
        group_id = f"{prefix}{name}"
        out += [Episode(task, group_id, f"{group_id}-{i}") for i in range(group_size)]
    if len({e.sample_id for e in out}) != len(out):
        raise AssertionError(f"two episodes of {prefix or 'a batch'} have one name: {sorted(used)[:10]}")
    return out


def _never_began(episode: Episode, error: BaseException, version: int) -> Trajectory:
    """What is known of an episode whose environment could not be made."""
    return Trajectory(
        sample_id=episode.sample_id,
        group_id=episode.group_id,
        env_id="",
        policy_version=version,
        turns=(),
        reward=math.nan,
        correct=False,
        terminated=False,
        truncated=False,
        error=f"{type(error).__name__}: {error}",
    )


def text_of(observation: Any, handle: EnvHandle) -> str:
    if not isinstance(observation, str):
        raise EnvError(
            f"environment {handle.id} returned an observation of type {type(observation).__name__}; rollouts need an "
            "environment whose observations and actions are text (gymnasium.Env[str, str])"
        )
    return observation


def unpacked(answer: Any, handle: EnvHandle, method: str, names: tuple[str, ...]) -> tuple[Any, ...]:
    """What `reset` or `step` returned, in as many parts as Gymnasium has; `info` is a mapping."""
    if not isinstance(answer, tuple | list) or len(answer) != len(names):
        got = f"{len(answer)} values" if isinstance(answer, tuple | list) else f"a {type(answer).__name__}"
        raise EnvError(f"environment {handle.id}: {method}() returned {got}; it must return {', '.join(names)}")
    if not isinstance(info := answer[-1], Mapping):
        raise EnvError(
            f"environment {handle.id}: {method}() returned {info!r} as info; it must be a dictionary, for example {{}}"
        )
    return tuple(answer)


def number_of(reward: Any, handle: EnvHandle) -> float:
    """The reward as a float: also numpy's and torch's numbers."""
    if not isinstance(reward, str | bytes):
        try:
            return float(reward)
        except (TypeError, ValueError, RuntimeError):  # the last is torch's, for more than one number
            pass
    raise EnvError(
        f"environment {handle.id}: step() returned the reward {reward!r} ({type(reward).__name__}); it must return a "
        "number, for example 0.0"
    )


def session_of(seed: int, sample_id: str) -> int:
    """The name of a conversation to the sampler: 63 bits, the same for the same run and sample on every machine."""
    digest = blake2b(f"{seed}:{sample_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1

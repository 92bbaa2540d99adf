"""Demonstrations to trajectories: they are played by the very code that plays rollouts.

A sampler that reads its words from the demonstration takes the model's place, so that prompts, observations, their cuts
and the tokens that count are those of reinforcement learning, whatever the style. Where the line says what the
environment answered, that is what is shown; else the environment is asked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium

from agentrl.data.demonstrations import Demonstration
from agentrl.errors import DataError
from agentrl.rollouts.chat import ChatFormat
from agentrl.rollouts.play import EnvPool, Episode, Player, session_of
from agentrl.rollouts.written import Writer
from agentrl.types import Sample, Trajectory

SHOWN = 5  # bad demonstrations named in one message
Make = Callable[[], gymnasium.Env[str, str]]


class _Prompter(gymnasium.Env[str, str]):
    """An environment of which only the first prompt is asked: the observations of the demonstration follow."""

    def __init__(self, inner: gymnasium.Env[str, str], observations: dict[str, tuple[str, ...]]) -> None:
        self.inner, self.observations = inner, observations
        self.spec = inner.spec
        self.stop_strings = tuple(getattr(inner.unwrapped, "stop_strings", ()))
        self._left: list[str] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """The environment's own."""
        assert options is not None
        self._left = list(self.observations[options["id"]])
        return self.inner.reset(seed=seed, options=options)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """The next observation, or the end."""
        if not self._left:
            return "", 0.0, True, False, {"correct": True}
        observation = self._left.pop(0)
        split = getattr(self.inner.unwrapped, "parts_of_observation", None)
        info = {} if split is None else {"observation_parts": split(observation)}
        return observation, 0.0, False, False, info

    def close(self) -> None:
        """Of the environment inside."""
        self.inner.close()


class _Reader:
    """A `Sampler` that says what the demonstrations say."""

    policy_version = 0

    def __init__(self, writer: Writer, by_session: dict[int, Demonstration]) -> None:
        self.writer, self.by_session = writer, by_session
        self.said: dict[int, int] = {}  # turns of each session
        self.problems: dict[int, str] = {}

    async def sample(
        self,
        ids: Sequence[int],
        *,
        max_tokens: int,
        stop: Sequence[str] = (),
        temperature: float = 1.0,
        session: int | None = None,
    ) -> Sample:
        """The next action of the session's demonstration. What is wrong with it is noted, and a token said."""
        assert session is not None
        demo, n = self.by_session[session], self.said.get(session, 0)
        self.said[session] = n + 1
        if n >= len(demo.actions):
            self.problems[session] = f"the environment goes on after its last action ({demo.actions[-1]!r:.60})"
            return self.writer.nothing()
        stored = demo.action_ids[n] if n < len(demo.action_ids) else None
        try:
            return self.writer.write(demo.actions[n], tuple(stop), max_tokens, stored)
        except ValueError as error:
            self.problems[session] = f"action {n + 1}: {error}"
            return self.writer.nothing()

    def release(self, session: int) -> None:
        """Nothing is kept."""


def played(
    demos: Sequence[Demonstration], make_env: Make, chat: ChatFormat, say: Callable[[str], None]
) -> list[Trajectory]:
    """The demonstrations as trajectories, in their order; log-probabilities are 0.

    Those that the environment itself answers and does not find correct are left out, with a line. DataError names file,
    line and reason of those that cannot be an episode of this run.
    """
    episodes = {d.task.id: Episode(d.task, d.task.id, d.task.id) for d in demos}
    assert len(episodes) == len(demos), "two demonstrations have one id"
    by_session = {session_of(0, d.task.id): d for d in demos}
    reader = _Reader(Writer(chat), by_session)
    told = {d.task.id: d.observations for d in demos if d.observations is not None}
    found: dict[str, Trajectory] = {}
    for make, wanted in ((lambda: _Prompter(make_env(), told), True), (make_env, False)):
        some = [episodes[d.task.id] for d in demos if (d.task.id in told) == wanted]
        if some:
            with EnvPool(make) as pool:
                player = Player(reader, pool, chat, chat.config, concurrency=min(64, chat.config.concurrency))
                found |= {t.sample_id: t for t in player.replay(some)}
    problems = {d.task.id: p for d in demos if (p := _problem(d, found[d.task.id], reader)) is not None}
    if problems:
        lines = [f"{d.where}: {problems[d.task.id]}" for d in demos if d.task.id in problems]
        more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
        raise DataError("\n".join(lines[:SHOWN] + more))
    wrong = [d for d in demos if not found[d.task.id].correct]
    if wrong:
        say(f"{len(wrong)} of {len(demos)} demonstrations do not end in a correct answer and are left out "
            f"(the first: {wrong[0].where})")  # fmt: skip
    if len(wrong) == len(demos):
        raise DataError(f"{demos[0].where}: no demonstration ends in an answer that the environment finds correct")
    return [_as_stored(found[d.task.id], d, chat) for d in demos if found[d.task.id].correct]


def _as_stored(t: Trajectory, demo: Demonstration, chat: ChatFormat) -> Trajectory:
    """With the line's own prompt ids, where they say what is said here and have the same control tokens.

    An observation that was cut when it was stored may have other tokens where it was cut.
    """
    control, tokenizer = chat.encoder.control_ids, chat.tokenizer

    def same(stored: Sequence[int], made: Sequence[int]) -> bool:
        if max(stored) >= len(tokenizer) or tokenizer.decode(stored) != tokenizer.decode(made):
            return False
        return [i for i in stored if i in control] == [i for i in made if i in control]

    turns = [
        dataclasses.replace(u, prompt_ids=list(ids)) if ids is not None and same(ids, u.prompt_ids) else u
        for u, ids in zip(t.turns, demo.prompt_ids or [None] * len(t.turns))
    ]
    return dataclasses.replace(t, turns=tuple(turns))


def _problem(demo: Demonstration, t: Trajectory, reader: _Reader) -> str | None:
    """Why `t` is not the episode that the demonstration means, or None."""
    if noted := reader.problems.get(session_of(0, demo.task.id)):
        return noted
    if t.error is not None:
        return t.error
    if len(t.turns) < len(demo.actions):
        if t.truncated:
            return (
                f"after {len(t.turns)} of {len(demo.actions)} actions rollout.max_turns or rollout.max_context cuts it"
            )
        return f"the environment ends the episode after {len(t.turns)} of {len(demo.actions)} actions"
    return None

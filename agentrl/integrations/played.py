"""One of our environments, played for somebody else's trainer: rows in, plain values out.

ToolFailure goes through: a failed tool is no reward of 0, and only the trainer knows what to do with such an episode.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium

import agentrl.envs  # noqa: F401  (registers them)


class Said(NamedTuple):
    """What one turn came to."""

    text: str
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]


class Played:
    """An environment by id, with the arguments of its constructor; counts what the metrics need."""

    def __init__(self, env: str, arguments: Mapping[str, Any] | None = None) -> None:
        self.env = gymnasium.make(env, disable_env_checker=True, **dict(arguments or {}))
        self.turns, self.valid, self.reward, self.correct = 0, 0, 0.0, False

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Where sampling of a turn ends."""
        return tuple(getattr(self.env.unwrapped, "stop_strings", ()))

    def begin(self, row: Mapping[str, Any], seed: int | None = None) -> tuple[str, dict[str, Any]]:
        """The first observation of the row's task, and its info."""
        self.turns, self.valid, self.reward, self.correct = 0, 0, 0.0, False
        return self.env.reset(seed=seed, options=dict(row))

    def step(self, action: str) -> Said:
        """One turn."""
        said = Said(*self.env.step(action))  # type: ignore[arg-type]
        self.turns += 1
        self.valid += bool(said.info.get("valid", True))
        self.reward += float(said.reward)
        self.correct = bool(said.info.get("correct", self.reward >= 1.0))
        return said

    def metrics(self) -> dict[str, float]:
        """Of the episode so far."""
        shown = {"turns": self.turns, "reward": self.reward, "correct": float(self.correct)}
        return shown | ({"valid_action_ratio": self.valid / self.turns} if self.turns else {})


def plain_info(info: Mapping[str, Any]) -> dict[str, Any]:
    """An info without what only our rollouts read."""
    return {k: v for k, v in info.items() if k not in ("observation_parts", "messages", "answer_span")}


def read_rows(tasks: Sequence[Mapping[str, Any]] | str | Path) -> list[dict[str, Any]]:
    """Rows as they are, or those of a JSONL file. ValueError where there is none."""
    if isinstance(tasks, str | Path):
        rows = [json.loads(line) for line in Path(tasks).read_text().splitlines() if line.strip()]
    else:
        rows = [dict(t) for t in tasks]
    if not rows:
        raise ValueError(f"tasks is {tasks!r}: there is no row; give at least one {{question, golden_answers}}")
    return rows


def task_of(row: Mapping[str, Any], prompt: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """The row with `question` and `golden_answers`, where it has them in the manner of SkyRL and verl.

    `question` is then the last message of `prompt`, `golden_answers` stand in `reward_spec` or `reward_model`.
    """
    task = dict(row)
    if not task.get("question") and prompt:
        task["question"] = prompt[-1].get("content")
    if task.get("golden_answers") is None:
        for column in ("reward_spec", "reward_model"):
            truth = (task.get(column) or {}).get("ground_truth")
            if truth is not None:
                target = truth.get("target", truth) if isinstance(truth, Mapping) else truth
                task["golden_answers"] = [target] if isinstance(target, str) else list(target)
                break
    return task

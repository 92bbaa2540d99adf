"""Stored rollouts graded again, by a reward of one's own: `rollouts/step-000012.grades.json` beside them.

What the trainer gave stays as it is, so that the two can be compared. A reward is a function of the answer and the
expected answers, as in training; one with a parameter `row` gets the whole rollout too.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentrl import plugins
from agentrl.errors import RunError
from agentrl.rewards import reaches
from agentrl.runs.files import atomic_write, strict_json
from agentrl.runs.read import grades_file, iter_rollouts, read_grades, rollout_steps

Grader = Callable[..., Any]


@dataclass
class Told:
    """What a grader said of a step."""

    grader: str
    graded: int = 0
    total: float = 0.0
    differ: int = 0  # from the verdict, or the reward, that is stored
    compared: int = 0
    without: int = 0  # episodes without expected answers
    failed: int = 0
    first: str = ""  # the first failure

    def __str__(self) -> str:
        mean = f"{self.grader} {self.total / self.graded:.4g} on average" if self.graded else f"{self.grader} on none"
        parts = [f"{self.graded} graded, {mean}"]
        parts += [f"{self.differ} of {self.compared} differ from what is stored"] if self.compared else []
        parts += [f"{self.without} have no expected answers"] if self.without else []
        parts += [f"the grader failed on {self.failed} (first: {self.first})"] if self.failed else []
        return "; ".join(parts)


def grade_step(path: Path, step: int, kind: str, name: str) -> Told:
    """Grade the stored rollouts of a step. RunError where there are none, PluginError for an unknown grader."""
    steps = rollout_steps(path, kind)  # type: ignore[arg-type]
    if step not in steps:
        raise RunError(f"{path} has no rollouts of {kind} {step}: stored are {steps[0]} to {steps[-1]}")
    grader: Grader = plugins.find("reward", name)
    if isinstance(grader, type):
        raise RunError(f"{name} is made with parameters: name a function of (answer, golden answers) that calls it")
    parameters = inspect.signature(grader).parameters
    if "evidence" in parameters:
        raise RunError(
            f"grader {name} reads what the searches found, which is known while an episode is played: name it in "
            "env.kwargs.reward, or grade with one that reads the answer or the row"
        )
    whole = "row" in parameters
    told = Told(name)
    values: dict[str, float | None] = {}
    for row in iter_rollouts(path, step, kind):
        if row.get("error"):
            continue
        expected = _expected(row)
        if expected is None and not whole:
            told.without += 1
            continue
        given = (_answer(row), expected or [])
        try:
            value = float(grader(*given, row=row) if whole else grader(*given))
        except Exception as error:  # one episode that the grader cannot take must not lose the others
            told.failed += 1
            told.first = told.first or f"{row.get('sample_id')}: {type(error).__name__}: {error}"
            values[str(row.get("sample_id"))] = None
            continue
        values[str(row.get("sample_id"))] = value if math.isfinite(value) else None
        _compare(told, row, value)
    atomic_write(grades_file(path, step, kind), strict_json(read_grades(path, step, kind) | {name: values}))
    return told


def _compare(told: Told, row: dict[str, Any], value: float) -> None:
    told.graded, told.total = told.graded + 1, told.total + value
    verdict, reward = row.get("correct"), row.get("reward")
    if verdict is not None:
        told.compared += 1
        told.differ += bool(verdict) != reaches(value, 1.0)
    elif isinstance(reward, int | float):
        told.compared += 1
        told.differ += abs(value - reward) > 1e-6


def _expected(row: dict[str, Any]) -> list[str] | None:
    task = row["task"] if isinstance(row.get("task"), dict) else {}
    golden = task.get("golden_answers")
    return [str(g) for g in golden] if isinstance(golden, list) and golden else None


def _answer(row: dict[str, Any]) -> str:
    """The last answer that the rollout gave; "" where it gave none."""
    turns = row["turns"] if isinstance(row.get("turns"), list) else []
    infos = [t["info"] for t in turns if isinstance(t, dict) and isinstance(t.get("info"), dict)]
    found = [i["answer"] for i in infos if isinstance(i.get("answer"), str)]
    return found[-1] if found else ""

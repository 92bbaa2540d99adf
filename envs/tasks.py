"""What `reset(options=...)` must hold: a question and golden answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from numpy.random import Generator

from agentrl.envs.errors import TaskError


def choose_task(options: dict[str, Any] | None, tasks: Sequence[dict[str, Any]], rng: Generator) -> dict[str, Any]:
    """The options themselves where they hold anything, else one of `tasks`, drawn with `rng`."""
    return options if options else tasks[int(rng.integers(len(tasks)))]


def read_task(task: dict[str, Any]) -> tuple[str, list[str]]:
    """(question, golden answers) of {"question": str, "golden_answers": [str]}; one answer may stand without a list.

    Empty answers are left out. Raises TaskError where there is no question, or no answer is left.
    """
    question, golden = task.get("question"), task.get("golden_answers")
    if not isinstance(question, str) or not question.strip():
        raise TaskError(f"options['question'] is {question!r}; give the question as text")
    golden = [golden] if isinstance(golden, str) else golden
    kept = [g for g in golden if isinstance(g, str) and g.strip()] if isinstance(golden, list | tuple) else []
    if not kept:
        raise TaskError(f"options['golden_answers'] is {golden!r}; give at least one answer that is not empty")
    return question.strip(), kept


def read_tolerance(task: dict[str, Any]) -> float | None:
    """The absolute tolerance that a task states for numbers; None where it states none.

    Raises TaskError where it is no positive number.
    """
    value = task.get("tolerance")
    if value is None:
        return None
    try:
        tolerance = float(value)
    except (TypeError, ValueError):
        tolerance = math.nan
    if isinstance(value, bool) or not 0 < tolerance < math.inf:
        raise TaskError(f"options['tolerance'] is {value!r}; give a positive number, or leave it out")
    return tolerance

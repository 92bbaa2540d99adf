"""What `reset(options=...)` must hold: a question and golden answers."""

from __future__ import annotations

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

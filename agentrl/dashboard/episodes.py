"""What the dashboard sends of a step's rollouts: a line per trajectory, a whole trajectory, a group side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agentrl.errors import RunError

Row = dict[str, Any]


def summary(row: Row) -> Row:
    """One line of the table. What is not known is None: no verdict, no tokens."""
    turns = _turns(row)
    task = row["task"] if isinstance(row.get("task"), dict) else {}
    infos = [t["info"] for t in turns if isinstance(t.get("info"), dict)]
    sampled = [t["action_ids"] for t in turns if isinstance(t.get("action_ids"), list)]
    answers = [i["answer"] for i in infos if isinstance(i.get("answer"), str)]
    return {
        "sample_id": str(row.get("sample_id")),
        "group_id": str(row.get("group_id")),
        "reward": row.get("reward"),
        "correct": None if row.get("correct") is None else bool(row["correct"]),
        "truncated": bool(row.get("truncated")),
        "error": str(row["error"]) if row.get("error") else None,
        "tool_error": any(i.get("error") for i in infos),
        "question": str(task.get("question", ""))[:500],
        "answer": answers[-1][:200] if answers else None,
        "turns": len(turns),
        "tokens": sum(map(len, sampled)) if sampled else None,
        "prompt": str(task.get("id", "")),
        "advantage": row.get("advantage"),
        "grades": row["grades"] if isinstance(row.get("grades"), dict) else {},
    }


def conversation(row: Row) -> Row:
    """A trajectory without its tokens."""
    keep = ("action", "observation", "reward", "stop", "info")
    head = {k: v for k, v in row.items() if k != "turns"}
    return head | {"summary": summary(row), "turns": [{k: t.get(k) for k in keep} for t in _turns(row)]}


def find(rows: Sequence[Row], sample_id: str) -> Row:
    """The trajectory with that id; RunError where it was not stored."""
    for row in rows:
        if str(row.get("sample_id")) == sample_id:
            return row | {"summary": summary(row)}
    raise RunError(
        f"rollout {sample_id[:100]!r} was not stored at this step: log.rollout_groups is the number of groups kept"
    )


def _turns(row: Row) -> list[Row]:
    turns = row.get("turns")
    return [t for t in turns if isinstance(t, dict)] if isinstance(turns, list) else []

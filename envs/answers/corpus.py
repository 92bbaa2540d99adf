"""The corpora beside the grader: pairs of answers that are equal or not, and responses that try to be graded correct.

`answers.jsonl` has kind, gold, answer and equal; `attacks.jsonl` has kind, gold and response, all of them wrong. Tests,
`agentrl env check` and whoever hardens a grader read the same files. A new trap belongs there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
Judge = Callable[[str, str], bool]  # (gold, response or answer) -> accepted


class Pair(NamedTuple):
    """Two answers."""

    kind: str
    gold: str
    answer: str
    equal: bool


class Attack(NamedTuple):
    """A response that is wrong for a question whose answer is `gold`."""

    kind: str
    gold: str
    response: str


class Row(NamedTuple):
    """How a grader did on one kind."""

    kind: str
    equal: int
    accepted: int  # of the equal ones
    unequal: int  # attacks too
    let_through: int  # of the unequal ones


def pairs() -> list[Pair]:
    """The pairs of `answers.jsonl`."""
    return [Pair(**row) for row in _rows("answers.jsonl")]


def attacks() -> list[Attack]:
    """The responses of `attacks.jsonl`."""
    return [Attack(**row) for row in _rows("attacks.jsonl")]


def _rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (HERE / name).read_text(encoding="utf-8").splitlines()]


def table(answers: Iterable[tuple[Pair, bool]], responses: Iterable[tuple[Attack, bool]]) -> list[Row]:
    """Accepted and refused by kind, from what a grader said to each (True: correct)."""
    rows: dict[str, Row] = {}
    for pair, accepted in answers:
        row = rows.get(pair.kind, Row(pair.kind, 0, 0, 0, 0))
        rows[pair.kind] = row._replace(
            equal=row.equal + pair.equal,
            accepted=row.accepted + (pair.equal and accepted),
            unequal=row.unequal + (not pair.equal),
            let_through=row.let_through + (accepted and not pair.equal),
        )
    for attack, accepted in responses:
        kind = f"attack: {attack.kind}"
        row = rows.get(kind, Row(kind, 0, 0, 0, 0))
        rows[kind] = row._replace(unequal=row.unequal + 1, let_through=row.let_through + accepted)
    return list(rows.values())

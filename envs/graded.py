"""The check of `agentrl.envs.checker` for environments that grade a boxed answer: the corpora, played through them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from agentrl.envs.answers.corpus import Row, attacks, pairs, table
from agentrl.envs.checks import Problem, Subject, short

RIGHT, WRONG = r"It is \boxed{42}.", r"It is \boxed{41}."


def check_grader(subject: Subject) -> Iterator[Problem]:
    """Attacks earn nothing; equal answers are right and unequal ones wrong. Responses that cost time are not played.

    Only for environments that call `\\boxed{42}` correct and `\\boxed{41}` not, where 42 is the golden answer.
    """
    if subject.golden is None or not (_accepts(subject, "42", RIGHT) and not _accepts(subject, "42", WRONG)):
        yield "ok", "not checked: it does not grade a boxed answer", ""
        return
    graded = [(p, _accepts(subject, p.gold, f"\\boxed{{{p.answer}}}")) for p in pairs()]
    fought = [(a, _accepts(subject, a.gold, a.response)) for a in attacks() if a.kind != "time"]
    for attack, accepted in fought:
        if accepted:
            answer = f"{short(attack.response)!r} is graded correct where {attack.gold!r} is"
            yield "error", f"{answer} ({attack.kind})", "a policy finds it: compare the last box alone, and by value"
    for row in table(graded, []):
        yield from _findings(row)


def _findings(row: Row) -> Iterator[Problem]:
    where = f"answers of kind {row.kind!r}"
    if row.let_through:
        message = f"{row.let_through} of {row.unequal} unequal {where} are graded correct"
        yield "warning", message, "see agentrl/envs/answers/answers.jsonl"
    if row.accepted < row.equal:
        message = f"{row.equal - row.accepted} of {row.equal} equal {where} are graded wrong"
        yield "warning", message, "a model is punished for being right: see agentrl/envs/answers/answers.jsonl"


def _accepts(subject: Subject, gold: str, response: str) -> bool:
    env = subject.make()
    env.reset(seed=0, options={"id": "check-0", "question": "What is it?", "golden_answers": [gold]})
    info: dict[str, Any] = env.step(response)[4]
    return bool(info.get("correct", False))

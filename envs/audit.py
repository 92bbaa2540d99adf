"""The audit of a grader, whatever form its answers have: known tricks are given as the answer, and must earn nothing.

How an environment is answered is read from its own `example_actions`: the last one is played, and `answer_span` in its
info says which characters are the answer. The tricks are the boxed ones of `answers/attacks.jsonl`. What they may earn
is what a plainly wrong answer earns (a reward for the form, where there is one).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium

from agentrl.envs.answers.corpus import Attack, attacks
from agentrl.envs.checks import Problem, Subject, short
from agentrl.envs.grading import last_boxed

WRONG = "Porto Alegre"
PROBE = "Lisbon"  # the gold of the first tries
SKIPPED = ("time", "size", "other form")  # exact match as published drops signs and points of numbers: 4.2 is 42
SHOWN = 5


def check_audit(subject: Subject) -> Iterator[Problem]:
    """Tricks earn no more than a plainly wrong answer. Only for environments whose answers are known by a span."""
    frame = None if subject.golden is None else _frame(subject)
    if frame is None:
        yield "ok", "not checked: its example actions do not end with an answer that `answer_span` marks", ""
        return
    env = subject.make()
    floor = max(_earned(env, frame, PROBE, WRONG), 0.0)
    if _earned(env, frame, PROBE, PROBE) <= floor:
        yield "ok", f"not checked: the golden answer {PROBE!r} earns no more than {WRONG!r}", ""
        return
    earning = [a for a in tricks() if _earned(env, frame, a.gold, a.response, _question(a)) > floor]
    env.close()
    for attack in earning[:SHOWN]:
        what = f"{short(attack.response)!r} earns a reward where {attack.gold!r} is right ({attack.kind})"
        yield "error", what, "a policy finds it: compare the whole answer with each golden answer"
    if len(earning) > SHOWN:
        kinds = ", ".join(sorted({a.kind for a in earning}))
        yield "error", f"{len(earning)} of {len(tricks())} tricks earn a reward, of these kinds: {kinds}", ""


def tricks() -> list[Attack]:
    """The attacks of the corpus, as answers: what stands in their last box, for a text that is no mathematics, too."""
    out = []
    for attack in attacks():
        span = last_boxed(attack.response)
        if span is not None and attack.kind not in SKIPPED and "\\boxed" not in attack.response[slice(*span)]:
            out.append(Attack(attack.kind, attack.gold, attack.response[slice(*span)]))
    return out


def _question(attack: Attack) -> str:
    return attack.response if attack.kind == "echo of the question" else "Which one is it?"


def _frame(subject: Subject) -> tuple[str, str] | None:
    """What stands before and after the answer in an action."""
    env = subject.make()
    env.reset(seed=0, options=dict(subject.golden or {}))
    info: Any = env.step(subject.actions[-1])[4]
    env.close()
    span = info.get("answer_span") if isinstance(info, dict) else None
    if not span or len(span) != 2:
        return None
    return subject.actions[-1][: span[0]], subject.actions[-1][span[1] :]


def _earned(
    env: gymnasium.Env[Any, Any], frame: tuple[str, str], gold: str, answer: str, question: str = "Which one is it?"
) -> float:
    env.reset(seed=0, options={"id": "check-0", "question": question, "golden_answers": [gold]})
    return float(env.step(f"{frame[0]}{answer}{frame[1]}")[1])

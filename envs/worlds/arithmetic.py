"""A made-up mathematics task for a tiny model: small integers, worked step by step, answered in a box.

Levels: 1, expressions of two operations; 2, of three with a bracket; 3, linear equations; 4, small word problems.
Values stay within 0 to `LARGEST`, one token each, so that one step of a solution is one table entry and the difficulty
is in working the steps in order. Training and held-out questions are different questions; both use the whole table.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

LARGEST = 60
DIGITS = 10  # second operands are below this
Segment = tuple[str, bool]
Steps = list[tuple[int, str, int, int]]  # a, operation, b, result

SPECIALS = ("<pad>", "<eos>", "<unk>", "<think>", "</think>", "\\boxed{", "}")
WORDS = tuple(
    "question: + - * = ( ) ; , . ? x so has buys gives away and each boxes of pens how many find left now step".split()  # noqa: SIM905
)
NAMES = ("ann", "bob", "cem", "dov", "eva", "finn")


@dataclass(frozen=True)
class Errors:
    """What goes wrong in a demonstration, as probabilities per step or per solution."""

    slip: float = 0.10  # a step's result is off by a little
    swap: float = 0.05  # a step takes the wrong operation
    jump: tuple[float, ...] = (0.35, 0.53, 0.6, 0.6)  # by level: before a later step, it guesses the answer instead
    unboxed: float = 0.08  # the answer is not in a box


def apply(a: int, op: str, b: int) -> int:
    """a op b."""
    return a + b if op == "+" else a - b if op == "-" else a * b


def _fits(value: int) -> bool:
    return 0 <= value <= LARGEST


def _operation(rng: random.Random, a: int) -> tuple[str, int]:
    """An operation and second operand whose result stays within the values."""
    while True:
        op = rng.choice("+-*")
        b = rng.randrange(1, DIGITS)
        if _fits(apply(a, op, b)):
            return op, b


def _expression(rng: random.Random) -> tuple[str, Steps]:
    a = rng.randrange(1, DIGITS)
    text, steps = f"{a}", []
    for k in range(2):
        op, b = _operation(rng, a)
        steps.append((a, op, b, apply(a, op, b)))
        text = f"( {text} {op} {b} )" if k == 0 else f"{text} {op} {b}"
        a = steps[-1][3]
    return f"{text} = ?", steps


def _bracket(rng: random.Random) -> tuple[str, Steps]:
    while True:
        a, b, c, d = (rng.randrange(1, DIGITS) for _ in range(4))
        p, q = rng.choice("+*"), rng.choice("+*")
        left, right = apply(a, p, b), apply(c, q, d)
        op = rng.choice("+-")
        if right < DIGITS and _fits(left) and _fits(apply(left, op, right)):
            steps = [(a, p, b, left), (c, q, d, right), (left, op, right, apply(left, op, right))]
            return f"( {a} {p} {b} ) {op} ( {c} {q} {d} ) = ?", steps


def _equation(rng: random.Random) -> tuple[str, Steps]:
    """x + b - c = d with one unknown: worked backwards."""
    while True:
        b, c = rng.randrange(1, DIGITS), rng.randrange(1, DIGITS)
        x = rng.randrange(1, LARGEST)
        total = x + b - c
        if _fits(x + b) and _fits(total) and _fits(total + c):
            return f"x + {b} - {c} = {total} , find x ?", [(total, "+", c, total + c), (total + c, "-", b, x)]


def _story(rng: random.Random) -> tuple[str, Steps]:
    name = rng.choice(NAMES)
    while True:
        a, b, c = (rng.randrange(1, DIGITS) for _ in range(3))
        if rng.random() < 0.5:
            steps = [(a, "*", b, a * b), (a * b, "+", c, a * b + c)]
            text = f"{name} has {a} boxes of {b} pens and buys {c} . how many ?"
        else:
            steps = [(a, "+", b, a + b), (a + b, "-", c, a + b - c)]
            text = f"{name} has {a} pens , buys {b} and gives away {c} . how many left ?"
        if all(_fits(s[3]) for s in steps):
            return text, steps


LEVELS: dict[int, Callable[[random.Random], tuple[str, Steps]]] = {
    1: _expression,
    2: _bracket,
    3: _equation,
    4: _story,
}


class ArithmeticWorld:
    """See the module docstring; the interface is that of every built-in world."""

    env_id = "agentrl/Math-v0"
    passages: tuple[dict[str, str], ...] = ()

    def __init__(self, seed: int = 0, *, levels: Iterable[int] = (1, 2), size: int = 3000, **_: Any) -> None:
        self.levels = tuple(levels)
        unknown = [v for v in self.levels if v not in LEVELS]
        if not self.levels or unknown:
            raise ValueError(f"levels is {self.levels}; each must be one of {sorted(LEVELS)}")
        rng = random.Random(seed)
        made: dict[str, tuple[Steps, int]] = {}
        in_vain = 0  # questions in a row that were there already: the levels have no more
        while len(made) < size and in_vain < 5_000:
            level = rng.choice(self.levels)
            text, steps = LEVELS[level](rng)
            in_vain = in_vain + 1 if text in made else 0
            made.setdefault(text, (steps, level))
        self._steps = {text: steps for text, (steps, _) in made.items()}
        rows = [
            {
                "id": f"a{i}",
                "question": text,
                "golden_answers": [str(steps[-1][3])],
                "level": level,
                "steps": len(steps),
            }
            for i, (text, (steps, level)) in enumerate(made.items())
        ]
        held = max(1, len(rows) // 4)
        self._questions = {"test": rows[:held], "train": rows[held:]}
        vocabulary = [*SPECIALS, *WORDS, *NAMES, *(str(n) for n in range(LARGEST + 1))]
        vocabulary += [f"<x{i}>" for i in range(-len(vocabulary) % 16)]
        self.vocabulary, self.specials = {w: i for i, w in enumerate(vocabulary)}, SPECIALS
        self.env_kwargs: dict[str, Any] = {"prompt_template": "question: {question}"}

    def questions(self, split: str) -> list[dict[str, Any]]:
        """Rows of "train" or "test": id, question, golden_answers, level, and steps (their number)."""
        return list(self._questions[split])

    def encode(self, text: str) -> list[int]:
        """Ids of the world's own text."""
        unknown = self.vocabulary["<unk>"]
        return [self.vocabulary.get(w, unknown) for w in text.split()]

    def tokenizer(self) -> Any:
        """A word-level Hugging Face tokenizer of the world's words."""
        from agentrl.envs.worlds.vocabulary import word_tokenizer

        return word_tokenizer(self.vocabulary, SPECIALS)

    def demonstration(
        self, question: dict[str, Any], rng: random.Random, errors: Errors | None = None
    ) -> list[Segment]:
        """An imperfect worked solution of a training question."""
        e = errors or Errors()
        steps = self._steps[question["question"]]
        jump = e.jump[question["level"] - 1]
        worked, value = [], 0
        for k, (a, op, b, _) in enumerate(steps):
            if k and rng.random() < jump:
                value = min(LARGEST, max(0, value + rng.randrange(-9, 10)))
                break
            if k == 1 and steps[1][0] == steps[0][3]:  # a chain: go on from what was written, right or wrong
                a = value
            op = rng.choice("+-*") if rng.random() < e.swap else op
            value = apply(a, op, b)
            if rng.random() < e.slip:
                value += rng.choice((-2, -1, 1, 2, 10))
            value = min(LARGEST, max(0, value))
            worked.append(f"{a} {op} {b} = {value}")
        answer = f"{value}" if rng.random() < e.unboxed else f"\\boxed{{ {value} }}"
        return [
            (f"question: {question['question']}", False),
            (f"<think> {' ; '.join(worked)} </think> {answer} <eos>", True),
        ]

    def practice(self, rng: random.Random) -> list[Segment]:
        """The table: single steps, densely."""
        out: list[Segment] = [("question:", False)]
        for _ in range(12):
            a = rng.randrange(LARGEST + 1)
            op, b = _operation(rng, a)
            out += [(f"{a} {op} {b} =", False), (f"{apply(a, op, b)}", True), (";", False)]
        return out


def perfect(errors: Errors) -> Errors:
    """No errors at all; for tests and for measuring the ceiling."""
    return replace(errors, slip=0.0, swap=0.0, jump=(0.0,) * len(LEVELS), unboxed=0.0)

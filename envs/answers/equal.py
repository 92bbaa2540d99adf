"""Whether two answers are equal, as far as text, numbers, units, bases, relations and lists decide it.

What they leave open is for algebra: a function `deeper` of two texts, or None where there is none at hand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from agentrl.envs.answers import forms, units
from agentrl.envs.answers.numbers import equal_numbers, read_number
from agentrl.envs.answers.tidy import DIGITS_APART, TEXT, spell, tidy

Deeper = Callable[[str, str], bool]  # of tidied (gold, given)
Decider = Literal["string", "number", "form", "math-verify"]
Verdict = tuple[bool | None, Decider]  # None: algebra is needed
OPEN: Verdict = (None, "math-verify")
MAX_DEPTH = 5  # of lists in lists
_WORD = re.compile(r"[A-Za-z][A-Za-z '-]{3,}")
_PLAIN_SUM = re.compile(r"(?:[\d\s.+\-*/^(){}]|\\(?:frac|sqrt|cdot|times|pi)(?![a-zA-Z]))+")
_FUNCTION = re.compile(r"sin|cos|tan|sec|csc|cot")
_BARE_RELATION = re.compile(r"\\(?:neq|leq|geq)|[<>]")


@dataclass(frozen=True)
class Answer:
    """An answer in one way of writing: the whole, without its unit, its unit, and whether it is words."""

    text: str
    bare: str
    unit: units.Unit | None
    words: bool


@lru_cache(maxsize=10_000)
def read(answer: str) -> Answer:
    """An answer, read."""
    spelt, text = spell(answer), tidy(answer)
    words = bool(_WORD.fullmatch(text) or (TEXT.fullmatch(spelt) and text.isalpha()))
    if words or read_number(text) is not None:
        return Answer(text, text, None, words)
    rest, unit = units.split_unit(spelt.rstrip(" .,;"))
    if unit is None or (unit == units.DEGREE and _FUNCTION.search(rest)):
        return Answer(text, text, None, False)
    return Answer(text, tidy(rest), unit, False)


def equal(gold: str, given: str, deeper: Deeper | None = None, tolerance: float | None = None) -> Verdict:
    """(whether two answers are equal, what decided it); the first is None where algebra is needed and not at hand.

    `tolerance` is an absolute one for numbers, where the data set gives one.
    """
    return _Comparison(deeper, tolerance).of(read(gold), read(given))


@dataclass(frozen=True)
class _Comparison:
    deeper: Deeper | None
    tolerance: float | None
    depth: int = 0

    def of(self, gold: Answer, given: Answer) -> Verdict:
        """Whole answers."""
        if gold.text == given.text:
            return True, "string"
        if gold.words or given.words:  # algebra would read them as products: "evil" as "live"
            same = _plain_words(gold.text) == _plain_words(given.text)
            if same or not any(forms.relations(forms.spelt_relation(t)) for t in (gold.text, given.text)):
                return same, "string"
        if gold.unit is not None and given.unit is not None and gold.unit != given.unit:
            return False, "form"
        verdict = self.bare(gold.bare, given.bare)
        if verdict[0] is not True and (gold.unit is None) != (given.unit is None):
            return self._with_sign(gold, given, verdict)
        return verdict

    def bare(self, gold: str, given: str) -> Verdict:
        """Answers without their units."""
        if gold == given:
            return True, "string"
        if any(forms.has_dots(t) or forms.too_large(t) for t in (gold, given)):
            return False, "form"  # what was left out cannot be compared, and what cannot be computed either
        (digits, base), (others, other) = forms.numeral(gold), forms.numeral(given)
        if base is not None or other is not None:
            return base == other and digits == others, "form"
        gold, given = forms.spelt_relation(digits), forms.spelt_relation(others)
        if forms.relations(gold) or forms.relations(given):
            return self._relations(gold, given)
        a, b = read_number(gold), read_number(given)
        if a is not None and b is not None:
            return equal_numbers(a, b, self.tolerance), "number"
        if "=" in gold + given and (verdict := self._equations(gold, given)):
            return verdict
        if self.depth < MAX_DEPTH and (verdict := self._lists(gold, given)):
            return verdict
        if DIGITS_APART.search(gold) or DIGITS_APART.search(given):
            return False, "form"  # algebra would read `2 3` as a product
        return self._algebra(gold, given)

    def _algebra(self, gold: str, given: str) -> Verdict:
        if self.deeper is None:
            return OPEN
        return self.deeper(forms.radians(gold), forms.radians(given)), "math-verify"

    def _with_sign(self, gold: Answer, given: Answer, verdict: Verdict) -> Verdict:
        """One of the two has a unit: 50% is 0.5 as well as 50, and 180 degrees are pi as well as 180."""
        marked = gold if gold.unit is not None else given
        number = read_number(marked.bare)
        if number is None or marked.unit not in (units.PERCENT, units.DEGREE):
            return verdict
        n, d = number.value.numerator, number.value.denominator
        value = f"\\frac{{{n}}}{{{d}00}}" if marked.unit == units.PERCENT else f"\\frac{{{n}\\pi}}{{{d * 180}}}"
        again = self.bare(value, given.bare) if marked is gold else self.bare(gold.bare, value)
        return again if again[0] or verdict[0] is not None else verdict

    def _equations(self, gold: str, given: str) -> Verdict | None:
        """`x=5` is 5, and `2+3=5` is, but an answer `6=5` is not: each side without letters must be right."""
        golds, givens = forms.sides(gold), forms.sides(given)
        if len(golds) == 1 and len(givens) > 1:
            earlier = [s for s in givens[:-1] if _PLAIN_SUM.fullmatch(s)]
            return _all([self.bare(gold, s) for s in (*earlier, givens[-1])])
        if len(golds) == 2 and len(givens) == 1:
            return None if _PLAIN_SUM.fullmatch(golds[0]) else self.bare(golds[1], given)
        if len(golds) == len(givens) == 2 and golds[0] == givens[0]:
            return self.bare(golds[1], givens[1])
        return None

    def _lists(self, gold: str, given: str) -> Verdict | None:
        """Element by element; None where neither is a list."""
        a, b = forms.listed(gold), forms.listed(given)
        if a is None and b is None:
            return None
        a, b = a or forms.Items("", (gold,)), b or forms.Items("", (given,))
        if len(a.items) != len(b.items):
            return self._algebra(gold, given) if forms.is_union(gold) or forms.is_union(given) else (False, "form")
        if len(a.items) > 1 and a.brackets != b.brackets and a.brackets and b.brackets:
            return False, "form"
        inner = _Comparison(self.deeper, self.tolerance, self.depth + 1)
        if len(a.items) > 1 and {a.brackets, b.brackets} <= {"", "{}"}:
            return inner.unordered(a.items, b.items)
        return _all([inner.of(read(x), read(y)) for x, y in zip(a.items, b.items)])

    def unordered(self, golds: Sequence[str], givens: Sequence[str]) -> Verdict:
        """Each given element equals a gold one of its own, in any order."""
        left, verdicts = list(givens), []
        for x in golds:
            found = [self.of(read(x), read(y)) for y in left]
            best = next((i for i, f in enumerate(found) if f[0]), None)
            if best is not None:
                del left[best]
                verdicts.append(found[best])
            else:
                verdicts.append(OPEN if OPEN in found else (False, "form"))
        return _all(verdicts)

    def _relations(self, gold: str, given: str) -> Verdict:
        """A relation on one side only is no match, unless the other side is a set."""
        a, b = forms.relations(gold), forms.relations(given)
        if not a or not b:
            return self._algebra(gold, given) if forms.is_set(given if a else gold) else (False, "form")
        symbol = forms.subject(gold) or forms.subject(given) or "x"
        gold, given = (symbol + t if _BARE_RELATION.match(t) else t for t in (gold, given))
        if gold == given:
            return True, "form"
        if "\\neq" in a + b:
            if len(a) != 1 or a != b:
                return False, "form"
            return self.bare(gold.replace("\\neq", "="), given.replace("\\neq", "="))  # where it does not hold
        return self._algebra(gold, given)


def _all(verdicts: Sequence[Verdict]) -> Verdict:
    for wanted in (False, None):
        if found := next((v for v in verdicts if v[0] is wanted), None):
            return found
    return verdicts[-1]


def _plain_words(text: str) -> str:
    """Without upper case and article."""
    return re.sub(r"^(?:the|an|a) (?=..)", "", text.casefold())

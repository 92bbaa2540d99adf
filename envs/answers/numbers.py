"""Numbers as answers write them, read exactly, and when two of them are equal."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

DIGITS = 6  # significant digits from which on a decimal also stands for what rounds to it
MAX_EXPONENT = 5_000  # of a power of ten; beyond it a number is compared as text
_PLAIN = r"(?:\d{1,500}(?:\.\d{0,500})?|\.\d{1,500})"
_POWER = r"10\^\{[+-]?\d{1,9}\}"
_VALUE = re.compile(rf"({_PLAIN})(?:\\times({_POWER}))?|({_POWER})")
_FRACTION = re.compile(rf"\\frac\{{([+-]?{_PLAIN})\}}\{{([+-]?{_PLAIN})\}}|({_PLAIN})/({_PLAIN})")


@dataclass(frozen=True)
class Number:
    """A number and how exactly it is given: `digits` significant digits of a decimal, None where it is exact."""

    value: Fraction
    digits: int | None = None


def read_number(text: str) -> Number | None:
    """The number that a tidied text is: integer, decimal, fraction of those, power of ten. None for anything else."""
    sign = 1
    while text[:1] in ("+", "-"):
        sign, text = (-sign if text[0] == "-" else sign), text[1:]
        if text[:1] in ("+", "-"):
            return None
    if match := _FRACTION.fullmatch(text):
        over, under = (Fraction(g) for g in match.groups() if g is not None)
        return None if not under else Number(sign * over / under)
    match = _VALUE.fullmatch(text)
    if match is None:
        return None
    mantissa, power, alone = match.group(1) or "1", match.group(2), match.group(3)
    exponent = int((power or alone or "10^{0}")[4:-1])
    if abs(exponent) > MAX_EXPONENT:
        return None
    written = len(mantissa.replace(".", "").lstrip("0"))
    return Number(sign * Fraction(mantissa) * Fraction(10) ** exponent, written if "." in mantissa else None)


def equal_numbers(a: Number, b: Number, tolerance: float | None = None) -> bool:
    """Equal values; or a decimal of `DIGITS` significant digits or more, and a number that rounds to it.

    So 0.333333 is 1/3 and 0.3333 is not, whatever their size: 1e-7 is not 3e-7. `tolerance` is absolute, where the data
    set gives one.
    """
    if a.value == b.value:
        return True
    if tolerance is not None and abs(a.value - b.value) <= Fraction(tolerance):
        return True
    return any(rounds_to(other.value, decimal) for decimal, other in ((a, b), (b, a)))


def rounds_to(value: Fraction, decimal: Number) -> bool:
    """Whether a value differs from a decimal by at most half of its last digit."""
    if decimal.digits is None or decimal.digits < DIGITS or not decimal.value:
        return False
    return abs(value - decimal.value) <= half_unit(decimal)


def half_unit(decimal: Number) -> Fraction:
    """Half of the last written digit of a decimal that is not 0."""
    assert decimal.digits is not None
    size = abs(decimal.value)
    magnitude = len(str(size.numerator)) - len(str(size.denominator))  # of the leading digit, or one too high
    if Fraction(10) ** magnitude > size:
        magnitude -= 1
    return Fraction(10) ** (magnitude - decimal.digits + 1) / 2

"""Algebra by math-verify, with its comparison of numbers replaced. For worker processes alone: sympy can take hours.

math-verify rounds decimals to six places and drops what is below 1e-15, so that all small numbers are equal to it, also
in lists, matrices and coefficients. Here numbers are compared relatively.
"""

from __future__ import annotations

import logging
import signal
from fractions import Fraction
from typing import Any

from agentrl.envs.answers.equal import equal
from agentrl.envs.answers.numbers import DIGITS, Number, read_number, rounds_to

EXACT = 30  # digits to which two exact numbers must agree; they are computed to 20 more
_TERMS = EXACT + 20


def prepare() -> None:
    """Import what takes a second, and put the relative comparison in its place."""
    from math_verify import grader

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that we, not it, watch the time
    if not hasattr(grader, "sympy_numeric_eq"):
        raise ImportError("math-verify has no grader.sympy_numeric_eq any more; install math-verify 0.9")
    grader.sympy_numeric_eq = numeric_equal


class OutOfTime(BaseException):
    """No Exception, because math-verify and sympy catch those and go on."""


def judge(answer: str, golden_answers: list[str], tolerance: float | None, deadline_s: float) -> bool | None:
    """Whether an answer is equal to one of the golden answers; None where that takes more seconds of CPU than allowed.

    CPU seconds, because a machine that is busy with other work must not make a right answer wrong. A computation inside
    one long instruction does not hear the signal: the caller ends this process then.
    """

    def deeper(gold: str, given: str) -> bool:
        return algebra(gold, given, tolerance)

    def stop(*_: Any) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGPROF, stop)
    try:
        signal.setitimer(signal.ITIMER_PROF, deadline_s)
        return any(equal(gold, answer, deeper, tolerance)[0] for gold in golden_answers)
    except OutOfTime:
        return None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, before)


def algebra(gold: str, given: str, tolerance: float | None = None) -> bool:
    """Whether two tidied texts mean the same by algebra."""
    from math_verify import verify

    wanted, found = _parse(gold), _parse(given)
    if not wanted or not found:
        return False
    a, b = _value(wanted[0]), _value(found[0])
    if a is not None and b is not None:
        return _equal_values(a, b, read_number(gold), read_number(given), tolerance)
    return bool(verify(wanted, found, timeout_seconds=None, allow_set_relation_comp=True))


def _parse(text: str) -> list[Any]:
    """The expression that a text is; empty where it is none.

    As LaTeX alone: math-verify hands plain expressions to sympy's parser, which evaluates Python, and picks a number
    out of a sentence. Units are not dropped: `5t` is no 5.
    """
    from latex2sympy2_extended.math_normalization import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse

    spelling = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all")
    latex = LatexExtractionConfig(False, 0, spelling)
    return parse(f"\\boxed{{{text}}}", [latex], "no_fallback", parsing_timeout=None)  # type: ignore[arg-type]


def _equal_values(a: Any, b: Any, gold: Number | None, given: Number | None, tolerance: float | None) -> bool:
    """Two numbers as sympy has them, and as they are written where they are written out."""
    from sympy import Rational

    if tolerance is not None and abs(a - b) <= tolerance:
        return True
    for written, other in ((gold, b), (given, a)):
        if written is not None and written.digits is not None and other.is_real:
            return rounds_to(_fraction(other), written) or bool(numeric_equal(Rational(written.value), other))
    return bool(numeric_equal(a, b))


def _value(parsed: Any) -> Any:
    """A sympy number, real or complex; None for anything with a symbol and for what is no expression."""
    from sympy import Expr

    if not isinstance(parsed, Expr) or parsed.free_symbols:
        return None
    value = parsed.doit()
    return value if value.is_number and value.is_finite else None


def _fraction(value: Any) -> Fraction:
    return Fraction(str(value.evalf(_TERMS)))


def numeric_equal(a: Any, b: Any, float_rounding: int = DIGITS, numeric_precision: int = EXACT) -> bool:
    """math-verify's `sympy_numeric_eq`, relatively: to `EXACT` digits, to half of the sixth where decimals take part.

    Matrices element by element. What holds a symbol, and numbers that cancel to nothing, are left to algebra (False).
    """
    from sympy import Float, MatrixBase, MatrixExpr

    if isinstance(a, MatrixBase | MatrixExpr) or isinstance(b, MatrixBase | MatrixExpr):
        a, b = a.doit(), b.doit()
        if not (isinstance(a, MatrixBase) and isinstance(b, MatrixBase) and a.shape == b.shape):
            return False
        return all(numeric_equal(x, y) or (x - y).equals(0) for x, y in zip(a.flat(), b.flat()))
    if a.free_symbols or b.free_symbols:
        return False
    a, b = a.doit(), b.doit()
    if a == b:
        return True
    x, y = a.evalf(_TERMS), b.evalf(_TERMS)
    size = max(abs(x), abs(y))
    if not size.is_comparable or not size.is_finite or size == 0:
        return False
    digits = DIGITS if a.atoms(Float) or b.atoms(Float) else EXACT
    return bool(abs(x - y) <= size * Fraction(1, 2 * 10**digits))

"""Reading and comparing answers without algebra; the corpora themselves."""

import time
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.envs.answers.corpus import Attack, Pair, attacks, pairs, table
from agentrl.envs.answers.equal import equal, read
from agentrl.envs.answers.numbers import Number, equal_numbers, half_unit, read_number
from agentrl.envs.answers.tidy import tidy
from agentrl.envs.answers.units import split_unit


@pytest.mark.parametrize(
    ("written", "tidied"),
    [
        (r" \left( 1 , 2 \right) . ", "(1,2)"),
        (r"3\,x", "3x"),
        (r"2\!3", "23"),
        ("2 3", "2 3"),
        (r"1\;2", "1 2"),
        ("1 234", "1234"),
        ("1,234, 5", "1234,5"),
        ("12,345,6", "12,345,6"),
        ("(1,234)", "(1,234)"),
        (r"\frac12", r"\frac{1}{2}"),
        (r"\frac{1}{2^10}", r"\frac{1}{2^{10}}"),
        ("½", r"\frac{1}{2}"),
        ("1½", r"\frac{3}{2}"),
        (r"2\frac{7}{3}", r"2\frac{7}{3}"),  # improper: no mixed number
        ("4.5E-3", r"4.5\times10^{-3}"),
        (r"\text{ or more}", "or more"),
        (r"1 \\ 2", r"1\\2"),  # a line break is no spacing command
    ],
)
def test_one_way_of_writing(written, tidied):
    assert tidy(written) == tidied


@pytest.mark.parametrize(
    ("text", "value", "digits"),
    [
        ("42", 42, None),
        ("-.50", Fraction(-1, 2), 2),
        (r"4.5\times10^{33}", 45 * Fraction(10) ** 32, 2),
        (r"10^{-7}", Fraction(1, 10**7), None),
        (r"-\frac{3}{6}", Fraction(-1, 2), None),
        ("3/4", Fraction(3, 4), None),
        ("0.00120", Fraction(12, 10_000), 3),
    ],
)
def test_numbers_are_read_exactly(text, value, digits):
    assert read_number(text) == Number(Fraction(value), digits)


@pytest.mark.parametrize("text", ["", "-", "--5", "1/0", "x", "2 3", "1,2", r"10^{99999}", "1e5", "5m", "1.2.3"])
def test_what_is_no_number(text):
    assert read_number(text) is None


@given(st.fractions(min_value=-(10**6), max_value=10**6), st.integers(-4000, 4000))
def test_a_number_and_its_scaled_neighbour(value, power):
    """Equality does not depend on size: x is x, and x is never 2x, at any power of ten."""
    scale = Fraction(10) ** power
    assert equal_numbers(Number(value * scale), Number(value * scale))
    assert equal_numbers(Number(value * scale), Number(2 * value * scale)) == (value == 0)


@given(st.fractions(min_value=Fraction(1, 10**9), max_value=10**9), st.integers(6, 12))
def test_a_decimal_of_six_digits_is_what_rounds_to_it(value, digits):
    text = f"{float(value):.{digits - 1}e}"
    mantissa, exponent = text.split("e")
    decimal = read_number(rf"{mantissa}\times10^{{{int(exponent)}}}")
    close = abs(decimal.value - Fraction(float(value))) <= half_unit(decimal)
    assert close and equal_numbers(decimal, Number(Fraction(float(value))))
    assert not equal_numbers(decimal, Number(decimal.value + 3 * half_unit(decimal)))


def test_a_stated_tolerance_is_absolute():
    a, b = Number(Fraction(7, 2)), Number(Fraction(18, 5))
    assert equal_numbers(a, b, 0.11) and not equal_numbers(a, b, 0.05) and not equal_numbers(a, b)


@pytest.mark.parametrize(
    ("text", "rest", "unit"),
    [
        (r"5\text{ cm}", "5", (("cm", 1),)),
        ("5 m/s", "5", (("m", 1), ("s", -1))),
        (r"5 \text{m s^{-2}}", "5", (("m", 1), ("s", -2))),
        (r"5\text{ square meters}", "5", (("m", 2),)),
        (r"12\text{ square units}", "12", ()),
        (r"x^2", "x^2", None),
        ("5m", "5m", None),
        (r"5\text{ or more}", r"5\text{ or more}", None),
    ],
)
def test_units(text, rest, unit):
    assert split_unit(text) == (rest, unit)


@given(st.text(alphabet="0123456789.,+-/*^_{}()[]\\ abcmsxeE%°½√×=<>!", max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_text_is_read_and_equal_to_itself(text):
    assert equal(text, text)[0] is True
    assert read(text) == read(text + " ") or text.endswith("\\")
    equal("42", text)
    equal(text, r"\frac{1}{2}")


PIECES = ["per", "\\mu", "m", "1,", "1 ", "{", "(", "^", "\\text{a", "\\frac{", "9^", "!", "or ", "."]


@pytest.mark.parametrize("piece", PIECES)
def test_reading_does_not_take_long_whatever_is_repeated(piece):
    began = time.process_time()
    for end in ("", "!", "}", "5"):
        equal("42", (piece * 2000)[:1900] + end)
        equal("42", "5 " + (piece * 2000)[:1900] + end)
    assert time.process_time() - began < 5


def test_the_corpora_hold_each_kind_once_and_both_verdicts():
    rows = pairs()
    assert len(rows) >= 300 and len(set(rows)) == len(rows)
    assert Counter(p.equal for p in rows).total() == len(rows) and {p.equal for p in rows} == {True, False}
    assert all({True, False} == {p.equal for p in rows if p.kind == k} for k in {p.kind for p in rows})
    assert len(attacks()) >= 150 and len(set(attacks())) == len(attacks())


def test_a_table_by_kind():
    answers = [
        (Pair("a", "1", "1", True), True),
        (Pair("a", "1", "01", True), False),
        (Pair("a", "1", "2", False), True),
    ]
    rows = table(answers, [(Attack("empty", "1", ""), False), (Attack("empty", "1", " "), True)])
    assert [tuple(r) for r in rows] == [("a", 2, 1, 1, 1), ("attack: empty", 0, 0, 2, 1)]

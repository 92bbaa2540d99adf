"""Exact match and F1 (Search-R1)."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.envs.scoring import exact_match, f1, normalize_answer


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Port\tEllis.", "port ellis"),
        ("AN apple, a day", "apple day"),
        ("theatre", "theatre"),
        ("Anna and the band", "anna and band"),
        ("U.S.A.", "usa"),
        ("1,931", "1931"),
        ("É", "é"),
        ("the", ""),
    ],
)
def test_normalised(text, normal):
    assert normalize_answer(text) == normal


@given(st.text(max_size=60))
def test_normalising_leaves_no_punctuation_articles_or_double_spaces(text):
    normal = normalize_answer(text)
    assert not set(normal) & set(string.punctuation)
    assert not {"a", "an", "the"} & set(normal.split())
    assert normal == " ".join(normal.split())


@given(st.text(max_size=30), st.text(max_size=30))
def test_any_text_can_be_compared(answer, gold):
    assert exact_match(answer, [gold]) in (0.0, 1.0)
    assert exact_match(gold, ["something else entirely", gold]) == 1.0


@pytest.mark.parametrize(
    ("answer", "golden", "score"),
    [
        ("port ellis", ["Varn", "The Port Ellis"], 1.0),
        ("port", ["Port Ellis"], 0.0),
        ("Port Ellis or Varn", ["Port Ellis"], 0.0),
        ("a", ["the"], 0.0),
        ("", ["the"], 0.0),
        ("A", ["a"], 1.0),
        ("?", ["!"], 0.0),
    ],
)
def test_exact_match(answer, golden, score):
    assert exact_match(answer, golden) == score


def test_f1_is_of_the_best_golden_answer():
    assert f1("port ellis", ["Ellis of Varn", "Port"]) == pytest.approx(2 / 3)
    assert f1("port ellis", ["the Port Ellis"]) == 1.0
    assert f1("", ["x"]) == 0.0

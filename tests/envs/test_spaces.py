"""The space of all texts."""

import pytest

from agentrl.envs.spaces import AnyText


@pytest.mark.parametrize("text", ["", "naïve ∑ 東京", "\x00\ud800\u202e", "a" * 1000])
def test_every_text_is_in_it(text):
    assert text in AnyText() and text in AnyText(max_length=1000)


@pytest.mark.parametrize("other", [b"bytes", None, 3, ["a"], "a" * 1001])
def test_nothing_else_is(other):
    assert other not in AnyText(max_length=1000)


def test_samples_follow_from_the_seed():
    one, two, three = AnyText(seed=1), AnyText(seed=1), AnyText(seed=2)
    drawn = [one.sample() for _ in range(20)]
    assert drawn == [two.sample() for _ in range(20)] != [three.sample() for _ in range(20)]
    assert all(text in one for text in drawn) and len(set(drawn)) > 10


def test_spaces_are_compared_by_their_length():
    assert AnyText() == AnyText() != AnyText(5) and hash(AnyText(5)) == hash(AnyText(5))
    assert AnyText() != "AnyText"
    assert not AnyText().is_np_flattenable

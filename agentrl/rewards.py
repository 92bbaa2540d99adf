"""When rewards are equal and when one makes a response correct: the one tolerance for what rounding has changed.

A best reward is often a sum (ten times 0.1 is 0.9999999999999999), and the batch holds rewards as float32. Two rewards
are equal where they differ by a millionth of the larger one, or by 1e-9 (sums that cancel). No torch.
"""

from __future__ import annotations

from collections.abc import Iterable

RELATIVE = 1e-6  # about eight units in the last place of a float32
ABSOLUTE = 1e-9


def slack(*rewards: float) -> float:
    """By how much rewards of this size may differ and still be equal."""
    return max(ABSOLUTE, RELATIVE * max(abs(r) for r in rewards))


def all_equal(rewards: Iterable[float]) -> bool:
    """Whether a group's rewards hold no contrast."""
    found = list(rewards)
    low, high = min(found), max(found)
    return high - low <= slack(low, high)


def reaches(reward: float, threshold: float) -> bool:
    """Whether a reward makes a response correct: `algorithm.correct_threshold` or more."""
    return reward >= threshold - slack(threshold)

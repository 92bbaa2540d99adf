"""Scores of a short answer against golden answers (arXiv 2503.09516), which environments take by name as `reward`.

A reward is a function of (answer, golden answers) to a finite number. It never sees what a tool has returned.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

from agentrl import plugins

Reward = Callable[[str, Sequence[str]], float]

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation and the articles a/an/the, white space collapsed."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def answer_key(text: str) -> str:
    """What exact match compares: the normalised answer; the bare text where normalising leaves nothing of it.

    Without the exception every answer of articles and punctuation ("the", "A", "?") would equal every other.
    """
    return normalize_answer(text) or text.strip().lower()


def exact_match(answer: str, golden_answers: Sequence[str]) -> float:
    """1.0 where the answer equals any golden answer, both normalised (arXiv 2503.09516)."""
    given = answer_key(answer)
    return float(any(given == answer_key(g) for g in golden_answers))


def f1(answer: str, golden_answers: Sequence[str]) -> float:
    """The best token F1 over the golden answers."""
    given = Counter(answer_key(answer).split())
    best = 0.0
    for golden in golden_answers:
        wanted = Counter(answer_key(golden).split())
        common = sum((given & wanted).values())
        if common:
            best = max(best, 2 * common / (given.total() + wanted.total()))
    return best


def equal(answer: str, golden_answers: Sequence[str]) -> float:
    """1.0 where the answer is one of the golden answers, character by character: -5 is not 5."""
    return float(answer in golden_answers)


def reward_named(reward: str | Reward) -> Reward:
    """The reward of a name ("exact_match", "f1", "equal", a plug-in, "module:attribute"); a function is taken as it is.

    Raises PluginError for a name that does not exist. The result raises ValueError where it gives no finite number.
    """
    score = plugins.find("reward", reward) if isinstance(reward, str) else reward
    if not callable(score):
        raise ValueError(f"reward is {reward!r}; give a name or a function of (answer, golden answers)")

    def checked(answer: str, golden_answers: Sequence[str]) -> float:
        value = float(score(answer, golden_answers))
        if not math.isfinite(value):
            raise ValueError(f"reward {reward!r} gives {value}; it must give a finite number")
        return value

    return checked

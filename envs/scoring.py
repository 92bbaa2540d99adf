"""Scores of a short answer against golden answers (arXiv 2503.09516)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

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
    given = Counter(normalize_answer(answer).split())
    best = 0.0
    for golden in golden_answers:
        wanted = Counter(normalize_answer(golden).split())
        common = sum((given & wanted).values())
        if common:
            best = max(best, 2 * common / (given.total() + wanted.total()))
    return best

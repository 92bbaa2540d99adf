"""Scores of a short answer against golden answers (arXiv 2503.09516), which environments take by name as `reward`.

A reward is a function of (answer, golden answers) to a finite number. It never sees what a tool has returned, but for
one with a parameter `evidence`: in search environments it gets what the searches found (`agentrl.envs.evidence`).
"""

from __future__ import annotations

import inspect
import math
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agentrl import plugins

Reward = Callable[..., float]  # of (answer, golden answers), and of evidence where it has such a parameter

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


def substring_match(answer: str, golden_answers: Sequence[str]) -> float:
    """1.0 where a golden answer stands somewhere in the answer, both normalised. To report, not to train on.

    A long enough answer earns it by listing what could be asked for, which is why no reward has this name.
    """
    given = answer_key(answer)
    return float(any(answer_key(golden) in given for golden in golden_answers))


def equal(answer: str, golden_answers: Sequence[str]) -> float:
    """1.0 where the answer is one of the golden answers, character by character: -5 is not 5."""
    return float(answer in golden_answers)


def reads_evidence(reward: str | Reward | Mapping[str, float]) -> bool:
    """Whether a reward, or one of several, has a parameter `evidence`. PluginError for a name that does not exist."""
    if isinstance(reward, Mapping):
        return any(map(reads_evidence, reward))
    score = plugins.find("reward", reward) if isinstance(reward, str) else reward
    return callable(score) and "evidence" in inspect.signature(score).parameters


def reward_named(reward: str | Reward, *, searches: bool = False) -> Reward:
    """The reward of a name ("exact_match", "f1", "equal", a plug-in, "module:attribute"); a function is taken as it is.

    `searches`: the environment searches, and calls it with (answer, golden answers, evidence) where it reads evidence.
    Raises PluginError for a name that does not exist, ValueError for one that reads evidence where nothing searches.
    The result raises ValueError where it gives no finite number.
    """
    score = plugins.find("reward", reward) if isinstance(reward, str) else reward
    if not callable(score):
        raise ValueError(f"reward is {reward!r}; give a name or a function of (answer, golden answers)")
    reads = reads_evidence(score)
    if reads and not searches:
        raise ValueError(
            f"reward {reward!r} reads what searches found, and this environment does not search; it is for "
            "agentrl/Search-v0 and agentrl/SearchTools-v0"
        )

    def checked(answer: str, golden_answers: Sequence[str], evidence: Any = None) -> float:
        value = float(score(answer, golden_answers, evidence=evidence) if reads else score(answer, golden_answers))
        if not math.isfinite(value):
            raise ValueError(f"reward {reward!r} gives {value}; it must give a finite number")
        return value

    return checked


Weighted = Callable[..., tuple[float, dict[str, float]]]  # of (answer, golden answers, evidence or None)


def weighted(reward: str | Reward | Mapping[str, float], *, searches: bool = False) -> Weighted:
    """One reward, or several by name with their weights, as (sum, each by name). ValueError for weights of nothing.

    `searches` is as in `reward_named`.
    """
    if not isinstance(reward, Mapping):
        name = reward if isinstance(reward, str) else getattr(reward, "__name__", "reward")
        return _sum([(name, 1.0, reward_named(reward, searches=searches))])
    bad = [
        n for n, w in reward.items() if isinstance(w, bool) or not isinstance(w, int | float) or not math.isfinite(w)
    ]
    if bad or not any(reward.values()):
        about = f"the weight of {bad[0]} is {reward[bad[0]]!r}" if bad else "the weights sum to nothing"
        raise ValueError(f"reward: {about}; give each reward a number: {{exact_match: 1.0, f1: 0.5}}")
    return _sum([(name, float(w), reward_named(name, searches=searches)) for name, w in reward.items()])


def _sum(rewards: list[tuple[str, float, Reward]]) -> Weighted:
    def scored(answer: str, golden_answers: Sequence[str], evidence: Any = None) -> tuple[float, dict[str, float]]:
        each = {name: score(answer, golden_answers, evidence) for name, _, score in rewards}
        return math.fsum(weight * each[name] for name, weight, _ in rewards), each

    return scored

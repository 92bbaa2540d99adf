"""Scores of a short answer against golden answers (arXiv 2503.09516), which environments take by name as `reward`.

A reward is a function of (answer, golden answers) to a finite number. It never sees what a tool has returned, but for
one with a parameter `evidence`: in search environments it gets what the searches found (`agentrl.envs.evidence`).
"""

from __future__ import annotations

import asyncio
import inspect
import math
import re
import string
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
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


Parts = tuple[float, dict[str, float]]  # the weighted sum, and each reward by name
Rewards = str | Reward | Mapping[str, Any]
GIVEN = ("evidence", "question")  # what a reward is given besides where it has a parameter of that name


class Weighted:
    """Several rewards with their weights: call it for (sum, each by name), or await `later` where one `waits`.

    A reward with a parameter `question` or `evidence` is given that, too. One that waits (a judge) has a coroutine
    `later` with the arguments of the reward itself.
    """

    def __init__(self, rewards: Sequence[tuple[str, float, Any]], *, named: bool) -> None:
        self._rewards = [(name, w, score, [g for g in GIVEN if g in _parameters(score)]) for name, w, score in rewards]
        self.named = named  # several, or with a weight: each is reported
        self.waits = any(hasattr(score, "later") for _, _, score in rewards)

    def __call__(self, answer: str, golden_answers: Sequence[str], evidence: Any = None, question: str = "") -> Parts:
        """(sum, each by name). ValueError where one is not a finite number; what a reward raises is raised."""
        given = {"evidence": evidence, "question": question}
        return self._sum(
            [score(answer, golden_answers, **{g: given[g] for g in asks}) for _, _, score, asks in self._rewards]
        )

    async def later(
        self, answer: str, golden_answers: Sequence[str], evidence: Any = None, question: str = ""
    ) -> Parts:
        """The same for an event loop: rewards that wait do so at the same time."""
        given = {"evidence": evidence, "question": question}

        async def one(score: Any, asks: Sequence[str]) -> float:
            run, own = getattr(score, "later", None), {g: given[g] for g in asks}
            if run is None:
                return float(score(answer, golden_answers, **own))
            return float(await run(answer, golden_answers, **own))

        return self._sum(await asyncio.gather(*[one(score, asks) for _, _, score, asks in self._rewards]))

    def _sum(self, values: Sequence[Any]) -> Parts:
        each = {name: float(value) for (name, *_), value in zip(self._rewards, values)}
        for name, value in each.items():
            if not math.isfinite(value):
                raise ValueError(f"reward {name!r} gives {value}; it must give a finite number")
        return math.fsum(w * each[name] for name, w, _, _ in self._rewards), each


def weighted(reward: Rewards, *, searches: bool = False) -> Weighted:
    """One reward, or several by name: `{exact_match: 1.0, llm_judge: {weight: 0.5, url: ...}}`.

    What stands beside a weight are the parameters of a reward that is a class. `searches`: the environment searches, so
    that rewards may read evidence. ValueError for weights of nothing, for parameters that a reward does not take, and
    for one that reads evidence where nothing searches; PluginError for a name that does not exist.
    """
    if not isinstance(reward, Mapping):
        name = reward if isinstance(reward, str) else getattr(reward, "__name__", "reward")
        return Weighted([(name, 1.0, _made(reward, {}, searches))], named=False)
    given = {name: dict(value) if isinstance(value, Mapping) else {"weight": value} for name, value in reward.items()}
    weights = {name: parameters.pop("weight", 1.0) for name, parameters in given.items()}
    bad = [
        n for n, w in weights.items() if isinstance(w, bool) or not isinstance(w, int | float) or not math.isfinite(w)
    ]
    if bad or not any(weights.values()):
        about = f"the weight of {bad[0]} is {weights[bad[0]]!r}" if bad else "the weights sum to nothing"
        raise ValueError(f"reward: {about}; give each reward a number: {{exact_match: 1.0, f1: 0.5}}")
    rows = [(name, float(w), _made(name, given[name], searches)) for name, w in weights.items()]
    return Weighted(rows, named=True)


def reads_evidence(reward: Rewards) -> bool:
    """Whether a reward, or one of several, has a parameter `evidence`. PluginError for a name that does not exist."""
    if isinstance(reward, Mapping):
        return any(map(reads_evidence, reward))
    score: Any = plugins.find("reward", reward) if isinstance(reward, str) else reward
    return "evidence" in _parameters(score.__call__ if isinstance(score, type) else score)


def _made(reward: str | Reward, parameters: dict[str, Any], searches: bool) -> Any:
    """The reward of a name, or a function as it is; a class is made with its parameters."""
    score = plugins.find("reward", reward) if isinstance(reward, str) else reward
    if not callable(score):
        raise ValueError(f"reward is {reward!r}; give a name or a function of (answer, golden answers)")
    if reads_evidence(reward) and not searches:
        raise ValueError(
            f"reward {reward!r} reads what searches found, and this environment does not search; it is for "
            "agentrl/Search-v0 and agentrl/SearchTools-v0"
        )
    if not isinstance(score, type):
        if parameters:
            raise ValueError(f"reward {reward!r} is a function and takes a weight alone, not {', '.join(parameters)}")
        return score
    takes = inspect.signature(score).parameters
    for name in parameters:
        if name not in takes:
            raise ValueError(f"reward {reward!r} has no parameter {name!r}{plugins.unknown(name, [*takes, 'weight'])}")
    missing = [n for n, p in takes.items() if p.default is p.empty and n not in parameters]
    if missing:
        example = ", ".join(f"{n}: ..." for n in missing)
        raise ValueError(f"reward {reward!r} needs {' and '.join(missing)}: {{{reward}: {{weight: 1.0, {example}}}}}")
    return score(**parameters)


def _parameters(score: Any) -> Collection[str]:
    try:
        return inspect.signature(score).parameters
    except (TypeError, ValueError):  # a builtin
        return ()

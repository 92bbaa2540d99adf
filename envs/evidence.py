"""What the searches of an episode found, held against the passages that its task names as gold.

A task names gold passages by id (`gold_passages: [p7, p9]`), by title (`gold_titles: [Ada Rowan]`), or as HotpotQA and
2WikiMultihopQA do (`supporting_facts`, as columns or as pairs of title and sentence). Ids and titles are compared;
what a passage says is read by `supports` alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentrl.envs.errors import TaskError
from agentrl.envs.scoring import answer_key, exact_match, normalize_answer
from agentrl.retriever.base import Hit
from agentrl.retriever.corpus import Passage


@dataclass(frozen=True)
class Search:
    """One search: its query, the ids found, and the share of the gold passages among them; None where none is named."""

    query: str
    found: tuple[str, ...]
    recall: float | None
    repeated: bool  # asked before in this episode


@dataclass(frozen=True)
class Evidence:
    """All searches of an episode until its answer, for rewards that have a parameter `evidence`.

    `recall` is the share of the gold passages that were found or opened; None where the task names none.
    """

    searches: tuple[Search, ...] = ()
    recall: float | None = None
    texts: tuple[str, ...] = ()  # title and text of every passage found, and of every document opened

    def supports(self, answer: str) -> bool:
        """Whether the answer stands in a passage that was found."""
        return stands_in(answer, self.texts)


class Searches:
    """The searches of one episode as they happen."""

    def __init__(self, task: Mapping[str, Any]) -> None:
        """Raises TaskError where the task's gold passages are no lists of text."""
        self.gold = gold_of(task)
        self._got: set[str] = set()
        self._asked: set[str] = set()
        self._searches: list[Search] = []
        self._texts: dict[str, None] = {}

    def add(self, query: str, hits: Sequence[Hit]) -> dict[str, float]:
        """Note a search; what its turn's info says of it: nothing where no gold passage is named."""
        passages = [hit.passage for hit in hits]
        here = self._shown(passages)
        recall = len(here) / len(self.gold) if self.gold else None
        key = query_key(query)
        self._searches.append(Search(query, tuple(p.id for p in passages), recall, key in self._asked))
        self._asked.add(key)
        return {} if recall is None else {"gold_recall": recall, **self.at_the_end()}

    def opened(self, passage: Passage) -> dict[str, float]:
        """Note a document that was opened; what its turn's info says of it."""
        self._shown([passage])
        return self.at_the_end()

    def _shown(self, passages: Sequence[Passage]) -> set[str]:
        """The gold passages among these."""
        self._texts |= {f"{p.title}\n{p.text}": None for p in passages}
        here = {key for p in passages for key in (f"id:{p.id}", f"title:{title_key(p.title)}") if key in self.gold}
        self._got |= here
        return here

    def at_the_end(self) -> dict[str, float]:
        """What the info of an answer says: the share of the gold passages found; nothing where none is named."""
        return {"gold_found": len(self._got) / len(self.gold)} if self.gold else {}

    @property
    def evidence(self) -> Evidence:
        """What the answer may rest on."""
        recall = len(self._got) / len(self.gold) if self.gold else None
        return Evidence(tuple(self._searches), recall, tuple(self._texts))


def gold_of(task: Mapping[str, Any]) -> frozenset[str]:
    """The gold passages of a task, as `id:…` and `title:…`; empty where it names none."""
    ids = _texts(task.get("gold_passages"), "gold_passages")
    titles = _texts(task.get("gold_titles"), "gold_titles")
    titles += _titles_of_facts(task.get("supporting_facts"))
    return frozenset([f"id:{i}" for i in ids] + [f"title:{title_key(t)}" for t in titles])


def _titles_of_facts(facts: Any) -> list[str]:
    """The titles of `{"title": [...], "sent_id": [...]}` or `[[title, sentence], ...]`; [] for what is neither.

    The column is others' own: what else it may hold (sentences, spans) is none of our business.
    """
    if isinstance(facts, Mapping):
        titles = facts.get("title")
    elif isinstance(facts, list | tuple):
        titles = [f[0] if isinstance(f, list | tuple) and len(f) == 2 else None for f in facts]
    else:
        return []
    return list(titles) if isinstance(titles, list | tuple) and all(isinstance(t, str) for t in titles) else []


def names_gold(task: Mapping[str, Any]) -> bool:
    """Whether a task names gold passages at all, right or wrong."""
    return "gold_passages" in task or "gold_titles" in task or "supporting_facts" in task


def _texts(value: Any, name: str) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list | tuple) or not all(isinstance(v, str | int) for v in value):
        raise TaskError(f"options[{name!r}] is {value!r:.80}; give a list of passages' ids or titles, or leave it out")
    return [str(v) for v in value]


def title_key(title: str) -> str:
    """What titles are compared by: corpora quote them, and differ in case and blanks."""
    return " ".join(title.strip().strip('"').lower().split())


def query_key(query: str) -> str:
    """What makes two queries the same: their words, without case and punctuation."""
    return normalize_answer(query) or query.strip().lower()


def stands_in(answer: str, texts: Sequence[str]) -> bool:
    """Whether an answer's words stand in one of the texts, one after the other, compared as exact match compares."""
    wanted = answer_key(answer)
    return bool(wanted) and any(f" {wanted} " in f" {normalize_answer(text)} " for text in texts)


# ------------------------------------------------------------------------------------------------------------ rewards


def gold_recall(answer: str, golden_answers: Sequence[str], *, evidence: Evidence) -> float:
    """The share of the gold passages that the searches found; 0 where the task names none."""
    return evidence.recall or 0.0


def supported_match(answer: str, golden_answers: Sequence[str], *, evidence: Evidence) -> float:
    """1.0 for an exact match that stands in a passage that was found: a right answer from memory earns nothing."""
    return float(exact_match(answer, golden_answers) == 1.0 and evidence.supports(answer))


def repeated_queries(answer: str, golden_answers: Sequence[str], *, evidence: Evidence) -> float:
    """The share of searches that had been made before in the episode; for a weight below 0."""
    made = evidence.searches
    return sum(s.repeated for s in made) / len(made) if made else 0.0

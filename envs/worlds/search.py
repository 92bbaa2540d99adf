"""A made-up encyclopedia: people, companies, cities and regions, one fact a passage, questions of one to four hops.

Training and held-out questions live in two worlds that share no entity: every chain of a held-out question, from the
name in its text to its answer, runs over names that stand in no training question, no training answer and no
demonstration (years, as answers, are shared). Both worlds' passages are in one corpus, so a search may show either.
Look-up practice uses all names as throw-away symbols in random facts of the moment, which say nothing that is true.

The words of the questions ("birthplace") are not those of the passages ("born"), so that a naive query often misses.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from agentrl.envs.worlds.forms import Form, Tags

Segment = tuple[str, bool]  # text, and whether the model wrote it


class Relation(NamedTuple):
    """How a relation is asked for and how passages state it."""

    asked: str
    stated: str
    head: str
    tail: str


Chain = tuple[Relation, ...]
RELATIONS = (
    Relation("birthplace", "born", "person", "city"),
    Relation("school", "studied", "person", "city"),
    Relation("employer", "works", "person", "company"),
    Relation("spouse", "married", "person", "person"),
    Relation("founder", "founded", "company", "person"),
    Relation("headquarters", "based", "company", "city"),
    Relation("inauguration", "opened", "company", "year"),
    Relation("region", "lies", "city", "region"),
    Relation("mayor", "led", "city", "person"),
)
THINK = ("need {asked} of {name}", "find {asked} now", "let me search", "next {asked}")
YEARS = tuple(str(y) for y in range(1950, 2000))
TEST_SHARE = 1 / 3
MAX_PASSAGES = 100_000
MAX_QUESTIONS = 50_000  # of one split: four hops in a large world make millions


@dataclass(frozen=True)
class Errors:
    """What the demonstrator does, as probabilities; most of it is wrong or lazy in some way."""

    think: float = 0.5
    no_search: float = 0.05
    good_query: float = 0.45
    naive_query: float = 0.40
    wrong_name: float = 0.08
    retry: float = 0.35
    quote: float = 0.92
    wrong_copy: float = 0.08
    stop_early: float = 0.55
    malformed: float = 0.05
    max_searches: int = 4


class Fact(NamedTuple):
    """One passage."""

    head: str
    relation: Relation
    tail: str

    @property
    def text(self) -> str:
        """As the passage says it."""
        return f"{self.head} {self.relation.stated} {self.tail} ."


class SearchWorld:
    """See the module docstring."""

    env_id = "agentrl/Search-v0"
    form: Form = Tags()

    def __init__(
        self,
        seed: int = 0,
        *,
        people: int = 120,
        companies: int = 50,
        cities: int = 32,
        regions: int = 12,
        hops: Sequence[int] = (1, 2),
        name_tokens: int = 1,
        topk: int = 3,
        max_turns: int = 4,
        gold: bool = False,
        **_: Any,
    ) -> None:
        sizes = {"person": people, "company": companies, "city": cities, "region": regions}
        facts = sum(sizes[r.head] for r in RELATIONS)
        if facts > MAX_PASSAGES:
            raise ValueError(f"these sizes make {facts} passages; at most {MAX_PASSAGES} are supported: lower people")
        small = {k: n for k, n in sizes.items() if n < 6}
        if small:
            raise ValueError(f"{small}: each kind needs at least 6, so that both worlds have choices")
        if not hops or not all(1 <= h <= 4 for h in hops):
            raise ValueError(f"hops is {list(hops)}; each must be 1 to 4")
        if not 1 <= name_tokens <= 4:
            raise ValueError(f"name_tokens is {name_tokens}; it must be 1 to 4")
        rng = random.Random(seed)
        self.hops = tuple(hops)
        names, self.name_words = _names(rng, sum(sizes.values()), name_tokens, self.form.words)
        self.all_names = names
        pool = iter(names)
        self.entities: dict[str, dict[str, list[str]]] = {"train": {}, "test": {}}
        for kind, n in sizes.items():
            mine = [next(pool) for _ in range(n)]
            held = max(2, round(n * TEST_SHARE))
            self.entities["test"][kind], self.entities["train"][kind] = mine[:held], mine[held:]
        for split in self.entities.values():
            split["year"] = list(YEARS)
        self.facts: dict[tuple[str, Relation], Fact] = {}
        for split in self.entities.values():
            for relation in RELATIONS:
                for head in split[relation.head]:
                    tails = split[relation.tail]
                    tail = rng.choice(tails)
                    while tail == head:
                        tail = rng.choice(tails)
                    self.facts[head, relation] = Fact(head, relation, tail)
        order = list(self.facts.values())
        rng.shuffle(order)
        self._by_id = {f"p{i}": fact for i, fact in enumerate(order)}
        self._id_of = {fact: i for i, fact in self._by_id.items()} if gold else {}
        self.passages = [{"id": i, "title": f.head, "text": f.text} for i, f in self._by_id.items()]
        self._seed = seed
        self._questions: dict[str, list[dict[str, Any]]] = {}
        self._index: Any = None
        vocabulary = [*self.form.specials, *self.form.marks, *self.form.words]
        vocabulary += [w for r in RELATIONS for w in (r.asked, r.stated)]
        vocabulary += [*self.name_words, *YEARS]
        vocabulary += [f"<x{i}>" for i in range(-len(vocabulary) % 16)]
        self.vocabulary, self.specials = {w: i for i, w in enumerate(vocabulary)}, self.form.specials
        assert len(self.vocabulary) == len(vocabulary)
        self._topk = topk
        self.env_kwargs: dict[str, Any] = {"topk": topk, "max_turns": max_turns, **self.words_of_environment()}

    def words_of_environment(self) -> dict[str, str]:
        """The environment's texts, in words of the vocabulary."""
        return {
            "prompt_template": "question: {question}",
            "passage_template": "doc {text} ",
            "information_open": "<information> ",
            "information_close": "</information>",
            "nothing_found": "nothing ",
            "invalid_message": "try again .",
        }

    # ------------------------------------------------------------------------------------------------------ questions

    def questions(self, split: str) -> list[dict[str, Any]]:
        """Rows of "train" or "test", shuffled: id, question, golden_answers, hops, and gold_passages if `gold`."""
        return [{k: v for k, v in row.items() if k[0] != "_"} for row in self._rows(split)]

    def _rows(self, split: str) -> list[dict[str, Any]]:
        if split not in self._questions:
            rows = [self._row(head, chain) for head, chain in self._chains(split)]
            random.Random(f"{self._seed}:{split}").shuffle(rows)
            self._questions[split] = [{"id": f"{split}-{i}", **row} for i, row in enumerate(rows)]
        return self._questions[split]

    def _row(self, head: str, chain: Chain) -> dict[str, Any]:
        answer, facts = head, []
        for r in chain:
            facts.append(self.facts[answer, r])
            answer = facts[-1].tail
        text = " ".join(f"{r.asked} of" for r in reversed(chain)) + f" {head} ?"
        gold = {"gold_passages": [self._id_of[f] for f in facts]} if self._id_of else {}
        row = {"question": text, "golden_answers": [answer], "hops": len(chain), "_head": head, "_chain": chain}
        return row | gold

    def _chains(self, split: str) -> list[tuple[str, Chain]]:
        """(name, relations) of all questions, or of `MAX_QUESTIONS` of them chosen by the seed."""
        paths = [
            (head, chain)
            for kind in ("person", "company", "city")
            for head, chain in product(self.entities[split][kind], _paths(kind, max(self.hops)))
            if len(chain) in self.hops
        ]
        if len(paths) <= MAX_QUESTIONS:
            return paths
        return random.Random(f"{self._seed}:{split}:chosen").sample(paths, MAX_QUESTIONS)

    # ------------------------------------------------------------------------------------------------------- language

    def encode(self, text: str) -> list[int]:
        """Ids of the world's own text."""
        unknown = self.vocabulary["<unk>"]
        return [self.vocabulary.get(w, unknown) for w in text.split()]

    def tokenizer(self) -> Any:
        """A word-level Hugging Face tokenizer of the world's words."""
        from agentrl.envs.worlds.vocabulary import word_tokenizer

        return word_tokenizer(self.vocabulary, self.form.specials, self.form.marks, self.form.template)

    # --------------------------------------------------------------------------------------------------- warm start

    def demonstration(
        self, question: dict[str, Any], rng: random.Random, errors: Errors | None = None
    ) -> list[Segment]:
        """An imperfect episode of a training question, in the environment's own text.

        It searches the training world's passages alone, so that no held-out name is ever shown.
        """
        e = errors or Errors()
        split, number = question["id"].split("-")
        if split != "train":
            raise ValueError(f"{question['id']} is a held-out question; demonstrations are of training questions only")
        row = self._rows("train")[int(number)]
        out: list[Segment] = [(self.form.question(question["question"]), False)]
        said: list[str] = []  # of the turn that is being written

        def search(query: str) -> list[Fact]:
            said.append(self.form.search(query))
            out.append((" ".join(said), True))
            said.clear()
            found = self._search(query)
            shown = "".join(f"doc {f.text} " for f in found) or "nothing "
            out.append((self.form.found(shown), False))
            return found

        name, answer, searches = row["_head"], "", 0
        people = self.entities["train"]
        if rng.random() < e.no_search:
            answer = rng.choice(people[row["_chain"][-1].tail])
        else:
            for step, r in enumerate(row["_chain"]):
                good = self.facts[name, r]
                while True:
                    if searches == 0 and rng.random() < e.think:
                        said.append("<think> " + rng.choice(THINK).format(asked=r.asked, name=name) + " </think>")
                    found = search(self._query(rng, e, name, r))
                    searches += 1
                    if good in found or searches >= e.max_searches or rng.random() > e.retry:
                        break
                quote = good
                if good not in found or rng.random() < e.wrong_copy:
                    others = [f for f in found if f != good]
                    if others:
                        quote = rng.choice(others)
                    elif good not in found:
                        answer = rng.choice(people[r.tail])
                        break
                if rng.random() < e.quote:
                    said.append(f"<think> {quote.head} {quote.relation.stated} {quote.tail} </think>")
                answer = quote.tail
                if quote != good:
                    break
                name = answer
                more = step < len(row["_chain"]) - 1
                if more and (rng.random() < e.stop_early or searches >= e.max_searches):
                    break
        if rng.random() < e.malformed:
            said.append(rng.choice(self.form.spoilt(answer)))
        else:
            said.append(self.form.answer(answer))
        out.append((" ".join(said), True))
        return out

    def _query(self, rng: random.Random, e: Errors, name: str, r: Relation) -> str:
        u = rng.random()
        if u < e.good_query:
            return f"{name} {r.stated}"
        if u < e.good_query + e.naive_query:
            return f"{name} {r.asked}"
        if u < e.good_query + e.naive_query + e.wrong_name:
            return f"{rng.choice(self.entities['train'][r.head])} {r.stated}"
        return r.asked

    def _search(self, query: str) -> list[Fact]:
        if self._index is None:
            from agentrl.retriever.bm25 import Bm25Index
            from agentrl.retriever.corpus import Passage

            mine = {n for names in self.entities["train"].values() for n in names} - set(YEARS)
            rows = [p for p in self.passages if p["title"] in mine]
            self._index = Bm25Index.from_passages([Passage(p["id"], p["title"], p["text"]) for p in rows])
        return [self._by_id[h.passage.id] for h in self._index.search(query, self._topk)]

    def practice(self, rng: random.Random, facts: int = 5) -> list[Segment]:
        """Look-ups over facts made up on the spot of any names: search, quote, answer; or recite in another order."""
        heads: list[str] = []
        made: dict[tuple[str, Relation], str] = {}
        while len(made) < facts:
            r = rng.choice(RELATIONS)
            head = rng.choice(heads) if heads and rng.random() < 0.35 else rng.choice(self.all_names)
            if (head, r) not in made:
                heads.append(head)
                made[head, r] = rng.choice(YEARS) if r.tail == "year" else rng.choice(self.all_names)
        shown = "".join(f"doc {Fact(h, r, t).text} " for (h, r), t in made.items())
        out: list[Segment] = [(self.form.found(shown), False)]
        order = list(made.items())
        rng.shuffle(order)
        if rng.random() < 0.5:
            for (head, r), tail in order:
                out += [(f"<think> {head}", False), (f"{r.stated} {tail} </think>", True)]
            return out
        for (head, r), tail in order:
            out.append((self.form.question(f"{r.asked} of {head} ?", tools=False), False))
            out.append((self.form.search(f"{head} {r.stated}"), True))
            out.append((f"<think> {head} {r.stated} {tail} </think> {self.form.answer(tail)}", True))
        return out

    # ---------------------------------------------------------------------------------------------------------- files

    def save_corpus(self, path: str | Path) -> None:
        """The passages as a corpus file, JSONL of {"id", "title", "text"}."""
        _write_lines(path, self.passages)

    def save_questions(self, path: str | Path, split: str) -> None:
        """The questions as a dataset file, JSONL of {"id", "question", "golden_answers", "hops"}."""
        _write_lines(path, self.questions(split))


def _write_lines(path: str | Path, rows: Sequence[dict[str, Any]]) -> None:
    Path(path).write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")


def _paths(kind: str, longest: int) -> list[Chain]:
    """All chains of 1 to `longest` relations that begin at a `kind`, each before those that go on from it."""
    out: list[Chain] = []
    for r in RELATIONS:
        if r.head == kind:
            out.append((r,))
            out += [(r, *rest) for rest in (_paths(r.tail, longest - 1) if longest > 1 else ())]
    return out


def _names(rng: random.Random, n: int, tokens: int, taken: Sequence[str]) -> tuple[list[str], list[str]]:
    """`n` different names of `tokens` words, and the words they are made of."""
    reserved = {w for r in RELATIONS for w in (r.asked, r.stated)} | set(taken)
    consonants, vowels = "bdfgklmnprstvz", "aeiou"
    short = ["".join(p) for p in product(consonants, vowels, consonants, ["", *vowels])]
    words = [w for w in short if w not in reserved]
    wanted = n if tokens == 1 else min(len(words), max(24, round(2 * n ** (1 / tokens)) + 8))
    if wanted > len(words):
        words += ["".join(p) for p in product(consonants, vowels, consonants, vowels, consonants, vowels)]
    words = rng.sample(words, wanted)
    if tokens == 1:
        return words, words
    names: dict[str, None] = {}
    while len(names) < n:
        names.setdefault(" ".join(rng.choice(words) for _ in range(tokens)))
    return list(names), words

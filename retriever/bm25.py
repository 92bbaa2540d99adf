"""BM25 on tantivy (k1 = 1.2, b = 0.75, Lucene's idf), in memory or on disk.

Title and text are one field. Both sides go through one analyser: split at non-alphanumerics, drop tokens of 40 bytes
and more, lower case, fold accents, English stems (can be turned off). Languages written without spaces need another.

A query is data, never a query language: its distinct terms become a disjunction. Equal scores keep the corpus order.
With English stems, a query's function words are searched only where it has no other words: they hardly change the
ranking. Of the other words, those in a great many passages are looked up only in passages that have a rarer one, where
no other passage can be among the best (MaxScore: Turtle and Flood, 1995): the lists are the same, and the long
postings, which tantivy's bindings read whole, are most of the work.
On disk the index is a folder `tantivy/` beside the passages. A build commits every few hundred thousand passages, and
goes on from the last commit after it was killed.
"""

from __future__ import annotations

import math
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Self, cast

from agentrl.errors import missing_package
from agentrl.retriever.base import Build, Hit, Opening, Passages, Ranked, check_request, tidy
from agentrl.retriever.corpus import Passage
from agentrl.retriever.errors import IndexOpenError, RetrieverError
from agentrl.retriever.manifest import Manifest

try:
    import tantivy
except ModuleNotFoundError as error:
    raise missing_package("a BM25 index", error) or error from error

MAX_QUERY_TERMS = 128
"""Distinct terms of a query that are searched; a longer one is a run-away generation, not a question."""

_HEAP_BYTES = 512 << 20  # of one writer thread: more threads would lose the corpus order
_PROGRESS_EVERY = 5_000  # passages
_COMMIT_EVERY = 250_000  # passages
_CACHE_SIZE = 4_096  # searches
_CACHED_TOPK = 32  # a longer list is not worth the memory
_TIES = 8_192  # equal scores looked at, at most, to keep the corpus order across segments
_QUICK_PASSAGES = 20_000  # up to here a query takes a few tenths of a millisecond
_PARALLEL_PASSAGES = 200_000  # from here a query is worth a thread
_COMMON = 1_000  # passages: the postings of a rarer term are read faster than it is thought about
_K1 = 1.2
_ROUNDING = 1e-4  # of a score, which tantivy sums in float32
_KNOWN_TERMS = 65_536
_SHOULD, _MUST = tantivy.Occur.Should, tantivy.Occur.Must
_FUNCTION_WORDS = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this "
    "to was will with"
)


class Bm25Index:
    """An index opened for searching. Safe to use from several threads; `search` takes tens of µs on small corpora."""

    def __init__(self, index: tantivy.Index, passages: Passages, *, stemming: bool, name: str) -> None:
        """Use `Bm25Index.open` or `Bm25Index.from_passages`."""
        index.config_reader("manual")  # the files never change: no thread watches them
        index.reload()
        self.name = name
        self._schema = index.schema
        self._searcher = index.searcher()
        self._passages = passages
        self._analyse = _analyser(stemming).analyze
        self._function_terms = frozenset(self._analyse(_FUNCTION_WORDS) if stemming else ())
        self._threads = os.cpu_count() or 1
        self._cached = lru_cache(maxsize=_CACHE_SIZE)(self._search)
        self._known = lru_cache(maxsize=_KNOWN_TERMS)(self._look_up)
        if self._searcher.num_docs != len(passages):
            raise IndexOpenError(
                f"{name}: {self._searcher.num_docs} passages are indexed, {len(passages)} stored; build the index anew"
            )

    @classmethod
    def write(cls, build: Build) -> Mapping[str, Any]:
        """Index the passages of `build`, from where an earlier build had committed."""
        folder = build.folder / "tantivy"
        if folder.is_dir() and build.kept.get("stemming") == build.stemming:
            index = tantivy.Index.open(str(folder))
            index.register_tokenizer(_analyser_name(build.stemming), _analyser(build.stemming))
            done = int(index.searcher().num_docs)
        else:
            folder.mkdir(exist_ok=True)
            index, done = _new_index(folder, build.stemming), 0
            build.kept["stemming"] = build.stemming
            build.keep()
        writer = index.writer(min(_HEAP_BYTES, build.memory_bytes), 1)
        total = len(build.passages)
        try:
            for row in range(done, total):
                writer.add_document(_document(row, build.passages[row]))
                if (row + 1) % _PROGRESS_EVERY == 0:
                    build.progress("indexing words", row + 1, total)
                if (row + 1) % _COMMIT_EVERY == 0:
                    writer.commit()
            writer.commit()
        finally:
            writer.wait_merging_threads()  # after a failure, too: its threads would write into a folder being removed
        for part in folder.iterdir():
            part.chmod(0o644)  # tantivy makes some 0600, and an index is for all who can read its folder
        return {"stemming": build.stemming}

    @classmethod
    def open(cls, folder: Path, manifest: Manifest, passages: Passages, opening: Opening) -> Self:
        """Open the words in `folder`; `IndexOpenError` says what is wrong with them."""
        stemming = bool(manifest.options.get("stemming", True))
        try:
            index = tantivy.Index.open(str(folder / "tantivy"))
            index.register_tokenizer(_analyser_name(stemming), _analyser(stemming))
            return cls(index, passages, stemming=stemming, name=str(folder))
        except BaseException as error:
            raise _damage(error, str(folder)) from error

    @classmethod
    def from_passages(cls, passages: Iterable[Passage], *, stemming: bool = True) -> Self:
        """Index `passages` in memory. Meant for a few thousand."""
        kept = list(passages)
        index = _new_index(None, stemming)
        writer = index.writer(_HEAP_BYTES, 1)
        for row, passage in enumerate(kept):
            writer.add_document(_document(row, passage))
        writer.commit()
        writer.wait_merging_threads()
        return cls(index, kept, stemming=stemming, name="index in memory")

    def __len__(self) -> int:
        return len(self._passages)

    def __reduce__(self) -> tuple[Any, ...]:
        """Refused: an index on disk is pickled as its path by `opening.OpenedIndex`."""
        raise TypeError("an index in memory cannot be sent to another process: write it with build_index")

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Itself, because it never changes: Gymnasium copies an environment's arguments."""
        return self

    @property
    def quick(self) -> bool:
        """Whether a batch may run on an event loop without holding it up."""
        return len(self) <= _QUICK_PASSAGES

    def search(self, query: str, topk: int) -> list[Hit]:
        """The best `topk` passages for one query; see `search_batch`."""
        check_request((query,), topk)
        return self._find(query, topk)

    def search_batch(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """At most `topk` passages for each query, best first, that share a term with it.

        A query beyond `MAX_QUERY_CHARS` is cut there. `BadQuery` where the arguments are of the wrong type.
        """
        check_request(queries, topk)
        return [self._find(query, topk) for query in queries]

    def rank(self, queries: Sequence[str], topk: int) -> list[Ranked]:
        """At most `topk` rows for each query, best first."""
        check_request(queries, topk)
        threads = min(len(queries), self._threads)
        if threads > 1 and len(self) >= _PARALLEL_PASSAGES:  # tantivy lets go of the interpreter lock
            with ThreadPoolExecutor(threads) as pool:
                return list(pool.map(lambda query: self._rank(tidy(query), topk), queries))
        return [self._rank(tidy(query), topk) for query in queries]

    def _find(self, query: str, topk: int) -> list[Hit]:
        query = tidy(query)
        return list(self._cached(query, topk) if topk <= _CACHED_TOPK else self._search(query, topk))

    def _search(self, query: str, topk: int) -> tuple[Hit, ...]:
        return tuple(Hit(self._passages[row], score) for row, score in self._rank(query, topk))

    def _rank(self, query: str, topk: int) -> Ranked:
        distinct = dict.fromkeys(self._analyse(_clean(query)))
        content = [term for term in distinct if term not in self._function_terms]
        terms = [term for term in islice(content or distinct, MAX_QUERY_TERMS) if self._known(term)[0]]
        if not terms:
            return []
        wanted = min(topk, len(self))
        try:
            found = self._found(terms, wanted)
            rows = cast(list[int], self._searcher.fast_field_values("row", [address for _, address in found]))
            if None in rows or any(row >= len(self) for row in rows):
                raise ValueError("a passage has no row")
            ranked = sorted((-score, row) for (score, _), row in zip(found, rows))
            return [(row, -negated) for negated, row in ranked[:wanted]]
        except BaseException as error:
            raise _damage(error, self.name) from error

    def _found(self, terms: Sequence[str], wanted: int) -> list[tuple[float, tantivy.DocAddress]]:
        """As `_best`, of all passages that have one of `terms`."""
        rare, common, missed = self._split(terms)
        if common:
            query = self._any_of(rare)
            for term in common:  # one inside the other: beside each other tantivy would read them whole
                query = tantivy.Query.boolean_query([(_MUST, query), (_SHOULD, self._term(term))])
            found = self._best(query, wanted)
            if len(found) >= wanted and found[wanted - 1][0] > missed * (1 + _ROUNDING):
                return found
        return self._best(self._any_of(terms), wanted)

    def _split(self, terms: Sequence[str]) -> tuple[list[str], list[str], float]:
        """`terms` as rare and common ones, and what a passage without a rare one can score at most.

        Common ones are in many passages and together weigh less than the rarest does in an average passage.
        """
        most = {term: (1 + _K1) * self._known(term)[1] for term in terms}
        limit, missed = max(most.values()) / (1 + _K1), 0.0
        common: list[str] = []
        for term in sorted(most, key=lambda term: most[term]):
            if self._known(term)[0] < _COMMON or missed + most[term] > limit:
                break
            common.append(term)
            missed += most[term]
        return [term for term in terms if term not in common], common, missed

    def _look_up(self, term: str) -> tuple[int, float]:
        """In how many passages a term is, and its idf."""
        try:
            passages = int(self._searcher.doc_freq("body", term))
        except BaseException as error:
            raise _damage(error, self.name) from error
        return passages, math.log(1 + (len(self) - passages + 0.5) / (passages + 0.5))

    def _term(self, term: str) -> tantivy.Query:
        return tantivy.Query.term_query(self._schema, "body", term, "freq")

    def _any_of(self, terms: Iterable[str]) -> tantivy.Query:
        return tantivy.Query.boolean_query([(_SHOULD, self._term(term)) for term in terms])

    def _best(self, query: tantivy.Query, wanted: int) -> list[tuple[float, tantivy.DocAddress]]:
        """At least `wanted` hits, and all whose score equals the last one's: the caller chooses among those by row."""
        limit = wanted + 1
        while True:
            found = self._searcher.search(query, limit, count=False).hits
            if len(found) < limit or found[-1][0] != found[wanted - 1][0] or limit >= wanted + _TIES:
                return found
            limit = min(4 * limit, wanted + _TIES)


def _new_index(folder: Path | None, stemming: bool) -> tantivy.Index:
    schema = tantivy.SchemaBuilder()
    schema.add_text_field("body", tokenizer_name=_analyser_name(stemming), index_option="freq")
    schema.add_integer_field("row", fast=True)
    index = tantivy.Index(schema.build(), path=None if folder is None else str(folder))
    index.register_tokenizer(_analyser_name(stemming), _analyser(stemming))
    return index


def _document(row: int, passage: Passage) -> tantivy.Document:
    return tantivy.Document(body=_clean(f"{passage.title}\n{passage.text}"), row=row)


def _damage(error: BaseException, name: str) -> IndexOpenError:
    """What tantivy raises on files that were altered, as our error; anything else is raised as it is.

    Some damage makes tantivy panic, which arrives as a `BaseException` that an `except Exception` would let pass.
    """
    if isinstance(error, RetrieverError):
        raise error
    if isinstance(error, OSError | ValueError | IndexError) or type(error).__name__ == "PanicException":
        return IndexOpenError(f"{name}: the index is damaged ({error}); build it anew")
    raise error


def _analyser_name(stemming: bool) -> str:
    return "words_en_stem" if stemming else "words"


def _analyser(stemming: bool) -> tantivy.TextAnalyzer:
    builder = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
    for step in (tantivy.Filter.remove_long(40), tantivy.Filter.lowercase(), tantivy.Filter.ascii_fold()):
        builder = builder.filter(step)
    return (builder.filter(tantivy.Filter.stemmer("english")) if stemming else builder).build()


def _clean(text: str) -> str:
    """Text that tantivy accepts: composed characters (so that an accent never splits a word), no lone surrogates."""
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", text.encode("utf-8", "replace").decode("utf-8"))

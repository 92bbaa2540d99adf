"""Searching with tool calls: `agentrl/SearchTools-v0`, the questions of `agentrl/Search-v0` for native tools.

Two tools: `search(query)` shows passages with their ids, `open(id)` the whole document behind one. Same reward and same
limits as the tag form. What they return is data.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from agentrl.envs.calls.base import BadCall, Call, CallFormat
from agentrl.envs.errors import ToolFailure
from agentrl.envs.evidence import Evidence, Searches, names_gold
from agentrl.envs.functions import tool
from agentrl.envs.protocol import passage_format
from agentrl.envs.scoring import Rewards, reads_evidence
from agentrl.envs.search import batcher_of
from agentrl.envs.tools import Outcome, Step, ToolEnv
from agentrl.retriever.base import Hit
from agentrl.retriever.corpus import Passage
from agentrl.retriever.errors import RetrieverError
from agentrl.retriever.opening import open_searcher

PASSAGE = "[{id}] {title}: {text}\n"
NOTHING_FOUND = "No passage matches."


class SearchTools:
    """`search` and `open` over one searcher; remembers what one turn has found."""

    def __init__(self, searcher: Any, topk: int, passage: str, nothing_found: str = NOTHING_FOUND) -> None:
        self.searcher, self._topk, self._nothing = searcher, topk, nothing_found
        self._show = passage_format(passage.replace("{id}", "{rank}"))
        self.forget()

    def forget(self) -> None:
        """What the turn before has found and opened."""
        self.turn: list[tuple[str, Sequence[Hit]]] = []
        self.opened: list[Passage] = []

    @tool
    async def search(self, query: str) -> str:
        """Find passages of the encyclopedia.

        Args:
            query: what to look for, in a few words
        """
        query = query.strip()
        try:
            hits = await batcher_of(self.searcher).search(query, self._topk)
        except RetrieverError as e:
            raise ToolFailure(str(e)) from e
        self.turn.append((query, hits))
        return "".join(self._show(p.id, p.title, p.text) for p, _ in hits).rstrip() or self._nothing  # type: ignore[arg-type]

    @tool
    async def open(self, id: str) -> str:
        """Read a whole document.

        Args:
            id: as a search has shown it between [ and ]
        """
        searcher, id = self.searcher, id.strip()
        try:
            if hasattr(searcher, "adocument"):
                found = await searcher.adocument(id)
            elif hasattr(searcher, "document"):
                found = await asyncio.to_thread(searcher.document, id)
            else:
                return "Documents cannot be opened here."
        except RetrieverError as e:
            raise ToolFailure(str(e)) from e
        if found is None:
            return f"There is no document {id[:80]!r}."
        self.opened.append(found)
        return f"{found.title}\n{found.text}"


class SearchToolsEnv(ToolEnv):
    """Questions answered by searching, with tool calls: `agentrl/SearchTools-v0`.

    retriever: a url, an index folder or an object with `search_batch`. The other parameters are those of `ToolEnv` and,
    for `topk`, `nothing_found` and `passage_template` (with {id}, {title}, {text}), of `agentrl/Search-v0`.
    """

    searches = True

    def __init__(
        self,
        *,
        retriever: Any = None,
        tasks: Sequence[dict[str, Any]] = (),
        topk: int = 3,
        max_turns: int = 3,
        passage_template: str = PASSAGE,
        nothing_found: str = NOTHING_FOUND,
        prompt_template: str | None = None,
        reward: Rewards = "exact_match",
        call_format: str | CallFormat = "hermes",
        one_call: bool = False,
    ) -> None:
        if topk < 1:
            raise ValueError(f"topk is {topk}; it must be 1 or more")
        if retriever is None and not tasks:
            from agentrl.envs.search import own_world

            retriever, tasks = own_world()
        if retriever is None:
            raise ValueError("the environment was made without a retriever; pass retriever=URL, index folder or object")
        self._own = SearchTools(open_searcher(retriever), topk, passage_template, nothing_found)
        self._watches = reads_evidence(reward)
        self._searches: Searches | None = None  # where somebody reads them
        super().__init__(
            tools=[self._own], reward=reward, tasks=tasks, call_format=call_format, one_call=one_call,
            max_turns=max_turns, prompt_template=prompt_template,
        )  # fmt: skip

    def answered(self, action: str, read: list[Call | BadCall], outcomes: Sequence[Outcome]) -> Step:
        """The step, with what its searches were and found."""
        found = self._own.turn
        step = super().answered(action, read, outcomes)
        if found:
            ids = [hit.passage.id for _, hits in found for hit in hits]
            step[-1].update({"kind": "search", "query": found[0][0], "retrieved": ids})
            if len(found) > 1:
                step[-1]["queries"] = [query for query, _ in found]
            step[-1].update(self._noted(found))
        if self._searches is not None and self._own.opened:
            for passage in self._own.opened:
                step[-1].update(self._searches.opened(passage))
        elif self._searches is not None and step[2]:
            step[-1].update(self._searches.at_the_end())
        return step

    def _read(self, action: str) -> list[Call | BadCall]:
        self._own.forget()  # also a turn that has not happened, because one of its searches failed
        return super()._read(action)

    @property
    def searcher(self) -> Any:
        """What searches, as in the tag form."""
        return self._own.searcher

    def begun(self, task: Mapping[str, Any]) -> None:
        """The task may name gold passages (`agentrl.envs.evidence`)."""
        self._searches = Searches(task) if self._watches or names_gold(task) else None

    def evidence(self) -> Evidence | None:
        """What the searches found, where the reward or the task asks for it."""
        return None if self._searches is None else self._searches.evidence

    def _noted(self, found: Sequence[tuple[str, Sequence[Hit]]]) -> dict[str, Any]:
        """What the searches of a turn say of gold passages; `gold_recall` is their mean."""
        if self._searches is None:
            return {}
        said = [self._searches.add(query, hits) for query, hits in found]
        if not said[-1]:
            return {}
        return said[-1] | {"gold_recall": sum(s["gold_recall"] for s in said) / len(said)}

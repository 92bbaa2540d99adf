"""Many search episodes side by side, with one retrieval for all searches of a step."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray

from agentrl.envs.errors import TaskError, ToolFailure
from agentrl.envs.protocol import ParsedAction
from agentrl.envs.search import SearchEnv, Step
from agentrl.retriever.base import Hit
from agentrl.retriever.errors import RetrieverError
from agentrl.retriever.opening import open_searcher


class _Member(SearchEnv):
    """One of the episodes: reads its own task, and may find the passages of its next step already searched."""

    number = 0
    planned: tuple[ParsedAction, Sequence[Hit] | None, float] | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        if options and "tasks" in options:
            options = options["tasks"][self.number]
        return super().reset(seed=seed, options=options)

    def step(self, action: str) -> Step:
        if self.planned is None:
            return super().step(action)
        (parsed, hits, latency_s), self.planned = self.planned, None
        return self.advance(action, parsed, hits, latency_s)


class SearchVectorEnv(SyncVectorEnv):
    """`num_envs` search episodes: `gymnasium.make_vec("agentrl/Search-v0", num_envs=8, retriever=...)`.

    Observations are tuples of `num_envs` strings, actions any sequence of as many; infos are Gymnasium's dictionaries
    of arrays. The distinct queries of a step are searched in one call. `reset(options={"tasks": [...]})` gives each
    episode a task of its own, other options go to all; an episode that begins without draws one of SearchEnv's `tasks`.
    Further arguments are SearchEnv's.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        retriever: Any = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        **arguments: Any,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs is {num_envs}; it must be 1 or more")
        searcher = None if retriever is None else open_searcher(retriever)  # one for all
        make = partial(_Member, retriever=searcher, **arguments)
        super().__init__([make] * num_envs, copy=False, autoreset_mode=autoreset_mode)  # strings need no copies
        self._members = cast("list[_Member]", self.envs)
        for number, member in enumerate(self._members):
            member.number = number

    def reset(  # type: ignore[override]
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[tuple[str, ...], dict[str, Any]]:
        """Begin all episodes, or those of `options["reset_mask"]`, (num_envs,) bool. Raises TaskError as SearchEnv."""
        tasks = (options or {}).get("tasks")
        if tasks is not None and len(tasks) != self.num_envs:
            raise TaskError(
                f"options['tasks'] holds {len(tasks)} tasks; give one for each of the {self.num_envs} episodes"
            )
        return super().reset(seed=seed, options=None if options is None else dict(options))

    def step(  # type: ignore[override]
        self, actions: Sequence[str]
    ) -> tuple[tuple[str, ...], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """One turn of every episode. Raises ToolFailure where the retriever fails; no episode has then moved."""
        if len(actions) != self.num_envs:
            raise ValueError(f"{len(actions)} actions for {self.num_envs} episodes; give one for each")
        resets = (
            self._autoreset_envs if self.autoreset_mode is AutoresetMode.NEXT_STEP else np.zeros(self.num_envs, bool)
        )
        parsed = {i: m.parse(actions[i]) for i, m in enumerate(self._members) if not resets[i]}
        searching = {i for i, p in parsed.items() if self._members[i].needs_search(p)}
        queries = list(dict.fromkeys(parsed[i].content for i in sorted(searching)))
        began = time.perf_counter()
        found = dict(zip(queries, self._search(queries, searching), strict=True))
        latency_s = time.perf_counter() - began
        for i, p in parsed.items():
            self._members[i].planned = (p, found[p.content], latency_s) if i in searching else (p, None, 0.0)
        return super().step(tuple(actions))  # type: ignore[return-value]

    def _search(self, queries: list[str], searching: set[int]) -> list[list[Hit]]:
        searchers = [self._members[i].needed_searcher() for i in searching]
        if not searchers:
            return []
        try:
            return searchers[0].search_batch(queries, self._members[0].topk)
        except RetrieverError as e:
            raise ToolFailure(str(e)) from e

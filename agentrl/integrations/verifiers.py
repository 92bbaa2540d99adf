"""Our search task as a verifiers taskset (written for verifiers 0.4.0).

verifiers finds a taskset by the name of a module whose `__all__` holds it. One line in `my_search.py` makes it:

    from agentrl.integrations.verifiers import Search; __all__ = ["Search"]

    vf-eval my_search --env.taskset.data train.jsonl --env.taskset.tools.retriever http://127.0.0.1:8000

The tools are those of agentrl/SearchTools-v0, in one server for all rollouts; reward is exact match. The answer is what
the last message says, inside `<answer>` where it is there. Left out: the tag form, whose turns call no tool.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import verifiers.v1 as vf
from pydantic import Field

from agentrl.envs.scoring import exact_match, f1
from agentrl.envs.search_tools import NOTHING_FOUND, PASSAGE, SearchTools
from agentrl.envs.tasks import read_task
from agentrl.envs.tools import answer_in, defused
from agentrl.integrations.played import read_rows, task_of
from agentrl.retriever.opening import open_searcher

__all__ = ["Search", "SearchToolset"]


class SearchToolsConfig(vf.SharedToolsetConfig):
    """Where the passages come from: a url, or an index folder."""

    retriever: str = "http://127.0.0.1:8000"
    topk: int = 3
    passage: str = PASSAGE


class SearchToolset(vf.Toolset[SearchToolsConfig]):
    """`search` and `open`, for all rollouts."""

    TOOL_PREFIX = None

    async def setup(self) -> None:
        """Open the index, or the client."""
        self._tools = SearchTools(open_searcher(self.config.retriever), self.config.topk, self.config.passage)

    @vf.tool
    async def search(self, query: str) -> str:
        """Find passages of the encyclopedia. query: what to look for, in a few words."""
        found = await _call(self._tools, "search", query=query)
        self._tools.turn.clear()  # nobody reads it here
        return defused(found) or NOTHING_FOUND

    @vf.tool
    async def open(self, id: str) -> str:
        """Read a whole document. id: as a search has shown it between [ and ]."""
        return defused(await _call(self._tools, "open", id=id))


class SearchConfig(vf.TasksetConfig):
    """`data`: JSONL of {question, golden_answers}."""

    data: str = ""
    system_text: str = "Answer the question. Search first. Then write only the answer, inside <answer> and </answer>."
    tools: SearchToolsConfig = SearchToolsConfig()


class SearchData(vf.TaskData):
    """A question with its golden answers."""

    golden_answers: list[str] = Field(default_factory=list)


class SearchTask(vf.Task[SearchData]):
    """One question; the reward reads the last message alone."""

    @vf.reward(weight=1.0)
    async def exact_match(self, trace: Any) -> float:
        """1.0 where the answer is a golden answer, both normalised."""
        return exact_match(answer_in(trace.last_reply)[0], self.data.golden_answers)

    @vf.metric
    async def f1(self, trace: Any) -> float:
        """The best token F1."""
        return f1(answer_in(trace.last_reply)[0], self.data.golden_answers)


class Search(vf.Taskset[SearchTask, SearchConfig]):
    """Questions answered by searching."""

    def load(self) -> Iterable[SearchTask]:
        """One task a row. TaskError names what is wrong with a row."""
        for i, row in enumerate(read_rows(self.config.data)):
            question, golden = read_task(task_of(row))
            data = SearchData(
                prompt=question,
                system_prompt=self.config.system_text,
                golden_answers=golden,
                id=str(row.get("id", i)),
            )
            yield SearchTask(data, self.config.task)

    @classmethod
    def toolsets(cls, config: SearchConfig) -> list[Any]:
        """One server of the two tools."""
        return [SearchToolset(config.tools)]


async def _call(tools: SearchTools, name: str, **arguments: str) -> str:
    method: Any = getattr(tools, name)
    said: str = await method.call.__get__(tools)(**arguments)
    return said


if __name__ == "__main__":
    SearchToolset.run()

"""Measure the environments: CPU of a step besides retrieval or tool, of parsing calls, a vector step, making a world.

    python scripts/bench_env.py [--episodes 4000] [--passages 100000] [--json]

The retriever of the step's figures gives ready-made hits, so what is left is the environment's own work. It never gives
a passage twice, so nothing is measured that only a cache makes fast. Each figure is the best of several rounds of CPU
time, the measure least disturbed by other work.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from agentrl import plugins
from agentrl.envs.search import SearchEnv
from agentrl.envs.search_tools import SearchToolsEnv
from agentrl.envs.tools import ToolEnv, tool
from agentrl.envs.vector import SearchVectorEnv
from agentrl.envs.worlds.search import SearchWorld
from agentrl.retriever.base import Hit
from agentrl.retriever.corpus import Passage

ROUNDS = 5
TARGET_US, TOOLS_TARGET_US, PARSE_TARGET_US = 4.0, 12.0, 20.0
NUM_ENVS = 64
TASK = {"question": "Who founded the company that Vesna Oll works for?", "golden_answers": ["Edda Marn"]}
SEARCH = f"<think> {'I need to know the company first. ' * 3}</think> <search> company Vesna Oll works for </search>"
ANSWER = "<think> Brightkiln was founded by Edda Marn </think> <answer> Edda Marn </answer>"
INVALID = "<think> I should search, or perhaps answer </think> <search> company"
TEXT = (
    "Brightkiln makes glass in Torvik and was founded in 1921 by Edda Marn, who had studied it. " * 6
)  # 540 characters


class Ready:
    """A searcher that has nothing to search: it gives one ready list of hits after the other."""

    quick = True

    def __init__(self, hits: Iterator[list[Hit]]) -> None:
        self._hits = hits

    def search_batch(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        return [next(self._hits) for _ in queries]


def passages(n: int) -> Iterator[list[Hit]]:
    """`n` times three passages of 540 characters, made in advance."""
    hits = [Hit(Passage(f"p{i}", f"Title {i}", f"{i} {TEXT}"), 1.0) for i in range(3 * n)]
    return iter([hits[i : i + 3] for i in range(0, 3 * n, 3)])


def best(prepare: Callable[[], Callable[[], Any]], count: int) -> float:
    """µs of CPU for each of the `count` things that what `prepare` returns does."""
    found = []
    for _ in range(ROUNDS):
        work = prepare()
        gc.collect()
        began = time.process_time()
        work()
        found.append((time.process_time() - began) / count * 1e6)
    return min(found)


def of_one(actions: Sequence[str], episodes: int) -> Callable[[], Any]:
    """`episodes` episodes of these actions, one after the other."""
    env = SearchEnv(retriever=Ready(passages(episodes * actions.count(SEARCH))))

    def work() -> None:
        for _ in range(episodes):
            env.reset(options=TASK)
            for action in actions:
                env.step(action)

    return work


@tool
def lookup(query: str) -> str:
    """Gives the same passage each time, so that what is measured is the environment's own work."""
    return TEXT


CALL = {"query": "company Vesna Oll works for"}


def of_tools(episodes: int) -> Callable[[], Any]:
    """Episodes of three calls of a function, and an answer."""
    env = ToolEnv(tools=[lookup])
    action = "<think> I need to know the company first. </think>" + env._format.write("lookup", CALL)

    def work() -> None:
        for _ in range(episodes):
            env.reset(options=TASK)
            for _ in range(3):
                env.step(action)
            env.step(ANSWER)

    return work


def of_search_tools(episodes: int) -> Callable[[], Any]:
    """The search environment's episodes in native form, with astep, whose searches are batched as above."""
    searcher = Ready(passages(3 * episodes))
    envs = [SearchToolsEnv(retriever=searcher) for _ in range(NUM_ENVS)]
    action = envs[0]._format.write("search", CALL)

    async def one(env: SearchToolsEnv) -> None:
        for _ in range(episodes // NUM_ENVS):
            await env.areset(options=TASK)
            for said in (action, action, action, ANSWER):
                await env.astep(said)

    async def everything() -> None:
        await asyncio.gather(*map(one, envs))

    return lambda: asyncio.run(everything())


def of_parsing(name: str, turns: int) -> Callable[[], Any]:
    """Reading a turn of 4,096 characters: thoughts, and a call with a long argument."""
    call_format = plugins.find("call format", name)()
    call = call_format.write("search", {"query": "Who founded the company? " * 40, "topk": 3})
    text = f"<think>{'I need to know. ' * 300}"[: 4096 - len(call) - 8] + "</think>" + call
    assert len(text) == 4096 and len(call_format.read(text)) == 1

    def work() -> None:
        for _ in range(turns):
            call_format.read(text)

    return work


def of_many(episodes: int) -> Callable[[], Any]:
    """The same with `NUM_ENVS` coroutines at once, whose searches are batched."""
    searcher = Ready(passages(3 * episodes))
    envs = [SearchEnv(retriever=searcher) for _ in range(NUM_ENVS)]

    async def one(env: SearchEnv) -> None:
        for _ in range(episodes // NUM_ENVS):
            await env.areset(options=TASK)
            for action in (SEARCH, SEARCH, SEARCH, ANSWER):
                await env.astep(action)

    async def everything() -> None:
        await asyncio.gather(*map(one, envs))

    return lambda: asyncio.run(everything())


def of_vector(episodes: int) -> Callable[[], Any]:
    """The same in a vector environment."""
    env = SearchVectorEnv(NUM_ENVS, retriever=Ready(passages(3 * episodes)), tasks=[TASK])
    env.reset(seed=0)
    turns = [tuple(f"{i} {a}" for i in range(NUM_ENVS)) for a in (SEARCH, SEARCH, SEARCH, ANSWER, "")]

    def work() -> None:
        for _ in range(episodes // NUM_ENVS):
            for actions in turns:  # the last of them resets
                env.step(actions)

    return work


def measure(episodes: int, size: int) -> dict[str, float]:
    """All figures, by key."""
    out: dict[str, float] = {}
    reset = best(lambda: of_one((), episodes), episodes)
    out["reset_us"] = reset
    for name, action in (("search", SEARCH), ("invalid", INVALID), ("answer", ANSWER)):
        out[f"{name}_us"] = best(partial(of_one, (action,), episodes), episodes) - reset
    out["step_us"] = best(lambda: of_one((SEARCH, SEARCH, SEARCH, ANSWER), episodes), 4 * episodes)
    whole = episodes // NUM_ENVS * NUM_ENVS
    out["async_step_us"] = best(lambda: of_many(whole), 4 * whole)
    out["vector_step_us"] = best(lambda: of_vector(whole), 5 * whole)
    out["tool_step_us"] = best(lambda: of_tools(episodes), 4 * episodes)
    out["search_tools_step_us"] = best(lambda: of_search_tools(whole), 4 * whole)
    for plugin in plugins.available("call format"):
        out[f"parse_{plugin.name}_us"] = best(partial(of_parsing, plugin.name, episodes), episodes)
    began = time.process_time()
    world = SearchWorld(0, **world_sizes(size))
    out["world_s"] = time.process_time() - began
    out["world_passages"] = len(world.passages)
    began = time.process_time()
    out["world_questions"] = len(world.questions("train")) + len(world.questions("test"))
    out["questions_s"] = time.process_time() - began
    return out


def world_sizes(size: int) -> dict[str, Any]:
    """Sizes in the default proportions that make as many passages as fit into `size`."""
    people, companies, cities, regions = 120, 50, 32, 12
    scale = size / (4 * people + 3 * companies + 2 * cities)
    sizes = {"people": people, "companies": companies, "cities": cities, "regions": regions}
    return {**{k: int(v * scale) for k, v in sizes.items()}, "name_tokens": 2, "hops": (1, 2, 3, 4)}


LABELS = {
    "reset_us": "reset, µs",
    "search_us": "step that searches, µs",
    "invalid_us": "step with an invalid action, µs",
    "answer_us": "step that answers, µs",
    "step_us": "a step of an episode of three searches, reset included, µs",
    "async_step_us": f"the same with astep, {NUM_ENVS} at once, batched, µs",
    "vector_step_us": f"the same in a vector environment of {NUM_ENVS}, µs",
    "tool_step_us": "a step of ToolEnv, three calls of a function and an answer, reset included, µs",
    "search_tools_step_us": f"a step of SearchTools-v0 with astep, {NUM_ENVS} at once, batched, µs",
    **{
        f"parse_{p.name}_us": f"reading a turn of 4 kB in format {p.name}, µs" for p in plugins.available("call format")
    },
    "world_s": "making a world, s",
    "world_passages": "  its passages",
    "questions_s": "making its questions of 1 to 4 hops, s",
    "world_questions": "  their number",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=4000, help="of one round")
    parser.add_argument("--passages", type=int, default=100_000, help="of the large world")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    figures = measure(max(NUM_ENVS, args.episodes), args.passages)
    if args.json:
        print(json.dumps(figures))
        return
    for key, label in LABELS.items():
        print(f"{label:78}{figures[key]:>12{',.0f' if isinstance(figures[key], int) else '.2f'}}")
    print(f"\ntarget for a step besides retrieval: {TARGET_US:.0f} µs; for a step of ToolEnv besides the tool, "
          f"{TOOLS_TARGET_US:.0f} µs; for reading 4 kB, {PARSE_TARGET_US:.0f} µs")  # fmt: skip


if __name__ == "__main__":
    main()

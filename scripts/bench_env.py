"""Measure the environments: CPU time of a step besides its tool, many episodes with slow tools, making a large world.

    python scripts/bench_env.py [--episodes 4000] [--passages 100000] [--peer PYTHON ...] [--json]

`--peer` is the interpreter of an environment in which skyrl-gym or GEM is installed: their own search environments, in
the same run; their tool gives a ready text here, as ours does. A turn of theirs is one tag, found by a regular
expression; a turn of ToolEnv is JSON that is checked against a schema.

The retriever of the step's figures gives ready-made hits, so what is left is the environment's own work. It never gives
a passage twice, so nothing is measured that only a cache makes fast. Each figure is the best of several rounds of CPU
time, the measure least disturbed by other work.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from agentrl import plugins
from agentrl.envs.search import SearchEnv
from agentrl.envs.tools import ToolEnv, tool
from agentrl.envs.vector import SearchVectorEnv
from agentrl.envs.worlds.search import SearchWorld
from agentrl.retriever.base import Hit
from agentrl.retriever.corpus import Passage

ROUNDS = 5
TARGET_US, TOOL_TARGET_US, PARSE_TARGET_US = 4.0, 12.0, 20.0
THOUGHT = "I need to know the city first. " * 65
EPISODES, CALL_S, CALLS = 256, 0.1, 3  # episodes at once with a slow tool, and its calls in each
SLOW_TARGET_S = 1.25 * CALLS * CALL_S
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


@tool
def population(city: str, year: int = 2024) -> str:
    """How many people live in a city.

    Args:
        city: its English name
        year: of the count
    """
    return TEXT


@tool(deadline_s=5)
def population_by(city: str) -> str:
    """The same on a thread, with a deadline."""
    return TEXT


@tool
async def awaited(city: str) -> str:
    """A tool that waits."""
    await asyncio.sleep(CALL_S)
    return city


@tool(deadline_s=5)
def blocked(city: str) -> str:
    """A tool that blocks, on a thread."""
    time.sleep(CALL_S)
    return city


def turn_of(name: str, calls: int = 1) -> str:
    """A turn of some thought and so many calls."""
    call = f'<tool_call>\n{{"name": "{name}", "arguments": {{"city": "Lisbon"}}}}\n</tool_call>'
    return f"<think> {'I need to know the city first. ' * 3}</think>\n" + "\n".join([call] * calls)


def of_tool(name: str, tools: Any, steps: int, asynchronous: bool) -> Callable[[], Any]:
    """`steps` steps of one call each."""
    env, action = ToolEnv(tools=[tools], max_turns=steps + 1), turn_of(name)
    env.reset(options=TASK)

    async def awaiting() -> None:
        for _ in range(steps):
            await env.astep(action)

    def work() -> None:
        for _ in range(steps):
            env.step(action)

    return (lambda: asyncio.run(awaiting())) if asynchronous else work


def slow(tools: Any, calls: int) -> float:
    """Seconds by the clock of `EPISODES` episodes at once, of `CALLS` turns with so many calls each."""
    envs = [ToolEnv(tools=[tools], max_turns=CALLS + 1) for _ in range(EPISODES)]
    action = turn_of(tools.name, calls)

    async def one(env: ToolEnv) -> None:
        await env.areset(options=TASK)
        for _ in range(CALLS):
            assert (await env.astep(action))[-1]["valid"]
        assert (await env.astep(ANSWER))[1] == 1.0

    async def everything() -> float:
        began = time.perf_counter()
        await asyncio.gather(*map(one, envs))
        return time.perf_counter() - began

    return min(asyncio.run(everything()) for _ in range(ROUNDS))


def parsing(repeats: int) -> dict[str, float]:
    """µs to read a turn of 4 kB with one call in each call format."""
    out = {}
    for plugin in plugins.available("call format"):
        known = plugins.find("call format", plugin.name)()
        turn = THOUGHT + known.write("population", {"city": "Lisbon", "about": "x" * 2000})
        if not known.read(turn):  # calls of this format stand alone
            turn = known.write("population", {"city": "Lisbon", "about": "x" * 4000})
        assert len(known.read(turn)) == 1 and 4000 < len(turn) < 4200, plugin.name

        def work(read: Any = known.read, turn: str = turn) -> None:
            for _ in range(repeats):
                read(turn)

        out[f"parse_{plugin.name}_us"] = best(lambda work=work: work, repeats)  # type: ignore[misc]
    return out


#: Run by the interpreter of --peer: the same figures of whichever of the two is installed there, as JSON.
PEER = """
import gc, json, sys, time
from concurrent.futures import ThreadPoolExecutor

ACTION, TEXT, STEPS, ROUNDS, EPISODES, CALL_S, CALLS = json.loads(sys.argv[1])

def skyrl():
    from importlib.metadata import version
    from skyrl_gym.envs.search.env import SearchEnv, SearchEnvConfig
    def make(wait, turns):
        env = SearchEnv(SearchEnvConfig(), {"reward_spec": {"ground_truth": {"target": ["x"]}}, "max_turns": turns})
        def search(query):
            time.sleep(wait) if wait else None
            return TEXT
        env.tool_group._tool_registry["search"] = search
        env.init([{"role": "user", "content": "q"}])
        def step():
            found = env.step(ACTION)
            assert found["observations"][0]["content"].startswith("\\n<information>")
            env.chat_history.clear()  # it grows with every step otherwise
        return step
    return "skyrl_gym " + version("skyrl-gym"), make

def gem():
    from importlib.metadata import version
    from gem.core import Env
    from gem.tools.search_tool import SearchTool
    from gem.tools.tool_env_wrapper import ToolEnvWrapper
    class Question(Env):
        def reset(self, seed=None):
            return "q", {}
        def step(self, action):
            return "", 0.0, True, False, {}
    def make(wait, turns):
        tool = SearchTool(search_url="http://127.0.0.1:9")
        def search(query):
            time.sleep(wait) if wait else None
            return TEXT
        tool._search = search
        env = ToolEnvWrapper(Question(), [tool], max_tool_uses=turns)
        env.reset()
        def step():
            assert TEXT in env.step(ACTION)[0]
        return step
    return "gem " + version("gem-llm"), make

for known in (skyrl, gem):
    try:
        name, make = known()
        break
    except ImportError as error:
        why = error
else:
    sys.exit(f"neither skyrl-gym nor GEM can be imported: {why}")

def cpu():
    step = make(0, STEPS + 1)
    gc.collect()
    began = time.process_time()
    for _ in range(STEPS):
        step()
    return (time.process_time() - began) / STEPS * 1e6

def clock(pool):
    steps = [make(CALL_S, CALLS + 1) for _ in range(EPISODES)]
    def play(step):
        for _ in range(CALLS):
            step()
    began = time.perf_counter()
    list(pool.map(play, steps))
    return time.perf_counter() - began

with ThreadPoolExecutor(EPISODES) as pool:
    slow = min(clock(pool) for _ in range(ROUNDS))
print(json.dumps({name: {"step_us": min(cpu() for _ in range(ROUNDS)), "slow_s": slow}}))
"""


def peer(python: str, steps: int) -> dict[str, dict[str, float]]:
    """Name and version -> µs of CPU of a step, seconds of many episodes with a slow tool, each on a thread."""
    given = json.dumps([SEARCH, TEXT, steps, ROUNDS, EPISODES, CALL_S, CALLS])
    done = subprocess.run([python, "-c", PEER, given], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"--peer {python}: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return found


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
    out["tool_step_us"] = best(lambda: of_tool("population", population, 4 * episodes, False), 4 * episodes)
    out["tool_astep_us"] = best(lambda: of_tool("population", population, 4 * episodes, True), 4 * episodes)
    out["tool_deadline_us"] = best(lambda: of_tool("population_by", population_by, episodes, True), episodes)
    out |= {"slow_s": slow(awaited, 1), "slow_two_s": slow(awaited, 2)}
    out |= {"slow_threads_s": slow(blocked, 1), "slow_threads_two_s": slow(blocked, 2)}
    out |= parsing(episodes)
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
    "tool_step_us": "ToolEnv: a step with one call of a function, the function included, µs",
    "tool_astep_us": "  the same with astep, µs",
    "tool_deadline_us": "  the same where the function has a deadline (a thread), µs",
    "slow_s": f"{EPISODES} episodes of {CALLS} calls of {CALL_S * 1e3:.0f} ms that are awaited, s by the clock",
    "slow_two_s": "  with two such calls at the same time in each turn, s",
    "slow_threads_s": "  with calls that block, on threads, s",
    "slow_threads_two_s": "  two of those in each turn, s",
    "parse_hermes_us": "reading a turn of 4 kB: hermes, µs",
    "parse_llama_us": "  llama, µs",
    "parse_mistral_us": "  mistral, µs",
    "parse_json_us": "  json, µs",
    "world_s": "making a world, s",
    "world_passages": "  its passages",
    "questions_s": "making its questions of 1 to 4 hops, s",
    "world_questions": "  their number",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=4000, help="of one round")
    parser.add_argument("--passages", type=int, default=100_000, help="of the large world")
    parser.add_argument(
        "--peer", action="append", default=[], metavar="PYTHON", help="an interpreter that has skyrl-gym or GEM"
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    figures = measure(max(NUM_ENVS, args.episodes), args.passages)
    peers = {name: found for python in args.peer for name, found in peer(python, 4 * args.episodes).items()}
    if args.json:
        print(json.dumps(figures | {"peers": peers}))
        return
    for key, label in LABELS.items():
        print(f"{label:74}{figures[key]:>12{',.0f' if isinstance(figures[key], int) else '.2f'}}")
    for name, found in peers.items():
        print(f"{f'{name}: a step of its search environment, µs':74}{found['step_us']:>12.2f}")
        label = f"  {EPISODES} episodes of {CALLS} calls of {CALL_S * 1e3:.0f} ms, each on a thread, s by the clock"
        print(f"{label:74}{found['slow_s']:>12.2f}")
    print(
        f"\ntargets: {TARGET_US:.0f} µs for a step besides retrieval, {TOOL_TARGET_US:.0f} for one of ToolEnv, "
        f"{PARSE_TARGET_US:.0f} to read a turn, {SLOW_TARGET_S:.3f} s for the episodes with slow calls"
    )


if __name__ == "__main__":
    main()

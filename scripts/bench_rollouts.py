"""What rollouts cost besides the model and the tool: a fake sampler, environments that only wait.

    python scripts/bench_rollouts.py [--json]

1. 256 episodes at once of three tool calls of 100 ms: wall time against the floor of 0.30 s, for environments with
   coroutines and for blocking ones.
2. 96 episodes of three turns with tools that answer at once: CPU time per turn of `play` and `ChatFormat`, all threads.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.spaces import Text

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from agentrl.config import RolloutConfig
from agentrl.rollouts.chat import ChatFormat
from agentrl.rollouts.play import EnvPool, Player
from agentrl.types import Task
from tests.fakes import ScriptedSampler, tiny_tokenizer

EPISODES, CALLS, TOOL_S = 256, 3, 0.1
SAID = ["<search> where was Ada born </search>", "<search> Port Ellis </search>", "<answer> Port Ellis </answer>"]


class Blocking(gymnasium.Env[str, str]):
    """Three steps; each takes `delay_s`, then answers with one of a few passages."""

    observation_space = action_space = Text(10_000)
    stop_strings = ("</search>", "</answer>")

    def __init__(self, delay_s: float) -> None:
        self.delay_s = delay_s

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        assert options is not None
        self.turn, self.question = 0, options["question"]
        parts = {"open": "Question: ", "body": self.question, "close": "\n"}
        return f"Question: {self.question}\n", {"observation_parts": parts}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        time.sleep(self.delay_s)
        return self.answer(action)

    def answer(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.turn += 1
        if self.turn == CALLS:
            start = action.find("Port")
            return "", 1.0, True, False, {"kind": "answer", "answer_span": (start, start + 10)}
        body = f"Doc 1(Title: {self.question}) one two three four five six seven eight nine ten {self.turn}"
        parts = {"open": "\n\n<information>", "body": body, "close": "</information>\n\n"}
        return "".join(parts.values()), 0.0, False, False, {"observation_parts": parts, "kind": "search"}


class Awaitable(Blocking):
    """The same with coroutines."""

    async def areset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return self.reset(seed=seed, options=options)

    async def astep(self, action: str) -> Any:
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        return self.answer(action)


def measure(env: type[Blocking], style: str, episodes: int, delay_s: float, repeats: int) -> tuple[float, float]:
    """Median (wall s, CPU s) of playing `episodes`, after one round that fills pools and caches."""
    tokenizer = tiny_tokenizer()
    config = RolloutConfig(style=style, max_context=4000, max_tokens_per_turn=100, concurrency=episodes)
    chat = ChatFormat(tokenizer, config)
    sampler = ScriptedSampler(tokenizer, SAID)
    tasks = [Task(str(i), {"question": f"who is number {i}?"}) for i in range(episodes // 8)]
    wall, cpu = [], []
    with EnvPool(lambda: env(delay_s)) as pool:
        for i in range(repeats + 1):
            sampler.calls.clear()
            fresh = [Task(t.id, {"question": f"{t.options['question']} {i}"}) for t in tasks]  # nothing cached
            start, start_cpu = time.perf_counter(), time.process_time()
            done = Player(sampler, pool, chat, config).collect(fresh, 8, prefix=f"{i}/")
            wall.append(time.perf_counter() - start)
            cpu.append(time.process_time() - start_cpu)
            assert len(done) == episodes
            assert all(t.reward == 1.0 and t.turns[-1].answer_span for t in done)
    return statistics.median(wall[1:]), statistics.median(cpu[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    floor = CALLS * TOOL_S
    out: dict[str, float] = {"floor_s": floor}
    for env in (Awaitable, Blocking):
        wall, _ = measure(env, "tag", EPISODES, TOOL_S, args.repeats)
        out[f"concurrent_{env.__name__.lower()}_s"] = round(wall, 4)
        out[f"concurrent_{env.__name__.lower()}_ratio"] = round(wall / floor, 3)
        for style in ("tag", "chat"):
            _, cpu = measure(env, style, 96, 0.0, 5 * args.repeats)
            out[f"overhead_{env.__name__.lower()}_{style}_us_per_turn"] = round(cpu / (96 * CALLS) * 1e6, 1)
    if args.json:
        print(json.dumps(out))
        return
    for name, value in out.items():
        print(f"{name:<45} {value:>8}")


if __name__ == "__main__":
    main()

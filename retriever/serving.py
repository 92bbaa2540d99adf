"""Run the application: socket, uvicorn, replicas, drain.

The address is bound before the index is loaded, so that a taken port is said at once, and listened on when every
replica has answered its warm-up queries. Replicas are forked processes on one listening socket that map the same
files; one that dies is started anew, and what it had not yet accepted is taken by the others. SIGTERM drains: nothing
new is accepted, what is under way is answered, then the processes end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from agentrl.retriever.base import Opening, Searcher
from agentrl.retriever.dialects.base import Limits
from agentrl.retriever.errors import RetrieverError, ServeError
from agentrl.retriever.metrics import Metrics, shared_memory
from agentrl.retriever.opening import open_index
from agentrl.retriever.server import App, Manners
from agentrl.retriever.wire import TOKEN_VARIABLE, environment_token, is_loopback

_BACKLOG = 2_048
_WARM_UP = ("warm up", "what is the capital of the country where the author was born", "a")
_RESTART_PAUSE_S = 0.2  # between two starts of a replica that dies
_PARENT_EVERY_S = 0.5  # a replica looks whether its parent is there
_HEADERS_S = 15.0  # for the head of a request to arrive


@dataclass(frozen=True)
class Service:
    """How an index is served."""

    host: str = "127.0.0.1"
    port: int = 8000
    replicas: int = 1
    limits: Limits = field(default_factory=Limits)
    manners: Manners = field(default_factory=Manners)
    opening: Opening = field(default_factory=Opening)
    dialects: tuple[str, ...] = ()
    cache: int = 8_192
    max_batch: int = 64
    drain_s: float = 30.0
    access_log: str | None = None  # a file, or - for stderr
    follow_stdin: bool = False  # drain and end when standard input ends


def serve(index: str | Path, service: Service = Service(), *, say: Callable[[str], object] = print) -> None:
    """Serve the folder `index` until SIGINT or SIGTERM. Port 0 takes a free one; the address is said once it answers.

    `ServeError` where the port is taken, or the host is not a loopback address and `AGENTRL_RETRIEVER_TOKEN` is not
    set; `IndexOpenError` where the index cannot be opened.
    """
    token = environment_token()
    if token is None and not is_loopback(service.host):
        raise ServeError(
            f"host {service.host!r} can be reached from other machines: set {TOKEN_VARIABLE} to a secret, "
            "for the server and its clients, or serve on 127.0.0.1"
        )
    if not 1 <= service.replicas <= 256:
        raise ServeError(f"{service.replicas} replicas: choose between 1 and 256")
    if service.follow_stdin:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    with _bound(service.host, service.port) as listener:
        if service.replicas == 1:
            _serve_here(index, service, listener, token, Metrics(), say)
        else:
            _Replicas(index, service, listener, token).run(say)


def _end_with_stdin() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 4_096):  # not sys.stdin: a thread in its lock ends the interpreter badly
            pass
    os.kill(os.getpid(), signal.SIGTERM)


def _end_with(parent: int) -> None:
    """Drain and end when the parent is gone, however it went: a replica left over would hold the port."""
    while os.getppid() == parent:
        time.sleep(_PARENT_EVERY_S)
    os.kill(os.getpid(), signal.SIGTERM)


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # asyncio does this only for sockets of an explicit protocol; without it each small answer waits 40 ms.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise ServeError(f"cannot listen on {host} port {port} ({error}); choose another with --port") from error
    return listener


def _announce(service: Service, listener: socket.socket, passages: int, kind: str) -> str:
    shown = f"[{service.host}]" if ":" in service.host else service.host
    many = f" in {service.replicas} replicas" if service.replicas > 1 else ""
    return f"serving {passages:,} passages ({kind}){many} at http://{shown}:{listener.getsockname()[1]} (Ctrl-C stops)"


def _serve_here(
    index: str | Path,
    service: Service,
    listener: socket.socket,
    token: str | None,
    metrics: Metrics,
    say: Callable[[str], object],
) -> None:
    opened = open_index(index, service.opening, cache=0)
    warm_up(opened)

    def ready() -> None:
        say(_announce(service, listener, len(opened), opened.kind))

    if _run(opened, service, listener, token, metrics, ready):
        say("stopped")


def warm_up(searcher: Searcher) -> None:
    """Search a few queries, alone and together: first calls allocate and map what later ones need."""
    for _ in range(2):
        for query in _WARM_UP:
            searcher.search_batch([query], 3)
        searcher.search_batch([f"{query} {n}" for query in _WARM_UP for n in range(8)], 3)


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol, which hangs up when the head of a request does not arrive in time."""

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Starts the clock."""
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(_HEADERS_S, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the clock."""
        self._stop_clock()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Starts the clock of a further request; keep-alive's own clock runs until here."""
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(_HEADERS_S, self.transport.close)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Stops the clock."""
        self._stop_clock()
        super().on_headers_complete()

    def _stop_clock(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class _Server(uvicorn.Server):
    """uvicorn, which tells when it accepts."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], object]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, then `ready`."""
        await super().startup(sockets)
        self._ready()


def _run(
    searcher: Searcher,
    service: Service,
    listener: socket.socket,
    token: str | None,
    metrics: Metrics,
    ready: Callable[[], object],
) -> bool:
    """Serve until a signal; whether it was SIGINT."""
    manners = replace(service.manners, log=_access_log(service.access_log))
    app = App(
        searcher,
        service.limits,
        token=token,
        manners=manners,
        metrics=metrics,
        dialect_names=service.dialects,
        cache=service.cache,
        max_batch=service.max_batch,
    )
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        loop="uvloop" if sys.platform != "win32" else "asyncio",
        http=Protocol,
        ws="none",
        interface="asgi3",
        log_level="warning",
        access_log=False,
        lifespan="off",
        server_header=False,
        date_header=False,
        timeout_keep_alive=60,  # longer than clients keep a connection, so that none is closed under a request
        timeout_graceful_shutdown=max(1, round(service.drain_s)),
        backlog=_BACKLOG,
    )
    try:
        _Server(config, ready).run(sockets=[listener])
    except KeyboardInterrupt:
        return True
    finally:
        app.scheduler.close()
    return False


def _access_log(where: str | None) -> Callable[[str], object] | None:
    if where is None:
        return None
    try:
        file = sys.stderr if where == "-" else Path(where).open("a", buffering=1, encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise ServeError(f"--access-log {where}: {error}; give a file that can be written, or -") from error
    return lambda line: file.write(line + "\n")


class _Replicas:
    """The parent of the replicas: starts them, starts the dead anew, ends them. It loads no index itself."""

    def __init__(self, index: str | Path, service: Service, listener: socket.socket, token: str | None) -> None:
        self._index, self._service, self._listener, self._token = index, service, listener, token
        self._memory = shared_memory(service.replicas)
        self._context = multiprocessing.get_context("fork")
        self._running: dict[int, Any] = {}  # row -> process
        self._started: dict[int, float] = {}
        self._ended: int | None = None  # the signal

    def run(self, say: Callable[[str], object]) -> None:
        before = {number: signal.signal(number, self._end) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            self._serve(say)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _serve(self, say: Callable[[str], object]) -> None:
        pipes = {row: self._start(row) for row in range(self._service.replicas)}
        try:
            told = [_told(pipe, self._running[row]) for row, pipe in pipes.items()]
            if self._ended is None:
                say(_announce(self._service, self._listener, *told[0]))
            while self._ended is None:
                self._watch()
        finally:
            self._stop()
        if self._ended == signal.SIGINT:
            say("stopped")

    def _start(self, row: int) -> Connection:
        here, there = self._context.Pipe(duplex=False)
        args = (row, there, os.getpid())
        process = self._context.Process(target=self._replica, args=args, name=f"replica-{row}", daemon=True)
        process.start()
        there.close()
        self._running[row], self._started[row] = process, time.monotonic()
        return here

    def _replica(self, row: int, pipe: Connection, parent: int) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
        try:
            opened = open_index(self._index, self._service.opening, cache=0)
            warm_up(opened)
            metrics = Metrics(self._memory, row)
            ready = (len(opened), opened.kind)
            _run(opened, self._service, self._listener, self._token, metrics, lambda: pipe.send(ready))
        except RetrieverError as error:
            pipe.send(str(error))
        except BrokenPipeError:
            pass  # the parent is gone

    def _watch(self) -> None:
        """Wait a moment for one to die, and start it anew."""
        sentinels = {process.sentinel: row for row, process in self._running.items()}
        for sentinel in multiprocessing.connection.wait(list(sentinels), timeout=0.5):
            row = sentinels[sentinel]  # type: ignore[index]
            if self._ended is not None:
                return
            code = self._running[row].exitcode
            logging.getLogger("agentrl.retriever.server").warning("replica %d ended (%s); starting it anew", row, code)
            time.sleep(max(0.0, self._started[row] + _RESTART_PAUSE_S - time.monotonic()))
            self._start(row).close()

    def _end(self, number: int, frame: object) -> None:
        self._ended = number

    def _stop(self) -> None:
        for process in self._running.values():
            if process.is_alive() and process.pid:
                os.kill(process.pid, signal.SIGTERM)
        until = time.monotonic() + self._service.drain_s + 5
        for process in self._running.values():
            process.join(max(0.1, until - time.monotonic()))
            if process.is_alive():
                process.kill()


def _told(pipe: Connection, process: Any) -> tuple[int, str]:
    """What a replica says when it is ready; `ServeError` where it cannot start."""
    try:
        told = pipe.recv()
    except EOFError:
        process.join(5)
        raise ServeError(f"a replica ended at its start (exit code {process.exitcode}); its error is above") from None
    if isinstance(told, str):
        raise ServeError(told)
    return told[0], told[1]

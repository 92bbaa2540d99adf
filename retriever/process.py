"""An index with an encoder in a process of its own, for whoever trains in this one.

Encoding takes whole cores. Here it takes those it was given, and never the trainer's. The process serves a loopback
port; it ends with this one, also when that is killed, because its standard input then ends.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import IO

from agentrl.retriever.base import Searcher
from agentrl.retriever.client import RetrieverClient
from agentrl.retriever.errors import IndexOpenError
from agentrl.retriever.manifest import read
from agentrl.retriever.opening import open_index

_SHOWN = 2_000  # characters of what a process that did not start has printed
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def open_beside(
    path: str | Path, *, threads: int = 1, timeout_s: float = 10.0, wait_s: float = 60.0, say: Callable[[str], object]
) -> Searcher:
    """The index in a folder: in this process where it searches words, beside it where it encodes queries.

    `IndexOpenError` says why it cannot be opened, `RetrieverUnavailable` that it was not ready within `wait_s`.
    """
    folder = Path(path).expanduser().absolute()
    if read(folder).encoder is None:
        return open_index(folder)
    return IndexProcess(folder, threads=threads, timeout_s=timeout_s, wait_s=wait_s, say=say).client


class IndexProcess:
    """`retriever serve` as a child process; `client` is a searcher that keeps it alive."""

    def __init__(
        self, folder: Path, *, threads: int, timeout_s: float, wait_s: float, say: Callable[[str], object]
    ) -> None:
        """Start it and wait until it answers."""
        command = [sys.executable, "-m", "agentrl.retriever", "serve", str(folder), "--port", "0", "--follow-stdin"]
        environment = os.environ | dict.fromkeys(_THREADS, str(threads))
        root = str(Path(__file__).resolve().parent.parent)
        environment["PYTHONPATH"] = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
        log = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        self.process = subprocess.Popen(
            [*command, "--threads", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the trainer, which still searches while it stops
        )
        say(f"the index {folder} gets a process of its own, with {threads} encoding threads")
        url = self._url(folder, log)
        self.client = RetrieverClient(url, timeout_s=timeout_s)
        self._end = weakref.finalize(self.client, _end, self.process)
        self.client.wait_until_ready(wait_s, say=say)

    def _url(self, folder: Path, log: IO[str]) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        start = line.find("http://")
        if start < 0:
            self.process.wait()
            log.seek(0)
            reason = (log.read()[-_SHOWN:].strip().splitlines() or [line.strip() or "it printed nothing"])[-1]
            raise IndexOpenError(f"{folder}: its process did not start: {reason.removeprefix('error: ')}")
        return line[start:].split()[0]

    def close(self) -> None:
        """End the process; it also ends with the client, or with this process."""
        self._end()


def _end(process: subprocess.Popen[str]) -> None:
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()

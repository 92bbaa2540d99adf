"""Processes in which other people's environments live, shared by all environments of this process.

A process is started when it is first needed and again after it ended, with a pause that grows. Requests are JSON lines;
many episodes play in one process at a time. It ends with its standard input, and so with this process.
"""

from __future__ import annotations

import atexit
import itertools
import json
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

from agentrl.envs.errors import ToolFailure
from agentrl.errors import EnvError

SCRIPT = Path(__file__).resolve().parent / "host.py"
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
MAX_LINE = 64 << 20  # bytes of one answer; more ends the process
SHOWN = 600  # characters of what it wrote to stderr


class Hosted:
    """One process with one kind of environment. Futures raise ToolFailure where it fails, ends or never began."""

    def __init__(self, python: str, wanted: dict[str, Any]) -> None:
        self._command = [python, str(SCRIPT), json.dumps(wanted)]
        self._name = f"{wanted['shape']} environment {wanted['arguments'].get('env')!r}"
        self._lock = threading.Lock()
        self._numbers, self._sessions = itertools.count(1), itertools.count(1)
        self._process: subprocess.Popen[bytes] | None = None
        self._tail = b""  # of its stderr
        self._why = ""  # it ended the last time
        self._ready: Future[None] = Future()
        self._waiting: dict[int, Future[Any]] = {}
        self._failures, self._not_before, self._worked = 0, 0.0, False

    def session(self) -> int:
        """The number of another episode's environment."""
        return next(self._sessions)

    def ready(self) -> Future[None]:
        """Done when it can be asked. EnvError where it has never worked: its name or its interpreter is wrong."""
        with self._lock:
            if self._process is None:
                if (pause := self._not_before - time.monotonic()) > 0:
                    raise ToolFailure(f"the {self._name} is not there: {self._why}; the next start is in {pause:.1f} s")
                self._start()
            return self._ready

    def ask(self, session: int, do: str, **data: Any) -> Future[Any]:
        """What the session answers."""
        future: Future[Any] = Future()
        with self._lock:
            if self._process is None:
                raise ToolFailure(f"the {self._name} is not there: {self._why}")
            assert self._process.stdin is not None
            number = next(self._numbers)
            self._waiting[number] = future
            line = json.dumps({"id": number, "session": session, "do": do, "data": data}, default=str)
            with suppress(OSError):  # it has just ended: `_ended` tells the future why
                self._process.stdin.write(line.encode() + b"\n")
                self._process.stdin.flush()
        return future

    def close(self) -> None:
        """End the process."""
        with self._lock:
            process = self._process
        if process is not None:
            process.kill()

    # ------------------------------------------------------------------------------------------------------- internal

    def _start(self) -> None:
        self._ready = Future()
        self._tail = b""
        try:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        except OSError as error:
            raise EnvError(
                f"{self._command[0]} cannot be run ({error}); python= is the path of an interpreter"
            ) from error
        threading.Thread(target=self._listen, args=(self._process,), name="hosted", daemon=True).start()

    def _overhear(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            self._tail = (self._tail + line)[-SHOWN:]

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        overhearing = threading.Thread(target=self._overhear, args=(process,), name="hosted", daemon=True)
        overhearing.start()
        why = ""
        while (line := process.stdout.readline(MAX_LINE)).endswith(b"\n"):
            try:
                message = json.loads(line)
            except ValueError:
                why = f"it wrote what is no JSON: {line[:80]!r}"
                break
            if "id" in message:
                self._answer(message)
            elif message.get("ready"):
                self._failures, self._worked = 0, True
                self._ready.set_result(None)
            else:
                why = str(message.get("error"))
        process.kill()
        process.wait()
        overhearing.join(1.0)  # a child of its own may hold the pipe
        with suppress(OSError), process:  # closes the pipes
            pass
        said = self._tail.decode(errors="replace").strip()
        self._ended(why or f"it ended with exit code {process.returncode}{': ' + said if said else ''}")

    def _answer(self, message: dict[str, Any]) -> None:
        with self._lock:
            future = self._waiting.pop(message["id"], None)
        if future is None or future.cancelled():
            return
        with suppress(Exception):  # cancelled at this moment
            if "ok" in message:
                future.set_result(message["ok"])
            else:
                future.set_exception(ToolFailure(f"the {self._name}: {message.get('error')}"))

    def _ended(self, why: str) -> None:
        with self._lock:
            pause = min(FIRST_PAUSE_S * 2**self._failures, LONGEST_PAUSE_S)
            self._failures += 1
            self._process, self._not_before, self._why = None, time.monotonic() + pause, why
            waiting, self._waiting = self._waiting, {}
        text = f"the {self._name} is not there: {why}"
        if not self._ready.done():
            self._ready.set_exception(
                ToolFailure(text)
                if self._worked
                else EnvError(f"{text}; check env, its arguments, and python: the interpreter that has its package")
            )
        for future in waiting.values():
            with suppress(Exception):
                future.set_exception(ToolFailure(text))


_HOSTED: dict[str, Hosted] = {}
_LOCK = threading.Lock()


def hosted(python: str | None, shape: str, arguments: dict[str, Any], file: str = "shapes") -> Hosted:
    """This process's host of such environments. `python` is an interpreter; None is this one, in another process."""
    python = python or sys.executable
    wanted = {"file": file, "shape": shape, "arguments": arguments}
    key = json.dumps([python, wanted], sort_keys=True, default=str)
    with _LOCK:
        if not _HOSTED:
            atexit.register(_close_all)
        if key not in _HOSTED:
            _HOSTED[key] = Hosted(python, wanted)
        return _HOSTED[key]


def _close_all() -> None:
    for one in _HOSTED.values():
        one.close()

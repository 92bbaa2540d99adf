"""Python as a tool, in a process that has nothing: `tools: [python]`, or `Python(memory_mb=512)` in code.

The program sees no network, no files, no other process and no environment variable; memory, processor time, time and
output are limited. Each call has a process of its own, which `inside.py` shuts in before the program begins: Linux
namespaces, an empty root, limits and a filter of system calls. Where a machine cannot give all of that, the tool cannot
be made, and says why; it never runs a program without.

Left out: packages beyond the standard library, threads, and what is kept between calls.
"""

from __future__ import annotations

import asyncio
import json
import os
import selectors
import signal
import subprocess
import sys
import time
import weakref
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

from agentrl.envs.errors import ToolFailure
from agentrl.envs.functions import tool
from agentrl.envs.waiting import uncounted

INSIDE = Path(__file__).with_name("inside.py")
ISOLATED = b"isolated"
START_S = 60.0  # for the process to shut itself in, on a busy machine
MAX_PROGRAM = 100_000  # characters
PROBE = """
import ctypes, os
c = ctypes.CDLL(None)
tried = {"open": lambda: os.open("/etc/passwd", 0), "list": lambda: os.listdir("/"), "fork": os.fork,
         "kill": lambda: os.kill(1, 0), "socket": lambda: [][c.socket(2, 1, 0) == -1]}
for name, do in tried.items():
    try:
        do()
        print(name)
    except (OSError, IndexError):
        pass
print("shut", os.getpid())
"""


class NoIsolation(ValueError):
    """This machine cannot shut a program in; the text says what is missing."""


class Python:
    """Runs Python programs of a model. NoIsolation where this machine cannot shut them in.

    memory_mb: beside what the interpreter needs. cpu_s: seconds of processor time, a whole number. deadline_s: seconds
    by the clock, from when the program begins. output_characters: of what it prints; it is stopped beyond.
    """

    def __init__(
        self, *, memory_mb: int = 256, cpu_s: int = 5, deadline_s: float = 10.0, output_characters: int = 8_000
    ) -> None:
        if memory_mb < 1 or cpu_s < 1 or not deadline_s > 0 or output_characters < 1:
            raise ValueError(
                f"memory_mb = {memory_mb}, cpu_s = {cpu_s}, deadline_s = {deadline_s}, output_characters = "
                f"{output_characters}: each must be above 0, the first two and the last whole numbers"
            )
        self.deadline_s, self.output_characters, self.cpu_s = deadline_s, output_characters, cpu_s
        self._limits = json.dumps({"memory_mb": memory_mb, "cpu_s": cpu_s})
        if problem := missing_isolation():
            raise NoIsolation(problem)

    @tool
    async def python(self, code: str) -> str:
        """Run a Python program and read what it prints, or the value of its last line. Standard library alone.

        Args:
            code: the program
        """
        if len(code) > MAX_PROGRAM:
            return f"error: the program has {len(code)} characters; at most {MAX_PROGRAM} are run"
        with uncounted():
            await (slots := _slots()).acquire()
        try:
            return await self._run(code)
        finally:
            slots.release()

    async def _run(self, code: str) -> str:
        """On a thread. Where nobody waits any more, the program is ended."""
        with _started(self._limits) as process:
            try:
                return await asyncio.to_thread(self._watched, process, code)
            except asyncio.CancelledError:
                _kill(process)
                raise

    def _watched(self, process: subprocess.Popen[bytes], code: str) -> str:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        try:
            with suppress(BrokenPipeError), process.stdin:  # one that did not start reads nothing
                process.stdin.write(code.encode("utf-8", "surrogatepass"))
            said = _read(process.stderr, len(ISOLATED), START_S)[0]
            if said != ISOLATED:
                said += _read(process.stderr, 500, 1.0)[0]
                why = said.decode(errors="replace") or f"nothing was heard of it within {START_S:g} s"
                raise ToolFailure(f"the Python sandbox does not start: {why}")
            output, whole = _read(process.stdout, 4 * self.output_characters + 1, self.deadline_s)
            text = output.decode("utf-8", "replace")
            if len(output) > 4 * self.output_characters:  # bytes; a character has at most four
                return self._told(text, f"stopped: it printed more than {self.output_characters} characters")
            if not whole:
                return self._told(text, f"stopped: it ran longer than {self.deadline_s:g} s")
            return self._told(text, self._ended(process.wait(START_S)))
        finally:
            _kill(process)

    def _told(self, text: str, end: str) -> str:
        if len(text) > self.output_characters:
            text = text[: self.output_characters] + " …"
            end = end or f"only the first {self.output_characters} characters are shown"
        return "\n".join(part for part in (text.rstrip("\n"), end) if part) or "(nothing was printed)"

    def _ended(self, code: int) -> str:
        if code == 128 + signal.SIGKILL:
            return f"stopped: it used more than {self.cpu_s} s of processor time"
        return f"stopped: the interpreter crashed (signal {code - 128})" if code > 128 else ""


def _started(limits: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        _command(limits), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0, **_apart()
    )


def _read(pipe: IO[bytes], most: int, seconds: float) -> tuple[bytes, bool]:
    """At most so many bytes, for at most so long; and whether the other side has closed the pipe."""
    found, until = bytearray(), time.monotonic() + seconds
    with selectors.DefaultSelector() as ready:
        ready.register(pipe, selectors.EVENT_READ)
        while len(found) < most and (left := until - time.monotonic()) > 0:
            if ready.select(left):
                chunk = os.read(pipe.fileno(), most - len(found))
                if not chunk:
                    return bytes(found), True
                found += chunk
    return bytes(found), False


@cache
def missing_isolation() -> str:
    """What this machine lacks to shut a program in, tried once in a process; "" where nothing is missing."""
    try:
        limits = json.dumps({"memory_mb": 64, "cpu_s": 20})
        done = subprocess.run(
            _command(limits), input=PROBE.encode(), capture_output=True, timeout=START_S, check=False, **_apart()
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return _explained(f"its process does not run ({error})")
    if not done.stderr.startswith(ISOLATED):
        return _explained(done.stderr.decode(errors="replace").strip()[:300] or f"it ended with {done.returncode}")
    if done.stdout != b"shut 1\n":
        reached = ", ".join(done.stdout.decode(errors="replace").split()) or "nothing"
        return _explained(f"a program inside did what it must not ({reached})")
    return ""


def _explained(why: str) -> str:
    return (
        f"Python programs cannot be shut in on this machine: {why}. The tool needs Linux on x86-64 or ARM64 with user "
        "namespaces and seccomp (sysctl user.max_user_namespaces above 0, kernel.unprivileged_userns_clone=1, "
        "kernel.apparmor_restrict_unprivileged_userns=0; in a container a seccomp profile with unshare and mount). "
        "It does not run programs without: leave the tool out, or use another machine"
    )


def _command(limits: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-B", "-X", "utf8", str(INSIDE), limits]


def _apart() -> dict[str, Any]:
    """Of its own session, so that all of it can be ended; without this process's variables, which may hold keys."""
    return {"env": {"PATH": "/usr/bin:/bin"}, "cwd": "/", "start_new_session": True}


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End all of it; once more is harmless, and one that has ended is left alone."""
    if process.poll() is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


_of_loop: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = weakref.WeakKeyDictionary()


def _slots() -> asyncio.Semaphore:
    """As many programs at once as there are processors: more would only wait for each other inside their deadlines."""
    return _of_loop.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(max(2, os.cpu_count() or 1)))

"""Other people's environments in their own interpreter: JSON lines in on stdin, JSON lines out on stdout.

    python host.py '{"shape": "gem", "arguments": {"env": "game:GuessTheNumber-v0"}}'

First line out: {"ready": true} or {"error": TEXT}. Then each line in, {"id", "session", "do", "data"} with `do` one of
reset, step, close, tasks, is answered by {"id", "ok": ...} or {"id", "error": TEXT}. Each session has a thread of its
own. Ends with stdin. Runs on the standard library; what the environment prints goes to stderr.
"""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

HERE = Path(__file__).resolve().parent


class Host:
    """Sessions by number, and the way out that they share."""

    def __init__(self, make: Any, out: BinaryIO) -> None:
        self._make, self._out = make, out
        self._lock = threading.Lock()
        self._sessions: dict[int, queue.SimpleQueue[dict[str, Any] | None]] = {}

    def say(self, message: dict[str, Any]) -> None:
        """One line out."""
        line = json.dumps(message, default=str).encode() + b"\n"
        with self._lock:
            self._out.write(line)
            self._out.flush()

    def take(self, message: dict[str, Any]) -> None:
        """Hand a request to its session's thread, which begins with the first."""
        number = message["session"]
        if number not in self._sessions:
            self._sessions[number] = queue.SimpleQueue()
            threading.Thread(target=self._play, args=(self._sessions[number],), daemon=True).start()
        self._sessions[number].put(message)
        if message["do"] == "close":
            self._sessions.pop(number).put(None)

    def _play(self, requests: queue.SimpleQueue[dict[str, Any] | None]) -> None:
        env: Any = None
        while (message := requests.get()) is not None:
            try:
                if env is None:
                    env = self._make()
                self.say({"id": message["id"], "ok": getattr(env, message["do"])(**message["data"])})
            except BaseException as error:  # SystemExit, too: one environment must not end the others
                self.say({"id": message["id"], "error": f"{type(error).__name__}: {str(error)[:2000]}"})


def _sibling(name: str) -> Any:
    """A file of this folder, which must not stand on the path: its names would hide theirs."""
    known = sys.modules.get(f"agentrl_host_{name}")
    if known is not None:
        return known
    spec = importlib.util.spec_from_file_location(f"agentrl_host_{name}", HERE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _made(wanted: dict[str, Any]) -> Any:
    return _sibling(wanted["file"]).SHAPES[wanted["shape"]](**wanted["arguments"])


def main() -> None:
    """Serve the environment that the argument names until stdin ends."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.path[0] = os.getcwd()  # where a module of one's own is
    wanted = json.loads(sys.argv[1])
    host = Host(partial(_made, wanted), out)
    try:
        _made(wanted)  # so that a name that does not exist is said at once
    except BaseException as error:
        host.say({"error": f"{type(error).__name__}: {str(error)[:2000]}"})
        os._exit(1)
    host.say({"ready": True})
    for line in sys.stdin.buffer:
        host.take(json.loads(line))
    os._exit(0)  # environments left over may have threads of their own


if __name__ == "__main__":
    main()

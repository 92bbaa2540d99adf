"""Each alarm of a run is shown once and posted once: over rewrites and resumes of its log, and restarts of `watch`.

What was in a log when it was first watched is its past: shown, and posted to nobody. What the receivers have taken is
kept in a file of this user (`$XDG_STATE_HOME/agentrl/watch/`, one a log), so that a `watch` that is started again posts
what came up in between, what was not delivered, and nothing twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from agentrl.monitors import sinks
from agentrl.types import Alarm

RUNS = 20  # runs of one log that are remembered
IDS = 5000  # alarms of one run


class Memory:
    """Which alarms were told, by run, in a file; without one for the life of this process."""

    def __init__(self, file: Path | None = None) -> None:
        self.file = file
        self._lock = threading.Lock()  # a webhook tells what it delivered from its own thread
        self._runs: dict[str, dict[str, None]] = {}
        if file is not None:
            self._runs = _read(file)

    @classmethod
    def of(cls, path: str | Path) -> Memory:
        """The memory of the log at `path`, whatever the current folder."""
        root = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
        name = hashlib.sha256(os.path.abspath(Path(path).expanduser()).encode("utf-8", "surrogateescape")).hexdigest()
        return cls(Path(root).expanduser() / "agentrl" / "watch" / f"{name[:24]}.json")

    def knows(self, run: str) -> bool:
        """Whether this run was watched before."""
        return run in self._runs

    def has(self, run: str, what: str) -> bool:
        """Whether `what` was told."""
        return what in self._runs.get(run, {})

    def add(self, run: str, what: str | None = None) -> None:
        """Note that the run is watched, and that `what` was told. A file that cannot be written is named once."""
        with self._lock:
            ids = self._runs.pop(run, {})
            self._runs[run] = ids  # the latest last
            if what is not None:
                ids[what] = None
            for old in list(self._runs)[:-RUNS]:
                del self._runs[old]
            for old_id in list(ids)[:-IDS]:
                del ids[old_id]
            self._write()

    def _write(self) -> None:
        if self.file is None:
            return
        temporary = self.file.with_name(f".{self.file.name}.{os.getpid()}.tmp")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps({"runs": {k: list(v) for k, v in self._runs.items()}}))
            os.replace(temporary, self.file)
        except OSError as error:
            print(f"{self.file}: {error.strerror}; alarms may be posted again after a restart", file=sys.stderr)
            self.file = None


def _read(file: Path) -> dict[str, dict[str, None]]:
    """Whatever the file holds that can be understood."""
    try:
        runs: Any = json.loads(file.read_bytes())["runs"]
        return {str(k): dict.fromkeys(map(str, v)) for k, v in runs.items() if isinstance(v, list)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


class Teller:
    """A sink that shows each alarm once, and posts each once.

    `past` is set while what was there before is read: of a run that nobody watched before nothing is posted then.
    """

    def __init__(self, shown: Sequence[sinks.Sink], posted: Sequence[sinks.Sink], memory: Memory) -> None:
        self.shown, self.posted, self.memory = list(shown), list(posted), memory
        self.past = False
        self.past_step = -1  # the last step that was there before: complete only when the next one begins
        self._run = ""
        self._old = False  # the run was watched before
        self._ids: set[str] = set()

    def begin(self, run: str) -> None:
        """Another run: its alarms have the same ids, and are others."""
        self._run, self._ids = run, set()
        self._old = self.memory.knows(run) or not self.past
        if self.posted:
            self.memory.add(run)

    def __call__(self, alarm: Alarm) -> None:
        """Show and post it, unless that was done."""
        self._tell(alarm, self.past or alarm.step <= self.past_step)

    def notice(self, alarm: Alarm) -> None:
        """The same for what is no matter of a step: it is of now, whatever the last step is."""
        self._tell(alarm, self.past)

    def _tell(self, alarm: Alarm, past: bool) -> None:
        if alarm.id in self._ids:
            return
        self._ids.add(alarm.id)
        for show in self.shown:
            show(alarm)
        for number, post in enumerate(self.posted):
            what = f"{getattr(post, 'name', number)}:{alarm.id}"
            if self.memory.has(self._run, what):
                continue
            if past and not self._old:
                self.memory.add(self._run, what)
                continue
            self._post(post, alarm, what)

    def _post(self, post: sinks.Sink, alarm: Alarm, what: str) -> None:
        from agentrl.monitors.delivery import Webhook  # for who posts

        run, hook = self._run, getattr(post, "sink", post)
        if isinstance(hook, Webhook):
            hook.post(alarm, partial(self.memory.add, run, what))
            return
        before = getattr(post, "undelivered", 0)
        post(alarm)
        if getattr(post, "undelivered", 0) == before:
            self.memory.add(run, what)

    def close(self) -> list[str]:
        """Close all; a line for each end that did not deliver everything."""
        sinks.close([*self.shown, *self.posted])
        lines = []
        for post in self.posted:
            if missing := getattr(post, "undelivered", 0):
                total, reason = getattr(post, "total", missing), getattr(post, "reason", "")
                name = getattr(post, "name", "sink")
                lines.append(f"{name}: {missing} of {total} alarms not delivered{f' ({reason})' if reason else ''}")
        return lines

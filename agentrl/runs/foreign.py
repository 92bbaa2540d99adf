"""The run directory of somebody else's run: what `watch --to` and `import` write, so that the dashboard shows it.

It has the files of a run but no config: `meta.json` says under `imported` which log it comes from, and how to go on.
"""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from agentrl.errors import RunError
from agentrl.runs.files import RunLock, append_line, atomic_write, read_json, strict_json, writing
from agentrl.runs.log import RunLog
from agentrl.runs.read import CONFIG, LOCK, META, METRICS, STATUS, read_alarms
from agentrl.types import Alarm

MOST = 400  # columns of a log that are kept beside the canonical signals
CLOCKS = ("_timestamp", "timestamp", "time", "wall_time")  # last part of a column's name: seconds since 1970


class ForeignLog(RunLog):
    """Writes it. A name that holds a run of agentrl's own, or of another log, is refused."""

    @classmethod
    def at(cls, path: Path, source: str, *, say: Callable[[str], None] | None = None) -> ForeignLog:
        """Make or take over `path`, the run of the log `source`. RunError where it is not ours."""
        if (path / CONFIG).exists():
            raise RunError(f"{path} is a run of agentrl itself and is left alone; choose another name for --to")
        before = read_json(path / META).get("imported")
        if path.exists() and any(path.iterdir()) and not isinstance(before, dict):
            raise RunError(
                f"{path} exists and is not an imported run, so it is left alone; choose another name for --to"
            )
        if isinstance(before, dict) and before.get("source") != source:
            raise RunError(f"{path} holds another log, {before.get('source')}; choose another name for --to")
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
        lock = RunLock(path / LOCK)
        lock.acquire(str(path))
        log = cls(path, lock, say or print)
        log._old = {str(a["id"]) for a in read_alarms(path) if "id" in a}
        return log

    _old: set[str]

    def begin(self, source: str, kind: str, trainer: str | None, live: bool, gpus: int | None = None) -> None:
        """The first row of the log comes: the rows that were here before are read again. `gpus`: that the run uses."""
        self.live = live
        imported = {"source": source, "kind": kind, "trainer": trainer, "host": socket.gethostname()}
        meta = {"name": self.path.name, "imported": imported, "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        atomic_write(self.path / META, strict_json(meta | ({} if gpus is None else {"gpus": gpus})))
        self.again()
        self.state("running" if live else "finished", 0)

    def again(self) -> None:
        """Forget the rows."""
        atomic_write(self.path / METRICS, "")

    def row(self, step: int, metrics: Mapping[str, float], values: Mapping[str, float]) -> None:
        """One step: canonical signals, and the log's own columns beside them."""
        clocks = {k: v for k, v in values.items() if k.rsplit("/", 1)[-1] in CLOCKS and 1e9 < v < 1e11}
        when = next(iter(clocks.values()), time.time() if self.live else None)
        left = metrics.keys() | clocks.keys() | {"step", "time", "nonfinite"}
        more = {k: v for k, v in list(values.items())[:MOST] if k not in left}
        row: dict[str, Any] = {"step": step, **({} if when is None else {"time": round(when, 3)}), **more, **metrics}
        bad = [k for k, v in row.items() if isinstance(v, float) and not math.isfinite(v)]
        append_line(self.path / METRICS, row | {k: None for k in bad} | ({"nonfinite": bad} if bad else {}))

    def alarm(self, alarm: Alarm) -> None:
        """One row of alarms.jsonl, once: an import that is made again keeps what somebody acknowledged."""
        if alarm.id not in self._old:
            self._old.add(alarm.id)
            super().alarm(alarm)

    def state(self, status: str, step: int) -> None:
        """Replace status.json."""
        row = {"status": status, "step": step, "steps": None, "updated": round(time.time(), 3), "message": ""}
        atomic_write(self.path / STATUS, strict_json(row), durable=False)

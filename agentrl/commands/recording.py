"""Keeps what `watch` reads as run directories: NAME, and NAME-2 for the next run in the same log."""

from __future__ import annotations

import time
from pathlib import Path

from agentrl.errors import AgentRLError
from agentrl.monitors.watcher import Watcher
from agentrl.runs.foreign import ForeignLog
from agentrl.runs.others.store import RolloutImport
from agentrl.types import Alarm

STATE_S = 1.0
ROLLOUTS_S = 5.0  # how often others' rollouts are looked for


class RunRecorder:
    """A `watcher.Recorder` over `agentrl.runs.foreign`. `live`: the log is followed, so the run is running."""

    def __init__(
        self, path: Path, source: str, live: bool, rollouts: RolloutImport | None = None, gpus: int | None = None
    ) -> None:
        if path.name in ("", ".", ".."):
            raise AgentRLError(f"--to {path}: name the run directory to write, for example runs/NAME")
        self.path, self.source, self.live = path, str(Path(source).expanduser().absolute()), live
        self.log: ForeignLog = ForeignLog.at(path, self.source)
        self._watcher: Watcher | None = None
        self._runs, self._told, self._steps = 0, 0.0, -1
        self.rollouts, self.gpus, self._looked = rollouts, gpus, 0.0

    def begin(self, run: str, watcher: Watcher) -> None:
        """See `Recorder`."""
        self._watcher, self._runs = watcher, self._runs + 1
        if self._runs > 1:
            self._end("finished")
            self.log = ForeignLog.at(self.path.with_name(f"{self.path.name}-{self._runs}"), self.source)
        self.log.begin(self.source, watcher.source.kind, watcher.mapping.trainer, self.live, self.gpus)

    def again(self) -> None:
        """See `Recorder`."""
        if self._runs:
            self.log.again()

    def row(self, step: int, metrics: dict[str, float], values: dict[str, float]) -> None:
        """See `Recorder`."""
        self._steps = step
        self.log.row(step, metrics, values)

    def alarm(self, alarm: Alarm) -> None:
        """See `Recorder`."""
        if self._runs:
            self.log.alarm(alarm)

    def looked(self) -> None:
        """See `Recorder`."""
        if self.live and self._runs and time.monotonic() - self._told > STATE_S:
            self._told = time.monotonic()
            self.log.state("running", self._steps + 1)
        if self.live and time.monotonic() - self._looked > ROLLOUTS_S:
            self._read_rollouts()

    def _read_rollouts(self) -> None:
        """Into the present run: what was read for the one before stays there."""
        self._looked = time.monotonic()
        if self.rollouts is not None:
            self.rollouts.refresh(self.log.path)

    def close(self) -> None:
        """The watch ends. A live run may go on without us: nobody looks at it any more."""
        self._read_rollouts()
        if self._runs:
            self._end("stopped" if self.live else "finished")
        else:
            self.log.close()

    def _end(self, status: str) -> None:
        self.log.state(status, self._steps + 1)
        self.log.close()

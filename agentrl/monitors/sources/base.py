"""What all sources share: rows, number parsing, and putting rows of one step together."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentrl.monitors.signals import STEP_COLUMNS

_WORDS = {"nan": float("nan"), "inf": float("inf"), "infinity": float("inf"), "-inf": float("-inf")}
_WORDS["-infinity"] = float("-inf")


@dataclass(frozen=True)
class Row:
    """Some values of one step. `step` is None where the source does not say."""

    step: int | None
    values: dict[str, float]


NO, MAYBE, LIKELY, SURE = 0, 1, 2, 3  # how sure a format is that something is its own


@dataclass(frozen=True)
class Look:
    """What a format is shown to say whether it can read it."""

    path: Path
    head: bytes  # the first bytes of a file; empty for a directory
    is_dir: bool


class Source(ABC):
    """A growing record of metrics. A format of your own is a class like this (plug-in kind "log source").

    It is made with `(path, run)`; `run` is what `watch --run` names, for formats that hold several.
    """

    @classmethod
    def recognises(cls, look: Look) -> int:
        """NO, MAYBE, LIKELY or SURE: whether `look` is of this format. The surest of all formats reads it."""
        return NO

    def __init__(self, path: Path, kind: str) -> None:
        self.path, self.kind = path, kind
        self.problems: dict[str, int] = {}  # what could not be read -> how often

    #: How often the source began anew by itself; others are opened again when their `files` are not what they were.
    restarts = 0

    def files(self) -> list[Path]:
        """The files that only grow unless they are written anew; a database is none."""
        return [self.path] if self.path.is_file() else []

    def close(self) -> None:  # noqa: B027  most formats hold nothing
        """Give back what the source holds."""

    @abstractmethod
    def poll(self, final: bool = False) -> list[Row]:
        """Some of the rows that are new; none where all are read, so that a large file needs little memory.

        `final`: nothing more will be written, take an unfinished end too.
        """

    def problem(self, what: str) -> None:
        """Count something that could not be read."""
        self.problems[what] = self.problems.get(what, 0) + 1


class Tail:
    """New bytes of a growing file; starts over when the file was truncated or replaced."""

    def __init__(self, path: Path, chunk: int = 1 << 24) -> None:
        self.path, self.chunk = path, chunk
        self.offset = 0
        self._identity: tuple[int, int] | None = None
        self.restarts = 0

    def read(self) -> bytes:
        """At most `chunk` bytes from the current offset; advance with `offset`."""
        try:
            with open(self.path, "rb") as file:
                stat = os.fstat(file.fileno())
                identity = (stat.st_dev, stat.st_ino)
                if (self._identity is not None and identity != self._identity) or stat.st_size < self.offset:
                    self.offset = 0
                    self.restarts += 1
                self._identity = identity
                file.seek(self.offset)
                return file.read(self.chunk)
        except FileNotFoundError:  # between a rotation and the new file
            return b""


def number(value: Any) -> float | None:
    """A float for numbers and the words for NaN and infinity; None for everything else (None, text, booleans)."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, str):
        return _WORDS.get(value.strip().lower())
    return None


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Numbers of a nested mapping, keys joined by "/"; what is not a number is left out."""
    flat: dict[str, float] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}/"))
        elif (x := number(value)) is not None:
            flat[f"{prefix}{key}"] = x
    return flat


def step_of(values: Mapping[str, float]) -> int | None:
    """The step that a row names itself, under any of the usual column names."""
    for column in STEP_COLUMNS:
        for name in (column, f"train/{column}"):
            value = values.get(name)
            if value is not None and value == value and abs(value) < 1e15:
                return int(value)
    return None


class StepAssembler:
    """Merges rows of one step. A step is complete when a later one begins (or at `flush`).

    Trackers write a step in several rows (one per scalar in TensorBoard, training and evaluation apart elsewhere).
    A row for a step that is already complete is dropped and counted in `late`, unless it goes back so far that the run
    must have been restarted: then it begins a new stretch, and the monitors warm up again.
    """

    def __init__(self, slack: int = 1) -> None:
        self.slack = slack  # steps that a late row may be behind before it counts as a restart
        self.late = 0
        self._step: int | None = None
        self._values: dict[str, float] = {}
        self._done: int | None = None
        self._counter = 0

    def add(self, row: Row) -> list[Row]:
        """Take a row, return the steps that it completes (none or one)."""
        step = row.step
        if step is None:
            step, self._counter = self._counter, self._counter + 1
        if self._done is not None and self._step is None and self._done - self.slack < step <= self._done:
            self.late += 1
            return []
        if self._step is None or step == self._step:
            self._step = step
            self._values.update(row.values)
            return []
        if self._step - self.slack <= step < self._step:
            self.late += 1
            return []
        complete = self.flush()
        self._step, self._values = step, dict(row.values)
        return complete

    def flush(self) -> list[Row]:
        """The step in progress, if there is one."""
        if self._step is None:
            return []
        complete = [Row(self._step, self._values)]
        self._done, self._step, self._values = self._step, None, {}
        return complete

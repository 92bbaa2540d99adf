"""What all sources share: rows, number parsing, and putting rows of one step together."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from agentrl.monitors.signals import STEP_COLUMNS

LONGEST_NUMBER = 40  # characters of a number that is written as text


@dataclass(frozen=True)
class Row:
    """Some values of one step. `step` is None where the source does not say."""

    step: int | None
    values: dict[str, float]


NO, MAYBE, LIKELY, SURE = 0, 1, 2, 3  # how sure a format is that something is its own


HEAD = 4096  # bytes that are shown first
SEARCHED = 32 << 20  # bytes in which a format may look for a line of its own


@dataclass(frozen=True)
class Look:
    """What a format is shown to say whether it can read it."""

    path: Path
    head: bytes  # the first bytes of a file; empty for a directory
    is_dir: bool

    @property
    def text(self) -> str:
        """The head as text, whatever of the usual encodings it is in."""
        return self.head.decode(encoding_of(self.head), "replace").lstrip("\ufeff")

    def has(self, pattern: re.Pattern[bytes]) -> bool:
        """Whether the first part of the file matches: what a trainer prints first is seldom a metric."""
        if encoding_of(self.head) != "utf-8":
            return pattern.search(self._start.decode(encoding_of(self.head), "replace").encode()) is not None
        return pattern.search(self._start) is not None

    @cached_property
    def _start(self) -> bytes:
        if self.is_dir or len(self.head) < HEAD:
            return self.head
        with open(self.path, "rb") as file:
            return file.read(SEARCHED)


class Source(ABC):
    """A growing record of metrics. A format of your own is a class like this (plug-in kind "log source").

    It is made with `(path, run)`; `run` is what `watch --run` names, for formats that hold several.
    """

    #: What `watch --where` and `--step` ask for; `open_source` sets them.
    where: Mapping[str, str] = MappingProxyType({})
    step_names: tuple[str, ...] = STEP_COLUMNS
    left_out = 0  # rows that `where` left out

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

    @property
    def ended(self) -> bool:
        """Whether nothing more can come; a file may always grow."""
        return False

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

    def row(self, raw: Mapping[str, Any], step: int | None = None, *, sure: bool = False) -> Row | None:
        """The row of what was read; None where `watch --where` leaves it out or it has no number.

        `step`: what the format says; a column that the row names itself wins. `sure`: `raw` is numbers already, and
        the format's step wins over all columns but one that `watch --step` names.
        """
        for name, wanted in self.where.items():
            found = raw.get(name)
            if found is None or (str(found) != wanted and (number(found) is None or number(found) != number(wanted))):
                self.left_out += 1
                return None
        if sure and step is not None and self.step_names is STEP_COLUMNS:
            return Row(step, dict(raw))
        values = flatten(raw)
        if not values:
            return None
        own = step_of(values, self.step_names)
        return Row(own if own is not None else step, values)


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


def encoding_of(head: bytes) -> str:
    """UTF-16 where a byte-order mark, or zeros beside letters, say so; UTF-8 otherwise."""
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16-le" if head[0] == 0xFF else "utf-16-be"
    start = head[:64]
    if len(start) >= 8 and start[1::2].count(0) == len(start[1::2]) and 0 not in start[::2]:
        return "utf-16-le"
    return "utf-8"


def number(value: Any) -> float | None:
    """A float for numbers, also as text and in percent; None for everything else (None, other text, booleans)."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, str) and len(value) <= LONGEST_NUMBER:
        text = value.strip()
        try:
            return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            return None
    return None


def flatten(tree: Mapping[str, Any], prefix: str = "", depth: int = 8) -> dict[str, float]:
    """Numbers of a nested mapping, keys joined by "/"; what is not a number, or deeper than `depth`, is left out."""
    flat: dict[str, float] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            if depth:
                flat.update(flatten(value, f"{prefix}{key}/", depth - 1))
        elif (x := number(value)) is not None:
            flat[f"{prefix}{key}"] = x
    return flat


def step_of(values: Mapping[str, float], names: Sequence[str] = STEP_COLUMNS) -> int | None:
    """The step that a row names itself, under any of the usual column names."""
    for column in names:
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
        self.restarts = 0
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
        self.restarts += step < self._step
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

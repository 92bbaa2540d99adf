"""The rows of one run's metrics.jsonl, read as the file grows.

A place in the file is a *cursor* `OFFSET.CRC`: bytes read so far and the checksum of the last of them. A file that was
replaced or cut (a resume, `--force`, a run of the same name) no longer has that checksum there, so a reader that comes
back with a cursor gets exactly the rows after it, or hears that it must start again.

Of a file above `WHOLE` bytes the tail is read whole. Of the part before it every row is looked at and a choice is kept
(`agentrl.dashboard.thin`): the extremes of each signal in each stretch, every step that was not finite, others evenly.
What takes longer than `BUDGET_S` goes on at the next refresh; until then a plain sample stands for it.
"""

from __future__ import annotations

import math
import os
import time
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from agentrl.dashboard.thin import choose
from agentrl.monitors.alarms import series_of
from agentrl.monitors.phases import PhaseClassifier, PhaseState
from agentrl.monitors.stats import Series
from agentrl.runs.files import parse_line
from agentrl.runs.read import METRICS, read_guard

WHOLE = 24 << 20  # bytes: about 12 000 steps; reading and sending them takes about a second
TAIL = 3 << 20  # bytes at the end of a larger file that are read whole
SAMPLES = 3000  # rows taken evenly from what is before
STRETCHES = 48  # parts of which the extremes are kept
STRETCH = 16 << 20  # bytes of a part at most
WORKERS = 4  # threads that look at parts
BUDGET_S = 1.4  # seconds a refresh
ANCHOR = 256  # bytes under the checksum of a cursor
LINE = 1 << 16  # longest line looked for when sampling
AT_ONCE = 1000  # rows classified per refresh, at most
AT_LEAST = 200  # and at least: about 0.1 s
CLASSIFY_S = 0.15  # and for so long
PHASE_SIGNALS = ("logprob_correct", "reward", "entropy", "grad_norm", "delta_correct")

Row = dict[str, Any]


class History:
    """`rows` are plain: step, time, tokens, signals as float or None (not finite). Not thread-safe.

    Classifying phases costs up to half a millisecond per row, so that a refresh does `AT_LEAST` of them, and more up to
    `AT_ONCE` in `CLASSIFY_S`, and the next ones go on: `bands` may end before the rows do.
    """

    def __init__(self, run: Path) -> None:
        self.run, self.file = run, run / METRICS
        self._clear()

    def _clear(self) -> None:
        self.rows: list[Row] = []
        self.ends: list[int] = []  # offset in the file after each row
        self.offset = 0
        self.anchor = 0
        self.partial = 0  # bytes of an unfinished last line
        self.sampled_bytes = 0  # at the start of the file, of which only a choice of rows is kept
        self.unseen_bytes = 0  # of these, not looked at yet
        self.thinned: dict[str, list[int]] = {}  # signal -> steps, of rows that are not kept, where it was not finite
        self._parts: list[_Part] = []
        self._head = 0  # rows of `sampled_bytes`
        self._looked = 0  # how often more of the file was looked at: rows in the middle are others then
        self.unreadable = 0  # lines
        self.classified = 0  # rows whose phase is known
        self.bands: list[dict[str, Any]] = []
        self.phase = PhaseState("warmup", 0, False, None)
        self._rollbacks: set[int] = set()  # steps after which the guard took back the weights
        self._series: dict[str, Series] = {}
        self._phases = PhaseClassifier()

    # ------------------------------------------------------------------------------------------------------- reading

    @property
    def cursor(self) -> str:
        """Where reading has come to."""
        return f"{self.offset}.{self._sign(self.anchor)}"

    def _sign(self, checksum: int) -> str:
        return f"{checksum:08x}" + (f"-{self._looked}" if self._looked else "")

    def refresh(self, phases: bool = True) -> None:
        """Take in what was appended; start again if the file is not the one it was. A missing file has no rows.

        `phases`: classify some of the rows as well.
        """
        try:
            with self.file.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < self.offset or _checksum(file.fileno(), self.offset) != self.anchor:
                    self._clear()
                if self.offset == 0 and size > WHOLE:
                    self._sample(file.fileno(), size - TAIL)
                elif self.unseen_bytes:
                    self._look(file.fileno())
                    self._looked += 1
                file.seek(self.offset)
                data = file.read(size - self.offset)
        except FileNotFoundError:
            if self.offset:
                self._clear()
            return
        end = data.rfind(b"\n") + 1
        if end:  # an action is on the disk before the rows of the next step
            self._rollbacks = {r["step"] for r in read_guard(self.run) if r.get("kind") == "rollback" and "step" in r}
        at = self.offset
        for line in data[:end].splitlines(keepends=True):
            at += len(line)
            self._take(line, at)
        self.partial = len(data) - end
        if end:
            self.offset += end
            self.anchor = zlib.crc32(data[max(0, end - ANCHOR) : end])
            if end < min(ANCHOR, self.offset):  # the checksum reaches back before what was just read
                with self.file.open("rb") as file:
                    self.anchor = _checksum(file.fileno(), self.offset)
        if phases:
            self.classify(AT_ONCE)

    def since(self, cursor: str | None) -> list[Row] | None:
        """The rows after `cursor`, or None where that place is not in this file (any more). Call `refresh` first."""
        offset, _, crc = (cursor or "").partition(".")
        if not offset.isdigit() or int(offset) > self.offset:
            return None
        start = int(offset)
        if start == 0:
            return self.rows
        try:
            with self.file.open("rb") as file:
                if self._sign(_checksum(file.fileno(), start)) != crc:
                    return None
        except OSError:
            return None
        first = next((i for i, end in enumerate(self.ends) if end > start), len(self.ends))
        return self.rows[first:]

    def _sample(self, fd: int, end: int) -> None:
        """A choice of the rows of the first `end` bytes; reading goes on after that."""
        block = os.pread(fd, LINE, end)
        end += block.find(b"\n") + 1
        size = min(STRETCH, max(1, end // STRETCHES))
        at = 0
        while at < end:
            stop = min(end, at + size)
            if stop < end:
                stop += os.pread(fd, LINE, stop).find(b"\n") + 1
            self._parts.append(_Part(at, stop))
            at = stop
        self.offset = self.sampled_bytes = end
        self.anchor = _checksum(fd, self.offset)
        self._look(fd)

    def _look(self, fd: int) -> None:
        """Choose the rows of further parts, as far as the time allows; the largest gaps are filled by a sample."""
        until = time.monotonic() + BUDGET_S
        each = max(1, SAMPLES // len(self._parts))

        def choose(part: _Part) -> None:
            if time.monotonic() < until:
                part.choose(os.pread(fd, part.stop - part.start, part.start), each)

        left = [part for part in self._parts if not part.chosen]
        with ThreadPoolExecutor(min(WORKERS, os.cpu_count() or 1)) as pool:  # reading JSON with pyarrow needs no lock
            list(pool.map(choose, left))
        for part in left:
            if not part.chosen and not part.rows:
                part.sample(fd, each)
        self.unseen_bytes = sum(p.stop - p.start for p in self._parts if not p.chosen)
        self._join()

    def _join(self) -> None:
        """Put the parts' rows before those that were read whole."""
        rows, ends, known = self.rows[self._head :], self.ends[self._head :], max(0, self.classified - self._head)
        self.rows, self.ends, self.thinned = [], [], {}
        for part in self._parts:
            for row, end in part.rows:
                self._put(row, end)
            for name, steps in part.nonfinite.items():
                self.thinned.setdefault(name, []).extend(steps)
        if rows and self.rows:
            self._drop(rows[0]["step"])
        self._head = len(self.rows)
        self.classified = self._head + known  # phases are defined on successive steps
        self.rows += rows
        self.ends += ends

    def _take(self, line: bytes, end: int) -> None:
        raw = parse_line(line)
        step = raw.get("step") if raw else None
        if raw is None or not isinstance(step, int) or isinstance(step, bool):
            self.unreadable += bool(line.strip())
            return
        if self.rows and self.rows[-1]["step"] >= step:  # a second attempt at these steps: the newer one counts
            self._drop(step)
            self._head = min(self._head, len(self.rows))
            self._forget_phases(step)
        self._put(clean_row(raw), end)

    def _put(self, row: Row, end: int) -> None:
        self._drop(row["step"])
        self.rows.append(row)
        self.ends.append(end)

    def _drop(self, step: int) -> None:
        """Without the rows from `step` on."""
        while self.rows and self.rows[-1]["step"] >= step:
            self.rows.pop()
            self.ends.pop()

    def nonfinite(self, rows: list[Row] | None = None) -> dict[str, list[int]]:
        """Signal -> steps at which it was NaN or infinite: of `rows`, or of all, those that are not kept among them."""
        found = nonfinite_steps(self.rows if rows is None else rows)
        if rows is not None:
            return found
        names = dict.fromkeys([*found, *self.thinned])
        return {name: sorted({*found.get(name, ()), *self.thinned.get(name, ())}) for name in names}

    # -------------------------------------------------------------------------------------------------------- phases

    def classify(self, most: int | None = None) -> None:
        """Go on with the phases; all that are missing, or `most` of them."""
        end = len(self.rows) if most is None else min(len(self.rows), self.classified + most)
        until = math.inf if most is None else time.monotonic() + CLASSIFY_S
        least = self.classified + AT_LEAST
        while self.classified < end and (self.classified < least or time.monotonic() < until):
            i = self.classified
            self._classify(self.rows[i], self.rows[i - 1]["step"] if i else None)
            self.classified += 1

    def _classify(self, row: Row, before: int | None) -> None:
        if before is not None and any(before <= step < row["step"] for step in self._rollbacks):
            self._series, self._phases = {}, PhaseClassifier()  # as the run's own monitor does
        for name in PHASE_SIGNALS:
            value = row.get(name)
            if value is not None:
                self._series.setdefault(name, series_of(name)).push(row["step"], value)
        self.phase = self._phases.observe(row["step"], self._series)
        if not self.bands or self.bands[-1]["phase"] != self.phase.phase:
            fresh = not self.bands or self.phase.phase == "warmup"
            start = row["step"] if fresh else max(self.phase.since, self.bands[-1]["from"] + 1)
            if self.bands:  # a phase is announced some steps after it began
                self.bands[-1]["to"] = start - 1
            self.bands.append({"phase": self.phase.phase, "from": start})
        self.bands[-1]["to"] = row["step"]

    def _forget_phases(self, step: int) -> None:
        if self.classified <= len(self.rows):
            return
        self.classified = len(self.rows)
        self._series, self._phases = {}, PhaseClassifier()
        self.bands = [b for b in self.bands if b["from"] < step]
        for band in self.bands:
            band["to"] = min(band["to"], step - 1)


class _Part:
    """Bytes `start` to `stop` of the file, whole lines: the rows that are kept of them, with their ends."""

    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop, self.chosen = start, stop, False
        self.rows: list[tuple[Row, int]] = []
        self.nonfinite: dict[str, list[int]] = {}

    def choose(self, block: bytes, even: int) -> None:
        """All rows are looked at."""
        spans, self.nonfinite = choose(block, even, first=self.start == 0)
        self.rows = [one for a, b in spans if (one := self._row(block[a:b], b)) is not None]
        self.chosen = True

    def sample(self, fd: int, count: int) -> None:
        """`count` rows at about evenly spaced places."""
        stride, last = max(1, (self.stop - self.start) // count), self.start
        for at in range(self.start, self.stop, stride):
            block = os.pread(fd, min(LINE, self.stop - at), at)
            begin = 0 if at == self.start else block.find(b"\n") + 1
            stop = block.find(b"\n", begin) + 1
            if stop > 0 and (at == self.start or begin > 0) and at + begin >= last:
                last = at + stop
                if (one := self._row(block[begin:stop], last - self.start)) is not None:
                    self.rows.append(one)

    def _row(self, line: bytes, end: int) -> tuple[Row, int] | None:
        raw = parse_line(line)
        step = raw.get("step") if raw else None
        if raw is None or not isinstance(step, int) or isinstance(step, bool):
            return None
        return clean_row(raw), self.start + end


def clean_row(raw: Mapping[str, Any]) -> Row:
    """The numbers of a row: not finite becomes None, absent stays absent, what is no number is dropped."""
    named = raw.get("nonfinite")
    bad = {n for n in named if isinstance(n, str)} if isinstance(named, list) else set()
    row: Row = {"step": raw["step"]}
    for name, value in raw.items():
        if type(value) is float:  # nearly all are: asked first, and quickly
            row[name] = value if math.isfinite(value) else None
        elif isinstance(value, int | float) and not isinstance(value, bool) and name != "step":
            try:
                row[name] = float(value) if math.isfinite(value) else None
            except OverflowError:  # an integer that no float holds
                row[name] = None
        elif value is None and name in bad:
            row[name] = None
    return row


def columns(rows: list[Row]) -> dict[str, list[float | None]]:
    """Rows as columns of equal length; None for not measured and for not finite (see `nonfinite_steps`)."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def nonfinite_steps(rows: list[Row]) -> dict[str, list[int]]:
    """Signal -> steps at which it was NaN or infinite."""
    out: dict[str, list[int]] = {}
    for row in rows:
        for name, value in row.items():
            if value is None:
                out.setdefault(name, []).append(row["step"])
    return out


def _checksum(fd: int, offset: int) -> int:
    size = min(ANCHOR, offset)
    return zlib.crc32(os.pread(fd, size, offset - size))

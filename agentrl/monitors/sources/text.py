"""JSON lines, CSV and the JSON file of a transformers trainer."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

from agentrl.monitors.sources.base import Row, Source, Tail, flatten, step_of


class _Lines(Source):
    """Whole lines of a growing text file. A last line without its end waits for the rest."""

    def __init__(self, path: Path, kind: str) -> None:
        super().__init__(path, kind)
        self._tail = Tail(path)

    def _restarted(self) -> None:
        """The file was truncated or replaced."""

    def poll(self, final: bool = False) -> list[Row]:
        """See `Source.poll`."""
        rows: list[Row] = []
        while True:
            restarts = self._tail.restarts
            data = self._tail.read()
            if self._tail.restarts != restarts:
                self.problem("the file was truncated or replaced; reading it from the start")
                self._restarted()
            end = data.rfind(b"\n") + 1
            if end == 0 and len(data) == self._tail.chunk:  # a line longer than a chunk is not a metric
                self.problem("a line of more than 16 MiB was skipped")
                self._tail.offset += len(data)
                continue
            if end == 0 and not (final and data):
                return rows
            block = data if end == 0 else data[:end]
            self._tail.offset += len(block)
            for line in block.decode("utf-8", "replace").splitlines():
                row = self._row(line) if line.strip() else None
                if row is not None:
                    rows.append(row)
            if rows and len(data) == self._tail.chunk:  # the rest at the next call
                return rows

    def _row(self, line: str) -> Row | None:
        raise NotImplementedError


class JsonLines(_Lines):
    """One object per line; nested objects are flattened (verl's file logger writes {"step": 1, "data": {...}})."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "JSONL")

    def _row(self, line: str) -> Row | None:
        try:
            parsed = json.loads(line)
        except (ValueError, RecursionError):
            self.problem("line is not JSON")
            return None
        if not isinstance(parsed, dict):
            self.problem("line is not a JSON object")
            return None
        values = flatten(parsed)
        broken = parsed.get("nonfinite")  # how a run directory writes what JSON has no word for
        if isinstance(broken, list):
            values |= {name: math.nan for name in broken if isinstance(name, str)}
        return Row(step_of(values), values) if values else None


class Csv(_Lines):
    """A header and one row per step. A repeated or changed header line starts new columns."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "CSV")
        self._delimiter = "\t" if path.suffix == ".tsv" else ","
        self._header: list[str] | None = None

    def _restarted(self) -> None:
        self._header = None

    def _row(self, line: str) -> Row | None:
        cells = next(csv.reader([line], delimiter=self._delimiter))
        numbers = [_cell(c) for c in cells]
        named = [c for c, n in zip(cells, numbers) if n is None and c.strip()]
        if self._header is None or (len(named) > len(cells) / 2 and not any(n is not None for n in numbers)):
            self._header = [c.strip() for c in cells]
            return None
        if len(cells) > len(self._header):
            self.problem("row has more cells than the header")
            return None
        values = {name: n for name, n in zip(self._header, numbers) if n is not None and name}
        return Row(step_of(values), values) if values else None


def _cell(text: str) -> float | None:
    """A number, or None for an empty cell or text. "nan" is a measured NaN, an empty cell is a missing value."""
    try:
        return float(text)
    except ValueError:
        return None


class TrainerState(Source):
    """`trainer_state.json` of a transformers or TRL run: read again whenever it was rewritten."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "trainer_state.json")
        self._stamp: tuple[int, int] | None = None
        self._seen = 0

    def poll(self, final: bool = False) -> list[Row]:
        """See `Source.poll`."""
        try:
            stat = self.path.stat()
            if (stat.st_mtime_ns, stat.st_size) == self._stamp:
                return []
            history: Any = json.loads(self.path.read_bytes()).get("log_history", [])
        except FileNotFoundError:
            return []
        except (ValueError, AttributeError):
            self.problem("the file is not a complete JSON object (yet)")
            return []
        self._stamp = (stat.st_mtime_ns, stat.st_size)
        if len(history) < self._seen:
            self._seen = 0
        new, self._seen = history[self._seen :], len(history)
        rows = [flatten(entry) for entry in new if isinstance(entry, dict)]
        return [Row(step_of(values), values) for values in rows if values]

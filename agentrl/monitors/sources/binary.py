"""TensorBoard event files, W&B offline runs and trackio databases."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path

from agentrl.errors import RunError
from agentrl.monitors import wire
from agentrl.monitors.sources.base import Row, Source, Tail, flatten, step_of

WANDB_CHUNK = 1 << 26  # bytes read at once, a multiple of the block


class TensorBoard(Source):
    """All event files of one directory (a restarted run adds files), or one file."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "TensorBoard")
        self._tails: dict[Path, Tail] = {}

    def _files(self) -> list[Path]:
        if self.path.is_file():
            return [self.path]
        return sorted(self.path.glob("*tfevents*"), key=lambda p: p.name)  # names begin with the time

    def poll(self, final: bool = False) -> list[Row]:
        """See `Source.poll`."""
        rows: list[Row] = []
        for file in self._files():
            tail = self._tails.setdefault(file, Tail(file))
            while True:
                data = tail.read()
                records, used = wire.tfrecords(data)
                if not records:
                    if len(data) == tail.chunk:
                        self.problem(f"{file.name}: a record is too long or the file is damaged; the rest is skipped")
                        tail.offset += len(data)
                        continue
                    break
                tail.offset += used
                for record in records:
                    self._take(record, rows)
                if rows and len(data) == tail.chunk:  # the rest at the next call
                    return rows
        return rows

    def _take(self, record: bytes, rows: list[Row]) -> None:
        try:
            step, values = wire.event_scalars(record)
        except ValueError:
            self.problem("record is not an event")
            return
        if values:
            rows.append(Row(step, values))


class Wandb(Source):
    """A `.wandb` file as W&B writes it beside (or instead of) uploading. Evaluation keys keep their names."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "W&B")
        self._offset = wire.WANDB_START

    def poll(self, final: bool = False) -> list[Row]:
        """See `Source.poll`."""
        while True:
            records, more = self._read()
            rows = [row for record in records if (row := self._row(record)) is not None]
            if rows or not more:
                return rows

    def _read(self) -> tuple[list[bytes], bool]:
        """The next whole records, and whether the file goes on behind the bytes that were read."""
        try:
            with open(self.path, "rb") as file:
                if os.fstat(file.fileno()).st_size < self._offset:
                    self.problem("the file was truncated; reading it from the start")
                    self._offset = wire.WANDB_START
                base = self._offset - self._offset % wire.BLOCK
                file.seek(base)
                data = file.read(WANDB_CHUNK)
        except FileNotFoundError:
            return [], False
        records, end = wire.leveldb_records(data, self._offset - base)
        full = len(data) == WANDB_CHUNK
        if full and not records:
            self.problem("a record is too long or the file is damaged; the rest is skipped")
            end = len(data)
        self._offset = base + end
        return records, full

    def _row(self, record: bytes) -> Row | None:
        try:
            history = wire.wandb_history(record)
        except ValueError:
            self.problem("record is not a W&B record")
            return None
        if history is None or not history[1]:
            return None
        own, values = history
        named = step_of({k: v for k, v in values.items() if k != "_step"})
        return Row(named if named is not None else own, values)


class Trackio(Source):
    """One run of a trackio project database, opened read-only.

    `run`: its name; by default the run that wrote last.
    """

    def __init__(self, path: Path, run: str | None = None) -> None:
        super().__init__(path, "trackio")
        self._last = 0
        self.run = run

    def poll(self, final: bool = False) -> list[Row]:
        """See `Source.poll`; a database that is locked at this moment gives no rows."""
        try:
            with sqlite3.connect(f"{self.path.resolve().as_uri()}?mode=ro", uri=True, timeout=2) as db:
                if self.run is None:
                    self.run = self._latest(db)
                    if self.run is None:
                        return []
                found = db.execute(
                    "SELECT id, step, metrics FROM metrics WHERE run_name = ? AND id > ? ORDER BY id",
                    (self.run, self._last),
                ).fetchall()
        except sqlite3.OperationalError as error:
            self.problem(f"database: {error}")
            return []
        except sqlite3.DatabaseError as error:
            raise RunError(f"{self.path} is not a trackio database: {error}") from error
        rows = []
        for identity, step, text in found:
            self._last = identity
            try:
                values = flatten(json.loads(text))
            except (ValueError, AttributeError):
                self.problem("row is not JSON")
                continue
            if values:
                named = step_of(values)
                rows.append(Row(named if named is not None else step, values))
        return rows

    def _latest(self, db: sqlite3.Connection) -> str | None:
        row = db.execute("SELECT run_name FROM metrics ORDER BY id DESC LIMIT 1").fetchone()
        return str(row[0]) if row else None

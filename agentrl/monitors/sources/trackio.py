"""trackio databases."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

from agentrl.errors import RunError
from agentrl.monitors.sources.base import NO, SURE, Look, Row, Source


class Trackio(Source):
    """One run of a trackio project database, opened read-only.

    `run`: its name; by default the run that wrote last.
    """

    def __init__(self, path: Path, run: str | None = None) -> None:
        super().__init__(path, "trackio")
        self._last = 0
        self.run = run

    @classmethod
    def recognises(cls, look: Look) -> int:
        """By name or first bytes."""
        named = look.path.suffix in (".db", ".sqlite", ".sqlite3") and not look.is_dir
        return SURE if named or look.head.startswith(b"SQLite format 3\0") else NO

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
                row = self.row(json.loads(text), step)
            except (ValueError, AttributeError):
                self.problem("row is not JSON")
                continue
            if row is not None:
                rows.append(row)
        return rows

    def _latest(self, db: sqlite3.Connection) -> str | None:
        row = db.execute("SELECT run_name FROM metrics ORDER BY id DESC LIMIT 1").fetchone()
        return str(row[0]) if row else None

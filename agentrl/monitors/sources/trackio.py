"""trackio databases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from agentrl.errors import RunError
from agentrl.monitors.sources.base import NO, SURE, Look, Row, Source

if TYPE_CHECKING:
    import sqlite3


class Trackio(Source):
    """One run of a trackio project database, opened read-only.

    `run`: its name; by default the run that wrote last.
    """

    def __init__(self, path: Path, run: str | None = None) -> None:
        super().__init__(path, "trackio")
        self._last, self._text = 0, ""  # id and content of the last row that was read
        self._newest = run is None  # follow the run that began last
        self.run = run

    def files(self) -> list[Path]:
        """None: a database is changed in the middle."""
        return []

    @classmethod
    def recognises(cls, look: Look) -> int:
        """By name or first bytes."""
        named = look.path.suffix in (".db", ".sqlite", ".sqlite3") and not look.is_dir
        return SURE if named or look.head.startswith(b"SQLite format 3\0") else NO

    def poll(self, final: bool = False) -> list[Row]:
        """See `Source.poll`; a database that is locked at this moment gives no rows."""
        import sqlite3  # every format is imported when a log is looked at, few are databases

        try:
            with sqlite3.connect(f"{self.path.resolve().as_uri()}?mode=ro", uri=True, timeout=2) as db:
                self._check(db)
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
            self._last, self._text = identity, text
            try:
                row = self.row(json.loads(text), step)
            except (ValueError, AttributeError):
                self.problem("row is not JSON")
                continue
            if row is not None:
                rows.append(row)
        return rows

    def _check(self, db: sqlite3.Connection) -> None:
        """Begin at the first row of another run: a newer one, or one whose rows are not those that were read."""
        run = self.run
        if self._newest and (newer := self._newer(db)) is not None:
            run = newer
        found = db.execute("SELECT metrics FROM metrics WHERE id = ?", (self._last,)).fetchone()
        if run != self.run or (self._last and (found is None or found[0] != self._text)):
            self.restarts += self._last > 0
            self.run, self._last, self._text = run, 0, ""

    def _newer(self, db: sqlite3.Connection) -> str | None:
        """The run that wrote last, at first; then one whose first row is later than all of ours so far."""
        if self.run is None:
            return self._latest(db)
        began = "SELECT run_name FROM metrics GROUP BY run_name ORDER BY MIN(id) DESC LIMIT 1"
        row = db.execute(began).fetchone()
        name = str(row[0]) if row else None
        later = "SELECT MIN(id) FROM metrics WHERE run_name = ?"
        first, ours = (db.execute(later, (n,)).fetchone()[0] for n in (name, self.run))
        return name if name is not None and (ours is None or first > ours) else None

    def _latest(self, db: sqlite3.Connection) -> str | None:
        row = db.execute("SELECT run_name FROM metrics ORDER BY id DESC LIMIT 1").fetchone()
        return str(row[0]) if row else None

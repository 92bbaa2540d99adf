"""MLflow: a run's folder of a file store, or the database of a store.

File store: `metrics/NAME`, lines of `TIME VALUE STEP`. Database: the table `metrics` (key, value, step, run_uuid).
"""

from __future__ import annotations

from pathlib import Path

from agentrl.errors import RunError
from agentrl.monitors.sources.base import NO, SURE, Look, Row, Source, Tail, number


class Mlflow(Source):
    """Metrics are written one by one; the steps that all of them have reached are complete."""

    def __init__(self, path: Path, run: str | None = None) -> None:
        super().__init__(path, "MLflow")
        self.run = run
        self._tails: dict[Path, Tail] = {}
        self._last = 0

    @classmethod
    def recognises(cls, look: Look) -> int:
        """A folder with `metrics/` and `meta.yaml`, or a database with MLflow's tables."""
        if look.is_dir:
            return SURE if (look.path / "metrics").is_dir() and (look.path / "meta.yaml").is_file() else NO
        return SURE if look.head.startswith(b"SQLite format 3\0") and _is_store(look.path) else NO

    def poll(self, final: bool = False) -> list[Row]:
        """See `Source.poll`."""
        steps = self._folder() if self.path.is_dir() else self._database()
        rows = (self.row(values, step) for step, values in sorted(steps.items()))
        return [row for row in rows if row is not None]

    def _folder(self) -> dict[int, dict[str, float]]:
        steps: dict[int, dict[str, float]] = {}
        root = self.path / "metrics"
        for file in sorted(p for p in root.rglob("*") if p.is_file()):
            tail = self._tails.setdefault(file, Tail(file))
            data = tail.read()
            end = data.rfind(b"\n") + 1
            tail.offset += end
            for line in data[:end].decode("utf-8", "replace").splitlines():
                parts = line.split()
                value = number(parts[1]) if len(parts) >= 2 else None
                if value is None or not parts[-1].lstrip("-").isdigit():
                    self.problem("line is not TIME VALUE STEP")
                    continue
                step = int(parts[2]) if len(parts) > 2 else 0
                steps.setdefault(step, {})[file.relative_to(root).as_posix()] = value
        return steps

    def _database(self) -> dict[int, dict[str, float]]:
        import sqlite3

        steps: dict[int, dict[str, float]] = {}
        try:
            with sqlite3.connect(f"{self.path.resolve().as_uri()}?mode=ro", uri=True, timeout=2) as db:
                runs = [
                    r[0] for r in db.execute("SELECT run_uuid, MAX(timestamp) t FROM metrics GROUP BY 1 ORDER BY t")
                ]
                if self.run is None and runs:
                    self.run = str(runs[-1])
                if self.run is not None and runs and self.run not in runs:
                    raise RunError(f"{self.path} has no run {self.run!r}; it holds {', '.join(map(str, runs[:5]))}")
                found = db.execute(
                    "SELECT rowid, key, value, is_nan, step FROM metrics WHERE run_uuid = ? AND rowid > ? "
                    "ORDER BY rowid",
                    (self.run, self._last),
                ).fetchall()
        except sqlite3.OperationalError as error:
            self.problem(f"database: {error}")
            return {}
        for identity, key, value, is_nan, step in found:
            self._last = identity
            steps.setdefault(int(step), {})[str(key)] = float("nan") if is_nan else float(value)
        return steps


def _is_store(path: Path) -> bool:
    import sqlite3

    try:
        with sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=2) as db:
            return bool(db.execute("SELECT 1 FROM pragma_table_info('metrics') WHERE name = 'run_uuid'").fetchone())
    except sqlite3.Error:
        return False

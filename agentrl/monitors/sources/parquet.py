"""Parquet tables: one row a step, columns as in a CSV. pyarrow reads them; it comes with the extra `train`."""

from __future__ import annotations

from pathlib import Path

from agentrl.errors import RunError, need
from agentrl.monitors.sources.base import NO, SURE, Look, Row, Source

MAGIC = b"PAR1"
ROWS = 1000  # read at once


class Parquet(Source):
    """A file is complete with its footer, and is read again whenever it was rewritten; old rows are not given again."""

    def __init__(self, path: Path, run: str | None = None) -> None:
        need(f"{path}: reading Parquet", "pyarrow")
        super().__init__(path, "Parquet")
        self._stamp: tuple[int, int] | None = None
        self._seen = 0

    @classmethod
    def recognises(cls, look: Look) -> int:
        """By its first bytes."""
        return SURE if look.head.startswith(MAGIC) else NO

    def poll(self, final: bool = False) -> list[Row]:
        """See `Source.poll`. RunError at the end for a file that has no footer."""
        import pyarrow
        from pyarrow.parquet import ParquetFile

        stat = self.path.stat()
        stamp = (stat.st_mtime_ns, stat.st_size)
        if stamp == self._stamp:
            return []
        try:
            with ParquetFile(self.path) as file:
                raw = [row for batch in file.iter_batches(ROWS) for row in batch.to_pylist()]
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            self.problem("the file is not a complete Parquet table (yet)")
            if final:
                raise RunError(f"{self.path} cannot be read as Parquet: {error}; write it again, or as CSV") from error
            return []
        self._stamp = stamp
        if len(raw) < self._seen:
            self._seen = 0
        new, self._seen = raw[self._seen :], len(raw)
        return [row for one in new if (row := self.row(one)) is not None]

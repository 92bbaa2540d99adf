"""TensorBoard event files."""

from __future__ import annotations

from pathlib import Path

from agentrl.monitors import wire
from agentrl.monitors.sources.base import LIKELY, NO, SURE, Look, Row, Source, Tail


class TensorBoard(Source):
    """All event files of one directory (a restarted run adds files), or one file."""

    def __init__(self, path: Path, run: str | None = None) -> None:
        super().__init__(path, "TensorBoard")
        self._tails: dict[Path, Tail] = {}

    @classmethod
    def recognises(cls, look: Look) -> int:
        """By the files' names."""
        if look.is_dir:
            return LIKELY if any(look.path.glob("*tfevents*")) else NO
        return SURE if "tfevents" in look.path.name else NO

    def files(self) -> list[Path]:
        """The event files, oldest first."""
        if self.path.is_file():
            return [self.path]
        return sorted(self.path.glob("*tfevents*"), key=lambda p: p.name)  # names begin with the time

    def poll(self, final: bool = False) -> list[Row]:
        """See `Source.poll`."""
        rows: list[Row] = []
        for file in self.files():
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
        row = self.row(values, step)
        if row is not None:
            rows.append(row)

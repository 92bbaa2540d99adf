"""Whole lines of a growing text file: what the text formats share."""

from __future__ import annotations

from pathlib import Path

from agentrl.monitors.sources.base import Row, Source, Tail, encoding_of


class Lines(Source):
    """Whole lines, in UTF-8 or UTF-16. A last line without its end waits for the rest."""

    def __init__(self, path: Path, kind: str) -> None:
        super().__init__(path, kind)
        self._tail = Tail(path)
        self._encoding: str | None = None

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
                self._encoding = None
                self._restarted()
            if self._encoding is None and data:
                self._encoding = encoding_of(data)
            end = self._end(data)
            if end == 0 and len(data) == self._tail.chunk:  # a line longer than a chunk is not a metric
                self.problem("a line of more than 16 MiB was skipped")
                self._tail.offset += len(data)
                continue
            if end == 0 and not (final and data):
                return rows
            block = data if end == 0 else data[:end]
            self._tail.offset += len(block)
            for line in block.decode(self._encoding or "utf-8", "replace").split("\n"):
                row = self._row(line.strip("\r\ufeff")) if line.strip() else None
                if row is not None:
                    rows.append(row)
            if rows and len(data) == self._tail.chunk:  # the rest at the next call
                return rows

    def _end(self, data: bytes) -> int:
        """Where the last whole line ends, in bytes."""
        if self._encoding in (None, "utf-8"):
            return data.rfind(b"\n") + 1
        mark = "\n".encode(self._encoding or "utf-8")
        at = data.rfind(mark)
        while at > 0 and at % 2:
            at = data.rfind(mark, 0, at + 1)
        return at + 2 if at >= 0 else 0

    def _row(self, line: str) -> Row | None:
        raise NotImplementedError

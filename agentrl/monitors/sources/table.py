"""CSV and TSV."""

from __future__ import annotations

import csv
from pathlib import Path

from agentrl.monitors.sources.base import MAYBE, NO, SURE, Look, Row, step_of
from agentrl.monitors.sources.lines import Lines


class Csv(Lines):
    """A header and one row per step. A repeated or changed header line starts new columns."""

    def __init__(self, path: Path, run: str | None = None) -> None:
        super().__init__(path, "CSV")
        self._delimiter = "\t" if path.suffix == ".tsv" else ","
        self._header: list[str] | None = None

    @classmethod
    def recognises(cls, look: Look) -> int:
        """By its name, or by a comma in the first line."""
        if look.path.suffix in (".csv", ".tsv"):
            return SURE
        return MAYBE if b"," in look.head.split(b"\n")[0] and b"\0" not in look.head else NO

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

"""CSV and its kin: commas, semicolons, tabs, `|`; decimal commas; a W&B panel's export."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from agentrl.errors import RunError
from agentrl.monitors.sources.base import LIKELY, MAYBE, NO, SURE, Look, Row, Source, number
from agentrl.monitors.sources.lines import Lines

DELIMITERS = ",;\t|"
_BOUND = re.compile(r"__(MIN|MAX)$")  # of a W&B export: the range of what was averaged


class Csv(Lines):
    """A header and one row per step. A repeated or changed header line starts new columns.

    W&B names its columns `RUN - metric`: the run is taken off, and where there are several `run` chooses one.
    """

    def __init__(self, path: Path, run: str | None = None) -> None:
        super().__init__(path, "CSV")
        self.run = run
        self._restarted()

    @classmethod
    def recognises(cls, look: Look) -> int:
        """By its name, or by a first line with a name and a second with as many cells."""
        if look.is_dir or "\0" in look.text:
            return NO
        if look.path.suffix in (".csv", ".tsv"):
            return SURE
        lines = [line for line in look.text.splitlines() if line.strip()]
        if len(lines) < 2:
            return NO
        mark = delimiter(lines[0])
        first, second = (next(csv.reader([line], delimiter=mark)) for line in lines[:2])
        named = [c for c in first if c.strip() and number(c) is None]
        table = len(first) == len(second) > 1 and len(named) == len(first) and any(_cell(c, mark) for c in second)
        return LIKELY if table else NO

    def _restarted(self) -> None:
        self._delimiter = ","
        self._header: list[str] | None = None

    def _row(self, line: str) -> Row | None:
        if self._header is None:
            self._delimiter = delimiter(line)
        try:
            cells = next(csv.reader([line], delimiter=self._delimiter))
        except csv.Error as error:  # a cell of more than 128 KiB
            self.problem(f"row cannot be read: {error}")
            return None
        numbers = [_cell(c, self._delimiter) for c in cells]
        named = [c for c, n in zip(cells, numbers) if n is None and c.strip()]
        if self._header is None or (len(named) > len(cells) / 2 and not any(n is not None for n in numbers)):
            self._header = self._columns([c.strip() for c in cells])
            return None
        if len(cells) > len(self._header):
            self.problem("row has more cells than the header")
            return None
        raw = {name: c if n is None else n for name, c, n in zip(self._header, cells, numbers) if name}
        return self.row({k: v for k, v in raw.items() if v != ""})

    def _columns(self, names: list[str]) -> list[str]:
        """The header, without the runs of a W&B export; a column that is not wanted has no name."""
        runs = sorted({n.rpartition(" - ")[0] for n in names if " - " in n})
        if not runs:
            return names
        if self.run is None and len(runs) > 1:
            raise RunError(f"{self.path} holds {len(runs)} runs; choose one with --run: {', '.join(runs[:5])}")
        run = self.run or runs[0]
        if run not in runs:
            raise RunError(f"{self.path} has no run {run!r}; it holds {', '.join(runs[:5])}")
        own = f"{run} - "
        return [
            n if " - " not in n else n[len(own) :] if n.startswith(own) and not _BOUND.search(n) else "" for n in names
        ]


class CsvFolder(Source):
    """A folder of W&B panel exports, one metric a file, merged by step."""

    def __init__(self, path: Path, run: str | None = None) -> None:
        super().__init__(path, "CSV folder")
        self._files = [Csv(file, run) for file in sorted(path.glob("*.csv"))]

    @classmethod
    def recognises(cls, look: Look) -> int:
        """Several CSV files with a step and W&B's column names."""
        files = sorted(look.path.glob("*.csv"))[:20] if look.is_dir else []
        return MAYBE if len(files) > 1 and all(_is_export(file) for file in files) else NO

    def poll(self, final: bool = False) -> list[Row]:
        """See `Source.poll`: everything at once, an export does not grow."""
        steps: dict[int, dict[str, float]] = {}
        for file in self._files:
            file.where, file.step_names = self.where, self.step_names
            for row in iter(lambda file=file: file.poll(True), []):  # type: ignore[misc]
                for one in row:
                    if one.step is not None:
                        steps.setdefault(one.step, {}).update(one.values)
            for what, times in file.problems.items():
                self.problems[f"{file.path.name}: {what}"] = times
        return [Row(step, values) for step, values in sorted(steps.items())]


def _is_export(file: Path) -> bool:
    with open(file, "rb") as handle:
        first = handle.readline(1 << 16).decode("utf-8", "replace")
    return " - " in first and "step" in first.lower()


def delimiter(line: str) -> str:
    """What separates the cells of a header; quoted text does not count."""
    bare = re.sub(r'"[^"]*"', "", line)
    return max(DELIMITERS, key=lambda mark: (bare.count(mark), -DELIMITERS.index(mark)))


def _cell(text: str, mark: str) -> float | None:
    """A number, or None for an empty cell or text. "nan" is a measured NaN, an empty cell is a missing value."""
    value = number(text)
    if value is None and mark != "," and re.fullmatch(r"\s*[-+]?\d+,\d+(?:[eE][-+]?\d+)?\s*", text):
        return float(text.replace(",", "."))
    return value

"""Console logs: what a trainer prints, with everything else that is printed in between.

A format is a subclass with a `pattern` that only its own lines have. Colours, carriage returns of progress bars and
Ray's `(TaskRunner pid=1, ip=...)` are taken off before a line is looked at.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

from agentrl.monitors.sources.base import NO, SURE, Look, Row
from agentrl.monitors.sources.lines import Lines

_ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")
_RAY = re.compile(r"^\s*\([\w.:<>\[\]-]+ pid=\d+(?:, ip=[\w.:]+)?\)\s?")
_NUMBER = re.compile(
    r"^(?:(?:np|numpy)\.\w+\()?(?:tensor\()?\s*([+-]?(?:\d[\d,]*\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?|nan|inf))"
    r"(?:,[^)]*)?\)?\s*(%?)[\w/. ]*$",
    re.IGNORECASE,
)


def clean(line: str) -> str:
    """The line without colours, without what a carriage return has overwritten, without Ray's prefix."""
    if "\x1b" in line:
        line = _ANSI.sub("", line)
    if "\r" in line:
        line = max(line.split("\r"), key=len)
    return _RAY.sub("", line) if line.lstrip().startswith("(") else line


def plain_number(text: str) -> float | None:
    """`0.5`, `np.float64(0.5)`, `tensor(0.5)`, `12.3s`, `45.0%` (a share), `1,234`; None where it is none of these."""
    try:
        return float(text)
    except ValueError:
        found = _NUMBER.match(text.strip())
    if found is None:
        return None
    value = float(found[1].replace(",", ""))
    return value / 100 if found[2] else value


class Console(Lines):
    """Base of the console formats."""

    name: ClassVar[str]
    pattern: ClassVar[re.Pattern[bytes]]

    def __init__(self, path: Path, run: str | None = None) -> None:
        super().__init__(path, self.name)

    @classmethod
    def recognises(cls, look: Look) -> int:
        """Whether its own lines are in the file, however far down."""
        return SURE if not look.is_dir and look.has(cls.pattern) else NO

    def _row(self, line: str) -> Row | None:
        return self.parse(clean(line))

    def parse(self, line: str) -> Row | None:
        """The row that a cleaned line completes, or None."""
        raise NotImplementedError

"""JSON lines."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

from agentrl.monitors.sources.base import LIKELY, NO, SURE, Look, Row
from agentrl.monitors.sources.lines import Lines

METRICS = "metrics.jsonl"  # in a run directory


class JsonLines(Lines):
    """One object per line; nested objects are flattened (verl's file logger writes {"step": 1, "data": {...}})."""

    def __init__(self, path: Path, run: str | None = None) -> None:
        super().__init__(path / METRICS if path.is_dir() else path, "JSONL")

    @classmethod
    def recognises(cls, look: Look) -> int:
        """A run directory, or a file whose first line is an object."""
        if look.is_dir:
            return SURE if (look.path / METRICS).is_file() else NO
        start = look.text.lstrip()
        if re.match(r'\{\s*"', start):
            return SURE
        return LIKELY if start[:1] in ("{", "") else NO

    def _row(self, line: str) -> Row | None:
        try:
            parsed = json.loads(line)
        except (ValueError, RecursionError):
            self.problem("line is not JSON")
            return None
        if not isinstance(parsed, dict):
            self.problem("line is not a JSON object")
            return None
        broken = parsed.get("nonfinite")  # how a run directory writes what JSON has no word for
        if isinstance(broken, list):
            parsed |= {name: math.nan for name in broken if isinstance(name, str)}
        return self.row(parsed)

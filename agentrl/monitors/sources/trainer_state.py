"""The JSON file of a transformers trainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from agentrl.monitors.sources.base import LIKELY, NO, SURE, Look, Row, Source, flatten, step_of

NAME = "trainer_state.json"


class TrainerState(Source):
    """`trainer_state.json` of a transformers or TRL run: read again whenever it was rewritten."""

    def __init__(self, path: Path, run: str | None = None) -> None:
        super().__init__(path / NAME if path.is_dir() else path, NAME)
        self._stamp: tuple[int, int] | None = None
        self._seen = 0

    @classmethod
    def recognises(cls, look: Look) -> int:
        """By its name, in a folder too."""
        if look.is_dir:
            return LIKELY if (look.path / NAME).is_file() else NO
        return SURE if look.path.name == NAME else NO

    def poll(self, final: bool = False) -> list[Row]:
        """See `Source.poll`."""
        try:
            stat = self.path.stat()
            if (stat.st_mtime_ns, stat.st_size) == self._stamp:
                return []
            history: Any = json.loads(self.path.read_bytes()).get("log_history", [])
        except FileNotFoundError:
            return []
        except (ValueError, AttributeError):
            self.problem("the file is not a complete JSON object (yet)")
            return []
        self._stamp = (stat.st_mtime_ns, stat.st_size)
        if len(history) < self._seen:
            self._seen = 0
        new, self._seen = history[self._seen :], len(history)
        rows = [flatten(entry) for entry in new if isinstance(entry, dict)]
        return [Row(step_of(values), values) for values in rows if values]

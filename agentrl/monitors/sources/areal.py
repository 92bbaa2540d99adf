"""AReaL's console: `Epoch 1/5 Step 3/100 Train step 3/500 done.` and a grid of names and numbers.

Read in `areal/utils/stats_logger.py` and `areal/utils/printing.py` (tabulate's fancy_grid).
"""

from __future__ import annotations

import re
from pathlib import Path

from agentrl.monitors.sources.base import Row
from agentrl.monitors.sources.console import Console, plain_number

_STEP = re.compile(r"Train step (\d+)/\d+ done")


class Areal(Console):
    """One grid a step, names and numbers in turn."""

    name = "AReaL console"
    pattern = re.compile(rb"Train step \d+/\d+ done")

    def __init__(self, path: Path, run: str | None = None) -> None:
        super().__init__(path, run)
        self._at: int | None = None

    def parse(self, line: str) -> Row | None:
        """A row for each line of the grid; rows of one step are merged."""
        if found := _STEP.search(line):
            self._at = int(found[1])
            return None
        if self._at is None or not line.lstrip().startswith(("│", "|")):
            return None
        cells = [c.strip() for c in re.split("[│|]", line)[1:-1]]
        values = {k: v for k, text in zip(cells[::2], cells[1::2]) if k and (v := plain_number(text)) is not None}
        return self.row(values, self._at, sure=True) if values else None

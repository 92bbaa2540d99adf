"""NeMo-RL's console: a heading `Step 3/100`, then lines such as `• Avg Reward: 0.31`.

Read in `nemo_rl/algorithms/grpo.py`.
"""

from __future__ import annotations

import re
from pathlib import Path

from agentrl.monitors.sources.base import Row
from agentrl.monitors.sources.console import Console, plain_number

_STEP = re.compile(r"=+ *Step (\d+)/\d+ *=+")
_LINE = re.compile(r"^\s*[•-] ([\w ./()&-]+?): +(\S.*?)(?: \(.*)?$")


class NemoRL(Console):
    """One block a step; validation inside it keeps its heading as a prefix."""

    name = "NeMo-RL console"
    pattern = re.compile("• (?:Avg|Mean|Loss)[^\n:]*: ".encode())

    def __init__(self, path: Path, run: str | None = None) -> None:
        super().__init__(path, run)
        self._restarted()

    def _restarted(self) -> None:
        self._at: int | None = None
        self._count = 0
        self._prefix = ""

    def parse(self, line: str) -> Row | None:
        """A row for each line; rows of one step are merged."""
        if found := _STEP.search(line):
            self._at, self._prefix = int(found[1]), ""
            return None
        if "Training Results" in line:
            self._count += 1
            self._prefix = ""
        elif "Validation Results" in line:
            self._prefix = "validation/"
        found = _LINE.match(line)
        value = plain_number(found[2]) if found else None
        if found is None or value is None:
            return None
        return self.row({self._prefix + found[1]: value}, self._count if self._at is None else self._at, sure=True)

"""prime-rl's console: `Step 12 | Time: 3.20s | Reward: 0.31 | ...` of orchestrator and trainer, in one file or two.

Read in `src/prime_rl/orchestrator/orchestrator.py` and `src/prime_rl/trainer/rl/train.py`.
"""

from __future__ import annotations

import re

from agentrl.monitors.sources.base import Row
from agentrl.monitors.sources.console import Console, plain_number

_STEP = re.compile(r"\bStep (\d+) \| (.*)$")


class PrimeRL(Console):
    """One line a step and process; lines of one step are merged."""

    name = "prime-rl console"
    pattern = re.compile(rb"\bStep \d+ \| [A-Z][\w. ]*: ")

    def parse(self, line: str) -> Row | None:
        """Fields are separated by `|`."""
        found = _STEP.search(line)
        if found is None:
            return None
        pairs = (part.partition(":") for part in found[2].split("|"))
        values = {k.strip(): v for k, _, text in pairs if k.strip() and (v := plain_number(text.strip())) is not None}
        return self.row(values, int(found[1]), sure=True) if values else None

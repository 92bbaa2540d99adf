"""prime-rl's console: `Step 12 | 32s | Reward 0.3100 | ...` of orchestrator and trainer, in one file or two.

Run on what prime-rl 559b447 prints (`orchestrator/orchestrator.py`, `trainer/rl/train.py`, through `utils/logger.py`).
Earlier versions printed `Step 12 | Time: 3.20s | Reward: 0.31 | ...`.
"""

from __future__ import annotations

import re

from agentrl.monitors.sources.base import Row
from agentrl.monitors.sources.console import Console, plain_number

_STEP = re.compile(r"\bStep (\d+) \| (.*)$")
_EVAL = re.compile(r"\bEvaluated (\S+) \(Step (\d+)\) \| (.*)$")
_FIELD = re.compile(r"([A-Z][A-Za-z.\- ]*?):? +([+-]?[\d.].*|nan|inf)")
_TIME = re.compile(r"(\d+(?:\.\d+)?)(ms|d|h|m|s)\b")
_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class PrimeRL(Console):
    """One line a step and process; lines of one step are merged."""

    name = "prime-rl console"
    pattern = re.compile(rb"(?:\b|m)Step \d+ \| +(?:[A-Z][\w. ]*: |[\dmsdh ]+\| (?:Reward|Loss) )")

    def parse(self, line: str) -> Row | None:
        """Fields are separated by `|`; one without a name is the time."""
        if found := _STEP.search(line):
            return self._values(found[2], int(found[1]), "")
        if found := _EVAL.search(line):
            return self._values(found[3], int(found[2]), f"eval/{found[1]}/")
        return None

    def _values(self, fields: str, step: int, lead: str) -> Row | None:
        values: dict[str, float] = {}
        for part in map(str.strip, fields.split("|")):
            named = _FIELD.fullmatch(part)
            if named is None and (times := _TIME.findall(part)):
                values[f"{lead}Time"] = sum(float(n) * _SECONDS[unit] for n, unit in times)
            elif named is not None and (value := plain_number(named[2])) is not None:
                values[lead + (named[1].lower() if lead else named[1])] = value
        return self.row(values, step, sure=True) if values else None

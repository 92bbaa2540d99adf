"""verl's console log, and that of trainers built on it (rLLM, Search-R1): `step:12 - actor/entropy:0.5 - ...`.

Run on what verl 0.9.1's own `concat_dict_to_str` prints (`verl/utils/logger/aggregate_logger.py`).
"""

from __future__ import annotations

import re

from agentrl.monitors.sources.base import Row
from agentrl.monitors.sources.console import Console, plain_number

_STEP = re.compile(r"(?:^|[\s'\"])step:(\d+) - ")


class Verl(Console):
    """One line a step; a step that several ranks print is one step."""

    name = "verl console"
    pattern = re.compile(rb"(?:^|[\s'\"])step:\d+ - [^\s:]+:", re.MULTILINE)

    def parse(self, line: str) -> Row | None:
        """Fields are separated by ` - `; what is not a number is left out."""
        found = _STEP.search(line) if "step:" in line else None
        if found is None:
            return None
        values = {}
        for part in line[found.end() :].split(" - "):
            key, colon, text = part.rpartition(":")
            if not colon:
                continue
            try:
                values[key.strip()] = float(text)
            except ValueError:
                number = plain_number(text)
                if number is not None:
                    values[key.strip()] = number
                elif not key.strip():
                    self.problem("field without a name")
        if not values:
            self.problem("step line without numbers")
            return None
        return self.row(values, int(found[1]), sure=True)

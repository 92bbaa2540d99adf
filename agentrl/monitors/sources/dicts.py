"""Python dictionaries in a console log: TRL and transformers, OpenRLHF, slime, SkyRL.

- TRL and transformers: `{'loss': 0.1, 'reward': '0.3', ...}` with progress bars around; no step, so lines are counted.
- OpenRLHF (`openrlhf/trainer/ppo_trainer.py`): `✨ Global step 12: {...}`, and a sample of the model's own words.
- slime (`slime/ray/rollout.py`, `slime/backends/megatron_utils/model.py`): `rollout 3: {...}`, `perf 3: {...}`, and
  `step 12: {...}` for each update, whose own numbers belong to the rollout before them.
- SkyRL (`skyrl_train/utils/tracking.py`): `Step 5:` and a dictionary over many lines, numbers as text.
"""

from __future__ import annotations

import re
from pathlib import Path

from agentrl.monitors.sources.base import Row
from agentrl.monitors.sources.console import Console, plain_number

_PAIR = re.compile(r"""(['"])((?:(?!\1).){1,200}?)\1\s*:\s*((['"])[^'"]{0,40}\4|[^,{}\[\]'"]+(?:\([^)]*\))?)""")
_LEAD = re.compile(r"(global[ _]step|rollout|perf|eval|step)[ :]+(\d+)\b[^{]{0,40}$", re.IGNORECASE)
LONGEST = 2000  # lines of one dictionary


class Dicts(Console):
    """Every dictionary with a number in it is a row."""

    name = "console (dictionaries)"
    pattern = re.compile(rb"\{\s*'[^'\n]{1,120}'\s*:\s*'?(?:np\.\w+\()?[-+]?(?:\d|\.\d|nan|inf)", re.IGNORECASE)

    def __init__(self, path: Path, run: str | None = None) -> None:
        super().__init__(path, run)
        self._restarted()

    def _restarted(self) -> None:
        self._open: list[str] = []  # lines of a dictionary that has not ended
        self._lead = ""  # what stood before it
        self._before = ""  # the line before this one: SkyRL's step
        self._count = 0
        self._rollout: int | None = None
        self._led = False  # the trainer writes a step before its dictionaries

    def parse(self, line: str) -> Row | None:
        """A dictionary that ends in this line."""
        if not self._open:
            lead, brace, rest = line.partition("{")
            if not brace or rest.lstrip()[:1] not in ("'", '"', ""):
                self._before = line if line.strip() else self._before
                return None
            self._lead, line = lead if lead.strip() else self._before, brace + rest
        self._open.append(line)
        if "}" not in line:
            if len(self._open) > LONGEST:
                self.problem("a dictionary that does not end")
                self._open = []
            return None
        text, self._open = " ".join(self._open), []
        led = _LEAD.search(self._lead)
        if led is None and (self._led or text.rpartition("}")[2].strip()[:1] in tuple("\"'])},")):
            return None  # a dictionary in what the model has said, which is no metric
        self._led |= led is not None
        values = {m[2]: v for m in _PAIR.finditer(text) if (v := plain_number(m[3].strip("'\" "))) is not None}
        if not values or "train_runtime" in values:
            return None
        return self.row(values, self._step(values, led), sure=True)

    def _step(self, values: dict[str, float], found: re.Match[str] | None) -> int | None:
        """What the lead says; else a step of its own in the row; else the number of the row."""
        if found is None:
            if any(k in values for k in self.step_names):
                return None
            if not any(k.startswith("eval_") for k in values):
                self._count += 1
            return self._count
        word, number = found[1].lower(), int(found[2])
        if word in ("rollout", "perf", "eval"):
            self._rollout = number
        elif word == "step" and self._rollout is not None:
            return self._rollout
        return number

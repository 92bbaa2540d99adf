"""Metrics and alarms of each environment of a run that has several; nothing where it has one.

A metric `reward` of the environment math is `reward/math` in metrics.jsonl, beside `reward` of the whole batch. Each
environment has a monitor of its own, which sees what was measured of its own episodes: their rewards, likelihoods and
tools, not the update, which is of all. Its alarms go where the others go, and begin with its name. The guard acts on
the alarms of the whole batch alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from agentrl.batch import TokenBatch
from agentrl.engines.base import ScoreResult
from agentrl.monitors import Monitor
from agentrl.monitors.alarms import default_rules
from agentrl.train import measure as M
from agentrl.types import Alarm, StepRecord, Task, Trajectory

Metrics = dict[str, dict[str, float]]


def correct_shares(trajectories: Sequence[Trajectory], task_of: Mapping[str, Task]) -> dict[str, float]:
    """Environment -> share of its episodes that are correct; failed episodes are left out."""
    of: dict[str, list[bool]] = defaultdict(list)
    for t in trajectories:
        if t.error is None:
            of[task_of[t.group_id].env].append(t.correct)
    return {name: sum(found) / len(found) for name, found in of.items()}


class Entries:
    """The environments `names` of a run; empty for a run with one. `monitor` is the run's own."""

    def __init__(self, names: Sequence[str], monitor: Monitor | None, rules: Sequence[str] = ()) -> None:
        self.names = list(names)
        self.sinks = [] if monitor is None else monitor.sinks
        made = {} if monitor is None else {n: Monitor(monitor.thresholds, default_rules(rules)) for n in names}
        self.monitors: dict[str, Monitor] = made

    def measure(
        self,
        played: Sequence[Trajectory],
        used: Sequence[Trajectory],
        task_of: Mapping[str, Task],
        batch: TokenBatch,
        scores: ScoreResult,
        change: Tensor | None,
    ) -> Metrics:
        """Name -> signals of its episodes of a step. `batch`, `scores` and `change` (B, S) are of `used`, in order."""
        out: Metrics = {}
        for name in self.names:
            mine = [t for t in played if task_of[t.group_id].env == name]
            index = torch.tensor([i for i, t in enumerate(used) if task_of[t.group_id].env == name], dtype=torch.int64)
            values = M.rollout_metrics(mine) if mine else {}
            if len(index):
                part = batch.rows(index)
                S = part.action_mask.shape[1]
                entropy = None if scores.entropy is None else scores.entropy[index, :S]
                values |= M.group_metrics(part) | M.score_metrics(part, scores.logprobs[index, :S], entropy)
                values |= _delta(part, None if change is None else change[index, :S])
            out[name] = values
        return out

    def as_metrics(self, measured: Metrics, shares: Mapping[str, float]) -> dict[str, float]:
        """One flat dictionary, and `share/NAME`, with which each environment was drawn."""
        flat = {f"{key}/{name}": value for name, values in measured.items() for key, value in values.items()}
        return flat | {f"share/{name}": share for name, share in shares.items()}

    def observe(self, record: StepRecord, measured: Metrics) -> list[Alarm]:
        """The alarms of single environments; the sinks are told. One without episodes in this step is passed over."""
        out = []
        for name, monitor in self.monitors.items():
            if "reward" in measured[name]:
                groups = [row for row in record.groups if row.get("env") == name]
                for alarm in monitor.observe(StepRecord(record.step, measured[name], groups)):
                    out.append(replace(alarm, id=f"{alarm.id}-{name}", message=f"{name}: {alarm.message}"))
        for alarm in out:
            for sink in self.sinks:
                sink(alarm)
        return out

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {name: monitor.state_dict() for name, monitor in self.monitors.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for name, monitor in self.monitors.items():
            if name in state:
                monitor.load_state_dict(state[name])


def _delta(part: TokenBatch, change: Tensor | None) -> dict[str, float]:
    """Δ of the environment's correct responses in mixed groups, where it was measured: `change` is NaN elsewhere."""
    if change is None:
        return {}
    rows = (M.mixed_rows(part) & part.correct).nonzero()[:, 0]
    if not len(rows):
        return {}
    mask = part.action_mask[rows]
    per_token = (change[rows].nan_to_num() * mask).sum(1) / mask.sum(1)
    return {"delta_correct": float(per_token.mean())}

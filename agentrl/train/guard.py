"""Carries out what the guard decides: the loss, the learning rate, going back, stopping. Decides nothing itself.

The decisions are `agentrl.monitors.stop_rule`'s. Each is one row of `guard.jsonl` and one line on the console.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrl.config import GuardConfig, LossConfig
from agentrl.monitors import Monitor, notices
from agentrl.monitors.stop_rule import Guard, GuardAction, as_row, in_words
from agentrl.runs.checkpoint import latest_checkpoint, list_checkpoints
from agentrl.runs.files import writing
from agentrl.runs.log import RunLog
from agentrl.types import Alarm, StepRecord

if TYPE_CHECKING:
    from agentrl.engines.base import Engine

COLLAPSED = "collapsed-{:06d}"  # folder in dumps/ with the weights and the optimiser that a roll-back has left


class Guarding:
    """The guard of one run. `save` writes the run's checkpoint, `say` a line on the console."""

    def __init__(
        self,
        config: GuardConfig,
        engine: Engine,
        run: RunLog,
        monitor: Monitor | None,
        *,
        save: Callable[[], Path],
        say: Callable[[str], None],
    ) -> None:
        self.guard = Guard(config)
        self.stopped = ""  # why the run was ended, where the guard has ended it
        self.others: list[Monitor] = []  # of single environments: they forget with `monitor` what was before
        self.engine, self.run, self.monitor, self.save, self.say = engine, run, monitor, save, say

    def after(self, record: StepRecord, alarms: Sequence[Alarm]) -> bool:
        """Decide on a finished step and do it; whether the run is to stop."""
        onset, active = None, []
        if self.monitor is not None:
            onset = self.monitor.decay_onset()
            active = [rule for rule, level in self.monitor.active().items() if level != "info"]
        action = self.guard.decide(record, alarms, onset, active)
        lr = record.metrics.get("lr")
        scheduled = lr / self.engine.lr_scale if lr is not None and math.isfinite(lr) else 0.0
        self.engine.lr_scale = self.guard.scale_of(scheduled)  # for the next step: a schedule hardly moves in one
        if action is None:
            return False
        row = as_row(action)
        if action.kind == "rollback":
            row |= self._go_back(action)
            self.engine.lr_scale = self.guard.scale_of(self.engine.scheduled_lr)  # the schedule went back, too
        self.run.guard_action(row)
        for sink in self.monitor.sinks if self.monitor is not None else ():
            sink(notices.guarded(row))
        if action.kind == "rollback":
            self.save()  # so that a resume starts from here
        self.say(f"guard, step {action.step}: {in_words(row)}")
        if action.kind == "stop":
            self.stopped = f"the guard stopped it at step {action.step}: {action.reason}"
        return action.kind == "stop"

    def _go_back(self, action: GuardAction) -> dict[str, Any]:
        """Weights and optimiser of an earlier checkpoint; steps and questions go on. What is left behind is kept."""
        found = latest_checkpoint(self.run.path, at_most=action.back_to)
        if found is None:  # pruned: the oldest that is left
            found = latest_checkpoint(self.run.path, at_most=list_checkpoints(self.run.path)[0][0])
        assert found is not None  # one was saved before the first step, and damage raises
        name = COLLAPSED.format(action.step + 1)
        folder = self.run.path / "dumps" / name
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)  # a resume may come here twice
            self.engine.save(folder)
        self.engine.load(found[0])
        for monitor in [*([] if self.monitor is None else [self.monitor]), *self.others]:
            monitor.restart()
        return {"weights_of": found[1]["step"], "left_behind": f"dumps/{name}"}

    def loss(self, configured: LossConfig) -> LossConfig:
        """The configured loss, with the guard's λ where that is larger."""
        llds = configured.llds
        if self.guard.llds_weight <= (llds.weight if llds.enabled else 0.0):
            return configured
        update = {"enabled": True, "weight": self.guard.llds_weight}
        return configured.model_copy(update={"llds": llds.model_copy(update=update)})

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {**self.guard.state_dict(), "rate": self.engine.lr_scale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`; the engine learns at the guard's rate again."""
        self.guard.load_state_dict(state)
        self.engine.lr_scale = state["rate"]

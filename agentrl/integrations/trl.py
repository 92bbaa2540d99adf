"""The monitors as a callback of TRL's and transformers' trainers.

    trainer = GRPOTrainer(..., callbacks=[MonitorCallback()])

Every log of the trainer is one step of the monitors, so `logging_steps=1` sees most. The alarms are those of
`agentrl watch` on the same logs. TRL's clip fraction counts tokens whose clipping changes the loss, fewer than those
whose ratio left the range, so the size of updates is judged leniently; with one update per batch it is 0.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from agentrl.monitors import Alarm, Monitor, StepRecord, guess_mapping, sinks
from agentrl.monitors.signals import SignalMap
from agentrl.monitors.sources.base import flatten

_TRACKERS = {"wandb": sinks.wandb, "trackio": sinks.trackio}


class MonitorCallback(TrainerCallback):
    """Alarms on stderr, in OUTPUT_DIR/alarms.jsonl, and as alerts of the trackers that the trainer reports to.

    monitor: with thresholds, rules or sinks of your own. columns: signal -> name in the trainer's logs, where the guess
    is wrong. on_critical: "stop" ends training at the first critical alarm, after the trainer's own last save.
    stream: where the lines go, None for nowhere. Only the main process watches.
    """

    def __init__(
        self,
        monitor: Monitor | None = None,
        *,
        columns: Mapping[str, str] | None = None,
        on_critical: Literal["continue", "stop"] = "continue",
        stream: TextIO | None = sys.stderr,
    ) -> None:
        if on_critical not in ("continue", "stop"):
            raise ValueError(f"on_critical is {on_critical!r}; it is 'continue' or 'stop'")
        self.monitor = monitor or Monitor()
        self.on_critical, self.stream = on_critical, stream
        self.alarms: list[Alarm] = []
        self._columns = dict(columns or {})
        self._seen: set[str] = set()
        self.mapping: SignalMap = guess_mapping([], self._columns)
        self._sinks: list[sinks.Sink] = []
        self._told = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the sinks; a resumed run's earlier logs are watched again in silence, so that it needs no warm-up."""
        if not state.is_world_process_zero:
            return
        self._sinks = []
        for entry in state.log_history:
            step = entry.get("step")
            if isinstance(step, int | float) and step <= state.global_step:
                self._observe(int(step), entry)
        self._sinks = [sinks.console(self.stream)] if self.stream is not None else []
        if args.output_dir:
            self._sinks.append(sinks.jsonl(Path(args.output_dir) / "alarms.jsonl"))
        self._sinks += [_TRACKERS[name]() for name in args.report_to or [] if name in _TRACKERS]

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """One log is one step; evaluation logs are left out."""
        if not state.is_world_process_zero or not logs:
            return
        found = self._observe(state.global_step, logs)
        self.alarms += found
        if self.on_critical == "stop" and any(a.level == "critical" for a in found):
            control.should_training_stop = True
        if self.monitor.seen >= 10 and not self._told:
            self._told = True
            self._tell()

    def _observe(self, step: int, logs: Mapping[str, Any]) -> Sequence[Alarm]:
        values = {k: v for k, v in flatten(logs).items() if not k.startswith("eval_")}
        if step == self.monitor.last_step:  # a second log of one step, as at the end of training
            return []
        if not values.keys() <= self._seen:
            self._seen |= values.keys()
            self.mapping = guess_mapping(self._seen, self._columns)
            self.monitor.trainer, self.monitor.clipped_in_loss = self.mapping.trainer, self.mapping.clipped_in_loss
        metrics = self.mapping.apply(values)
        if "loss" not in metrics and "reward" not in metrics:  # the summary at the end of training
            return []
        alarms = self.monitor.observe(StepRecord(step, metrics))
        for alarm in alarms:
            for sink in self._sinks:
                sink(alarm)
        return alarms

    def _tell(self) -> None:
        """Once: which signals there are and which are missing."""
        if self.stream is None:
            return
        used = ", ".join(s if s == c else f"{s}={c}" for s, c in self.mapping.columns.items() if c in self._seen)
        missing = f"; missing {', '.join(self.mapping.missing)}" if self.mapping.missing else ""
        print(f"agentrl monitors: using {used}{missing}", file=self.stream, flush=True)

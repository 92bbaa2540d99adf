"""The monitors as a callback of TRL's and transformers' trainers; and our environments for TRL (`environment`).

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

from agentrl.integrations.trl_environment import environment
from agentrl.monitors import Alarm, LoopMonitor, Monitor, sinks
from agentrl.monitors.signals import SignalMap

__all__ = ["MonitorCallback", "environment"]

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
        self.watch = LoopMonitor(monitor, columns=columns, outputs=())
        self.monitor = self.watch.monitor
        self.on_critical, self.stream = on_critical, stream
        self.alarms: list[Alarm] = []
        self._told = False

    @property
    def mapping(self) -> SignalMap:
        """Which of the trainer's names feeds which signal."""
        return self.watch.mapping

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the sinks; a resumed run's earlier logs are watched again in silence, so that it needs no warm-up."""
        if not state.is_world_process_zero:
            return
        self.watch.sinks = []
        for entry in state.log_history:
            step = entry.get("step")
            if isinstance(step, int | float) and step <= state.global_step:
                self._observe(int(step), entry)
        self.watch.sinks = [sinks.console(self.stream)] if self.stream is not None else []
        if args.output_dir:
            self.watch.sinks.append(sinks.jsonl(Path(args.output_dir) / "alarms.jsonl"))
        self.watch.sinks += [_TRACKERS[name]() for name in args.report_to or [] if name in _TRACKERS]

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
        return self.watch(step, {k: v for k, v in logs.items() if not k.startswith("eval_")})

    def _tell(self) -> None:
        """Once: which signals there are and which are missing."""
        if self.stream is None:
            return
        used = ", ".join(s if s == c else f"{s}={c}" for s, c in self.mapping.columns.items() if c in self.watch.seen)
        missing = f"; missing {', '.join(self.mapping.missing)}" if self.mapping.missing else ""
        print(f"agentrl monitors: using {used}{missing}", file=self.stream, flush=True)

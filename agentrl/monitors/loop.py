"""The monitors in a training loop of one's own, whatever it calls its numbers.

    watch = LoopMonitor()
    for step in range(steps):
        logs = train_step()                 # {"reward": 0.4, "actor/entropy": 1.2, ...}
        alarms = watch(step, logs)

Names are recognised as in a log that `agentrl watch` reads. Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agentrl.monitors import sinks
from agentrl.monitors.alarms import Monitor
from agentrl.monitors.signals import SignalMap, guess_mapping
from agentrl.monitors.sources.base import flatten
from agentrl.types import Alarm, StepRecord


class LoopMonitor:
    """Call it with every step's logs; the alarms that the step raises are returned and handed to the sinks.

    monitor: with thresholds or rules of your own. columns: signal -> name in the logs, where the guess is wrong.
    outputs: sinks by name ("console", "webhook", "file=alarms.jsonl", "wandb", "trackio", a plug-in), by default the
    console, which is stderr. run: whose alarms these are.
    """

    def __init__(
        self,
        monitor: Monitor | None = None,
        *,
        columns: Mapping[str, str] | None = None,
        outputs: Sequence[str] = ("console",),
        run: str = "",
    ) -> None:
        self.monitor = monitor or Monitor()
        self.sinks: list[sinks.Sink] = [sinks.make(spec, run) for spec in outputs]
        self.columns = dict(columns or {})
        self.seen: set[str] = set()
        self.mapping: SignalMap = guess_mapping([], self.columns)

    def __call__(self, step: int, logs: Mapping[str, Any]) -> list[Alarm]:
        """Alarms of this step, usually none. Nested logs are flattened; what is no number is passed over.

        A second log of the same step, and one with neither reward nor loss, are no step.
        """
        values = flatten(logs)
        if step == self.monitor.last_step:
            return []
        if not values.keys() <= self.seen:
            self.seen |= values.keys()
            self.mapping = guess_mapping(self.seen, self.columns)
            self.monitor.trainer, self.monitor.clipped_in_loss = self.mapping.trainer, self.mapping.clipped_in_loss
        metrics = self.mapping.apply(values)
        if "loss" not in metrics and "reward" not in metrics:
            return []
        alarms = self.monitor.observe(StepRecord(step, metrics))
        for alarm in alarms:
            for sink in self.sinks:
                sink(alarm)
        return alarms

    def close(self) -> None:
        """Deliver what is still on its way; at the end of the loop."""
        sinks.close(self.sinks)

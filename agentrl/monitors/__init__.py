"""Monitors: phases and alarms from one record per step. Standard library only.

`Monitor` is the door: `Monitor().observe(StepRecord(step, {"reward": ..., "entropy": ...}))` returns alarms.
"""

from agentrl.monitors.alarms import Monitor, page
from agentrl.monitors.loop import LoopMonitor
from agentrl.monitors.phases import PhaseState
from agentrl.monitors.signals import SIGNALS, guess_mapping
from agentrl.monitors.thresholds import Thresholds
from agentrl.types import Alarm, StepRecord

__all__ = [
    "SIGNALS", "Alarm", "LoopMonitor", "Monitor", "PhaseState", "StepRecord", "Thresholds", "guess_mapping", "page",
]  # fmt: skip

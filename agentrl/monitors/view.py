"""What a rule sees at one step, and what it may answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from agentrl.monitors.falls import Falls
from agentrl.monitors.phases import PhaseState
from agentrl.monitors.stats import Series
from agentrl.monitors.thresholds import Thresholds
from agentrl.types import StepRecord

Level = Literal["info", "warn", "critical"]
ORDER: dict[str, int] = {"info": 0, "warn": 1, "critical": 2}


@dataclass
class Finding:
    """A rule's answer: something is wrong now. `signals`: name -> (value, threshold)."""

    level: Level
    message: str
    signals: dict[str, tuple[float, float]]
    remedy: str
    evidence: tuple[str, ...] = ()
    by: Literal["delta", "logprob", "reward", "error"] = "delta"  # how the responsible groups are found
    immediate: bool = False  # not a trend: raise at the first step, even during the warm-up
    story: str = ""  # the cause that fits (`causes`)


@dataclass
class View:
    """The step and its past."""

    record: StepRecord
    series: Mapping[str, Series]
    phase: PhaseState
    thresholds: Thresholds
    seen: int  # records so far, this one included
    memory: dict[str, Any] = field(default_factory=dict)  # a rule's own plain-JSON state, kept between steps
    clipped_in_loss: bool = False  # a token counts as clipped only where clipping changes its loss
    tool_changed: str | None = None  # what outside the policy jumped, in words (`causes.tool_changed`)

    def falls(self, name: str) -> Falls | None:
        """The significant losses of a judged signal that is still logged."""
        one = self.get(name)
        return None if one is None else one.falls

    @property
    def warmup(self) -> int:
        """Observations before a trend can be judged."""
        return self.thresholds.raising.warmup

    def get(self, name: str, at_least: int = 0) -> Series | None:
        """The series, if it has at least that many observations and its last one is recent."""
        one = self.series.get(name)
        if one is None or one.count < max(at_least, 1):
            return None
        if one.steps[-1] == self.record.step:
            return one
        spacing = max(1, (one.steps[-1] - one.steps[0]) // max(1, len(one.steps) - 1))
        return one if self.record.step - one.steps[-1] <= 3 * spacing + 3 else None

    def value(self, name: str) -> float | None:
        """This step's value."""
        return self.record.metrics.get(name)


class Rule(Protocol):
    """A pure function of the view (and the rule's own memory in it)."""

    name: str

    def __call__(self, view: View) -> Finding | None:
        """None where nothing is wrong."""
        ...

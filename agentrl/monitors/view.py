"""What a rule sees at one step, and what it may answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from agentrl.monitors.phases import PhaseState
from agentrl.monitors.stats import Series
from agentrl.types import StepRecord

Level = Literal["info", "warn", "critical"]
ORDER: dict[str, int] = {"info": 0, "warn": 1, "critical": 2}


@dataclass(frozen=True)
class Thresholds:
    """Every threshold of the alarm rules: unit, default, reason. The statistics are in `stats`.

    Share, z and ratio thresholds have no unit of the task in them, so they do not depend on the reward's scale, the
    model's size or the learning rate.
    """

    warmup: int = 10  # no trend alarm before this many steps: a rolling median and a slope need them to mean anything
    hold: int = 3  # steps in a row before a trend alarm is raised: one odd batch is not a trend
    clear: int = 10  # quiet steps before an alarm ends
    cooldown: int = 20  # steps before an alarm that ended may be raised again at the same level
    # large updates: 3 % of tokens outside the trust region every step. The surrogate objective is blind there, and
    # healthy runs stay well below (see the table of scripts/monitor_table.py).
    clip_share: float = 0.03
    # the same in nats per token and step where no clip fraction is logged: every update makes sampled tokens 3 %
    # more or less likely
    delta_size: float = 0.03
    size_span: int = 8  # steps in the median of the update size
    # both limits are this much higher before that step: the first steps of Adam are of full size whatever the gradient
    # is, and no slope over ten noisy rewards excludes that they rise
    early: int = 15
    early_factor: float = 2.0
    rising_z: float = 2.0  # standard errors of the reward's slope that count as "it is learning"
    rising_span: int = 20  # steps in that slope
    # entropy rise: deviations that are forgiven per step, and how many must add up; a fifth of a deviation above the
    # start for 20 steps, or one deviation for five. Healthy runs stay below their start.
    rise_drift: float = 0.25
    rise_limit: float = 4.0
    entropy_noise: float = 0.05  # at least 5 % per step, so that a smooth entropy is not judged too finely
    # degradation: standard errors, combined over signals by Stouffer's rule; one signal counts from `floor` (a signal
    # that is at its best speaks against) to `cap` (no single one decides alone). On stationary noise three signals
    # reach 4.5 for 3 steps in a row in about one run of 300 steps in six.
    degradation_z: float = 4.5
    floor: float = -2.0
    cap: float = 6.0
    entropy_factor: float = 1.2  # and it must matter: entropy a fifth above its lowest level, or
    reward_lost: float = 0.2  # a fifth of the peak reward gone
    decline_lost: float = 0.35  # warn: over a third of the peak of the rolling mean reward gone, and
    decline_z: float = 2.5  # that many standard errors below its best level, so that it is not noise
    collapse_lost: float = 0.4  # critical: 40 % of the peak of the 5-step mean reward gone, close to half


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


@dataclass
class View:
    """The step and its past."""

    record: StepRecord
    series: Mapping[str, Series]
    phase: PhaseState
    thresholds: Thresholds
    seen: int  # records so far, this one included
    memory: dict[str, Any] = field(default_factory=dict)  # a rule's own plain-JSON state, kept between steps

    def get(self, name: str, at_least: int = 0) -> Series | None:
        """The series, if it has at least that many observations and its last one is recent."""
        one = self.series.get(name)
        if one is None or one.count < max(at_least, 1):
            return None
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

"""Online classifier of the phases of a collapse (LLDS §5, Def. 5.1, A.3; arXiv 2512.04220).

`learning`: the likelihood of correct responses rises, or the reward does and nothing shows that the likelihood does
not. `I` early stagnation: it stays flat while the reward rises. `II` steady decay: it falls while the reward has not
yet fallen and gradient norm and entropy are steady. `III` acceleration: it falls faster than before, or entropy and
gradient norm rise with it, or the reward goes with it. `plateau`: neither moves, or correct responses vanished before
there was a reward to lose. `warmup`: too few correct responses so far to say; a log without their likelihood stays
there until the reward is lost.

Noise first: the likelihood is flat where the noise is so small that a rise of a fifth over the window would have shown,
and it falls where its slope and its distance from the best level so far are both more standard errors than luck gives,
unless the updates themselves, where that is measured, make correct responses more likely.

`death_spiral` (Def. 5.1): the change of the correct responses' likelihood by the updates is below a negative constant
and keeps getting more negative. The likelihood under the sampling policy is survivor-biased (responses that became
unlikely stop being sampled), so the phase is a description for the reader; alarms rest on other evidence too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from agentrl.monitors.falls import best_by_luck
from agentrl.monitors.stats import WINDOW, Series, median
from agentrl.monitors.thresholds import PhaseThresholds, SpiralThresholds

Phase = Literal["warmup", "learning", "plateau", "I", "II", "III"]


@dataclass(frozen=True)
class PhaseState:
    """What the classifier says after a step."""

    phase: Phase
    since: int  # step at which this phase began
    death_spiral: bool
    decay_since: int | None  # step of the likelihood's best level, while it is below it; for a roll-back
    slopes: dict[str, float] = field(default_factory=dict)  # per step, for display


class PhaseClassifier:
    """Feed it the shared `Series` of a monitor, step by step. All statistics are in the series."""

    def __init__(self, thresholds: PhaseThresholds | None = None, spiral: SpiralThresholds | None = None) -> None:
        self.thresholds, self.spiral = thresholds or PhaseThresholds(), spiral or SpiralThresholds()
        self.state = PhaseState("warmup", 0, False, None)
        self._pending: tuple[Phase, int, int] | None = None  # a phase not announced yet, since when, for how long

    def observe(self, step: int, series: Mapping[str, Series]) -> PhaseState:
        """Classify the step whose values were already pushed into `series`."""
        now, slopes = self._phase(step, series)
        phase, since = self._debounce(now, step)
        likelihood = series.get("logprob_correct")
        falling = likelihood is not None and likelihood.count >= self.thresholds.warmup and likelihood.drop() > 2
        self.state = PhaseState(
            phase=phase,
            since=since,
            death_spiral=death_spiral(series.get("delta_correct"), self.spiral),
            decay_since=likelihood.highest_step if likelihood is not None and falling else None,
            slopes=slopes,
        )
        return self.state

    def _debounce(self, now: Phase, step: int) -> tuple[Phase, int]:
        """The phase to announce and its first step: a change counts once it has lasted `hold` steps."""
        if now == self.state.phase:
            self._pending = None
            return self.state.phase, self.state.since
        since, held = (
            (self._pending[1], self._pending[2] + 1) if self._pending and self._pending[0] == now else (step, 1)
        )
        if held >= self.thresholds.hold or self.state.phase == "warmup":
            self._pending = None
            return now, since
        self._pending = (now, since, held)
        return self.state.phase, self.state.since

    def _phase(self, step: int, series: Mapping[str, Series]) -> tuple[Phase, dict[str, float]]:
        t = self.thresholds
        likelihood, reward = series.get("logprob_correct"), series.get("reward")
        # The end of phase III, whatever survivors say, and also where nothing correct is left to measure.
        gone = reward is not None and reward.count >= t.warmup and _gone(reward, t)
        if likelihood is None or not likelihood.count:
            return ("III" if gone else "warmup"), {}
        if likelihood.count < t.warmup:  # correct responses are rare, or vanished before there was a level
            vanished = step - likelihood.steps[-1] >= t.warmup
            return ("III" if gone else "plateau" if vanished else "warmup"), {}
        sign: dict[str, int] = {}
        slopes: dict[str, float] = {}
        scores: dict[str, float] = {}  # in standard errors
        for name in ("logprob_correct", "reward", "entropy", "grad_norm"):
            one = series.get(name)
            if one is None or one.count < t.warmup:
                continue
            slopes[name], z = one.trend(t.window)
            scores[name] = z
            sign[name] = 0 if abs(z) < t.significant + best_by_luck(one.count, t.window) else (1 if z > 0 else -1)
        if gone:
            return "III", slopes
        if sign["logprob_correct"] > 0:
            return "learning", slopes
        limit = t.significant + best_by_luck(likelihood.count, t.window)
        spared = _raised_by_updates(series.get("delta_correct"))
        if sign["logprob_correct"] == 0 or likelihood.drop() < limit or spared:
            return self._not_falling(likelihood, slopes, scores, sign.get("reward", 0) > 0), slopes
        recent = likelihood.trend(max(t.window // 2, 5))[0]
        accelerating = recent < t.fast * slopes["logprob_correct"]
        unrest = sign.get("entropy", 0) > 0 and sign.get("grad_norm", 1) > 0
        return ("III" if accelerating or unrest or sign.get("reward", 0) < 0 else "II"), slopes

    def _not_falling(
        self, likelihood: Series, slopes: dict[str, float], scores: dict[str, float], rising: bool
    ) -> Phase:
        """Neither rises nor falls for certain. What is not clear stays what it was, but no collapse."""
        t, z = self.thresholds, scores["logprob_correct"]
        if rising:
            if abs(z) <= t.flat and _shown_flat(likelihood, slopes["logprob_correct"], t):
                return "I"
            if z > -t.flat:
                return "learning"
        elif abs(z) <= t.flat:
            return "plateau"
        return "plateau" if self.state.phase in ("warmup", "III") else self.state.phase

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"state": dict(vars(self.state)), "pending": list(self._pending) if self._pending else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.state = PhaseState(**state["state"])
        pending = state["pending"]
        self._pending = (pending[0], pending[1], pending[2]) if pending else None


def _shown_flat(likelihood: Series, slope: float, t: PhaseThresholds) -> bool:
    """Whether a rise by `hidden` over the window would have shown: two standard errors of the slope are less."""
    n = min(likelihood.count, t.window)
    span = likelihood.steps[-1] - likelihood.steps[-n]
    return abs(slope) * span + 2 * likelihood.noise() * math.sqrt(12 / n) < t.hidden


def _raised_by_updates(delta: Series | None) -> bool:
    """Whether the updates make correct responses more likely: then harder questions are answered, nothing decays."""
    return delta is not None and median(delta.last(WINDOW)) > 0


def _gone(reward: Series, t: PhaseThresholds) -> bool:
    """Half of the reward is gone, significantly where the series says so."""
    if reward.falls is not None:
        return reward.falls.significant(t.collapsed, t.collapsed_z) is not None
    return reward.lost() >= t.collapsed and reward.earned()


def death_spiral(delta: Series | None, t: SpiralThresholds) -> bool:
    """Δ is mostly negative, its median is below -ε, and the newer half is more negative than the older half."""
    if delta is None or delta.count < t.window:
        return False
    window = delta.last(t.window)
    older, newer = window[: t.window // 2], window[t.window // 2 :]
    negative = sum(v < 0 for v in window) / len(window)
    return negative >= t.share and median(window) < -t.epsilon and median(newer) < median(older)

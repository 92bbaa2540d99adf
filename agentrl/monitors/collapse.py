"""The main rule: is this run about to collapse?

Five kinds of evidence, each with its own statistic, because no single signal is early and specific:

- *large updates that do not pay*: the share of tokens that the updates push out of the trust region stays high while
  the reward does not rise. The earliest sign: it is there before anything has degraded.
- *entropy rise*: entropy stays above where the run started (a CUSUM) while the reward does not rise. A run that learns
  becomes more certain; one that forgets becomes less so. Needs no assumption on the size of updates.
- *degradation*: entropy above its lowest level, reward and the likelihood of correct responses below their best, each
  in standard errors of its own noise, combined. Later, but sees a decline that begins after much progress.
- *death spiral*: the updates themselves make correct responses less likely, more so every time (LLDS Def. 5.1).
- *reward decline*: the reward itself. Late by definition.

Any of them is a warning. It becomes critical when the reward is on its way down by two fifths of its peak.
Left out after trying, because it did not separate healthy from collapsing runs: the slope of the probe set's
likelihood (it falls in healthy runs too: the policy moves away from any stored response) and the gradient norm.
"""

from __future__ import annotations

import math

from agentrl.monitors.stats import WINDOW
from agentrl.monitors.view import Finding, View

EVIDENCE = ("large_updates", "entropy_rise", "degradation", "death_spiral", "reward_decline")

Signals = dict[str, tuple[float, float]]


def large_updates(view: View) -> Signals | None:
    """Update size over its threshold and the reward not rising; None otherwise or where it cannot be known."""
    t = view.thresholds.collapse
    reward = view.get("reward", t.size_span)
    if reward is None:
        return None
    clip, delta = view.get("clip_fraction", t.size_span), view.get("delta_correct", t.size_span)
    found: Signals = {}
    factor = t.early_factor if view.seen < t.early else 1.0
    if clip is not None and (share := clip.level(t.size_span)) >= factor * t.clip_share:
        found["clip_fraction"] = (share, factor * t.clip_share)
    if delta is not None:
        size = sorted(abs(v) for v in delta.last(t.size_span))[t.size_span // 2]
        if size >= factor * t.delta_size:
            found["delta_correct"] = (size, factor * t.delta_size)
    if not found:
        return None
    slope, z = reward.trend(t.rising_span)
    if z > t.rising_z:
        return None
    return {**found, "reward_slope": (slope, 0.0)}


def entropy_rise(view: View) -> Signals | None:
    """CUSUM of log entropy above its first level, in deviations of its noise; None while the reward rises."""
    t, entropy = view.thresholds.collapse, view.get("entropy", WINDOW)
    if entropy is None or not entropy.first:
        return None
    if entropy.steps[-1] == view.record.step:  # a new value
        above = (entropy.scaled(entropy.values[-1]) - entropy.scaled(entropy.first)) / entropy.noise(t.entropy_noise)
        total = view.memory.get("entropy_sum", 0.0) + above - t.rise_drift
        view.memory["entropy_sum"] = min(max(0.0, total), 3 * t.rise_limit)  # capped, so that it can end
    total = view.memory.get("entropy_sum", 0.0)
    reward = view.get("reward", view.warmup)
    if total <= t.rise_limit or entropy.level() < t.entropy_factor * entropy.first:
        return None
    if reward is not None and reward.trend(t.rising_span)[1] > t.rising_z:
        return None
    return {"entropy": (entropy.level(), entropy.first), "entropy_cusum": (total, t.rise_limit)}


def degradation(view: View) -> Signals | None:
    """Entropy up, reward down, likelihood of correct responses down: combined standard errors over the threshold."""
    t = view.thresholds.collapse
    scores: dict[str, float] = {}
    for name, up in (("entropy", True), ("reward", False), ("logprob_correct", False)):
        one = view.get(name, view.warmup)
        if one is not None:
            scores[name] = min(max(one.rise() if up else one.drop(), t.floor), t.cap)
    if not scores:
        return None
    total = sum(scores.values()) / len(scores) ** 0.5
    entropy, reward = view.get("entropy", view.warmup), view.get("reward", view.warmup)
    matters = (entropy is not None and _factor_above_lowest(view) >= t.entropy_factor) or (
        reward is not None and reward.lost() >= t.reward_lost
    )
    if total < t.degradation_z or not matters:
        return None
    return {"degradation_z": (total, t.degradation_z), **{f"{k}_z": (v, t.cap) for k, v in scores.items()}}


def spiral(view: View) -> Signals | None:
    """The death spiral of the phase classifier: what the alarm of that name and the collapse rule both report."""
    delta = view.get("delta_correct")
    if delta is None or not view.phase.death_spiral:
        return None
    t = view.thresholds.death_spiral
    return {"delta_correct": (delta.level(t.window), -t.epsilon)}


def reward_decline(view: View) -> Signals | None:
    """The reward itself is well below its peak: late, but all there is in a log with nothing else."""
    t, reward = view.thresholds.collapse, view.get("reward", view.warmup)
    if reward is None or reward.lost() < t.decline_lost or reward.drop() < t.decline_z:
        return None
    return {"reward_lost": (reward.lost(), t.decline_lost)}


def evidence(view: View, only: tuple[str, ...] = EVIDENCE) -> dict[str, Signals]:
    """All evidence present at this step, by name."""
    found = {name: _STATISTICS[name](view) for name in only}
    return {name: signals for name, signals in found.items() if signals is not None}


_STATISTICS = {
    "large_updates": large_updates,
    "entropy_rise": entropy_rise,
    "degradation": degradation,
    "death_spiral": spiral,
    "reward_decline": reward_decline,
}


class Collapse:
    """Warn on any evidence, critical once the reward goes with it. `only` restricts the evidence, to measure it."""

    name = "collapse"

    def __init__(self, only: tuple[str, ...] = EVIDENCE) -> None:
        self.only = only

    def __call__(self, view: View) -> Finding | None:
        """Combine the evidence of this step and of the last ones."""
        t = view.thresholds.collapse
        now = evidence(view, self.only)
        step = view.record.step
        view.memory.update({name: step for name in now})
        recent = tuple(n for n in EVIDENCE if n in view.memory and step - view.memory[n] <= t.evidence_steps)
        signals = {k: v for found in now.values() for k, v in found.items()}
        reward = view.get("reward", view.warmup)
        if reward is not None and recent and reward.lost() >= t.collapse_lost and reward.earned():
            signals["reward_lost"] = (reward.lost(), t.collapse_lost)
            message = (
                f"Collapse under way: {reward.lost():.0%} of the peak reward {reward.peak_mean:.2f} is gone, after "
                f"{_names(recent)}"
            )
            return Finding("critical", message, signals, self._remedy(view, critical=True), recent)
        if not now:
            return None
        return Finding("warn", self._message(now), signals, self._remedy(view, critical=False), tuple(now))

    def _message(self, now: dict[str, Signals]) -> str:
        parts = []
        if "large_updates" in now:
            found = now["large_updates"]
            size = (
                f"{found['clip_fraction'][0]:.1%} of tokens leave the clip range"
                if "clip_fraction" in found
                else f"correct responses move by {found['delta_correct'][0]:.3f} nats per token"
            )
            parts.append(f"updates are large ({size} every step) and the reward does not rise")
        if "entropy_rise" in now:
            level, first = now["entropy_rise"]["entropy"]
            parts.append(
                f"entropy stays above its start ({first:.3f} to {level:.3f} nats) and the reward does not rise"
            )
        if "degradation" in now:
            worst = sorted((v[0], k.removesuffix("_z")) for k, v in now["degradation"].items() if k != "degradation_z")
            parts.append(
                "degradation, mostly " + " and ".join(name for _, name in worst[::-1][:2]) + ", "
                f"{now['degradation']['degradation_z'][0]:.1f} standard errors from the best level"
            )
        if "reward_decline" in now:
            parts.append(f"the reward lost {now['reward_decline']['reward_lost'][0]:.0%} of its peak")
        if "death_spiral" in now:
            parts.append("updates make correct responses less likely, more so every step (death spiral)")
        return "Collapse ahead: " + "; ".join(parts)

    def _remedy(self, view: View, critical: bool) -> str:
        lr = view.value("lr")
        lower = f"optim.lr={lr / 2:.2g} (now {lr:.2g})" if lr else "optim.lr halved"
        change = f"algorithm.loss.llds.enabled=true, {lower}, train.epochs=1 with train.mini_batches=2"
        back = view.phase.decay_since
        if critical:
            where = f" at or before step {back}" if back is not None else " before the decay"
            return f"Stop and go back to the last checkpoint{where}, then continue with {change}."
        return f"Set {change}."


def _factor_above_lowest(view: View) -> float:
    entropy = view.series["entropy"]
    return math.exp(entropy.scaled(entropy.level()) - entropy.lowest)


def _names(evidence: tuple[str, ...]) -> str:
    return " and ".join(name.replace("_", " ") for name in evidence)

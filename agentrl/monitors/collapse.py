"""The main rule: is this run about to collapse?

Six kinds of evidence, each with its own statistic, because no single signal is early and specific:

- *large updates that do not pay*: the share of tokens that the updates push out of the trust region stays high while
  the reward does not rise. The earliest sign: it is there before anything has degraded.
- *entropy rise*: entropy stays above where the run started (a CUSUM) while the reward is below its best. A run that
  learns becomes more certain; one that forgets becomes less so. Needs no assumption on the size of updates.
- *degradation*: entropy above its lowest level, reward and the likelihood of correct responses below their best, each
  in standard errors of its own noise, combined. Later, but sees a decline that begins after much progress.
- *death spiral*: the updates themselves make correct responses less likely, more so every time (LLDS Def. 5.1).
- *reward decline*: the reward itself, where the loss is significant (`falls`). Late by definition.
- *crash*: the last two rows far below those before. Many real falls take one to three rows, some inside the warm-up.
- *truncation*: most responses are cut by the length limit, and were not at the start.

Any of them is a warning. It becomes critical when a significant loss of the reward comes close to half of its best.
Which cause fits is named by `causes`.
Left out after trying, because it did not separate healthy from collapsing runs: the slope of the probe set's
likelihood (it falls in healthy runs too: the policy moves away from any stored response), the gradient norm, and
entropy that rises at a flat reward in other people's runs.
"""

from __future__ import annotations

import math

from agentrl.monitors.causes import story_of
from agentrl.monitors.falls import Fall
from agentrl.monitors.stats import WINDOW
from agentrl.monitors.view import Finding, View

EVIDENCE = (
    "large_updates",
    "entropy_rise",
    "degradation",
    "death_spiral",
    "reward_decline",
    "crash",
    "truncation",
)
AT_ONCE = ("reward_decline", "crash", "truncation")  # significant or lasting by themselves: no further steps are waited

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
    least = t.clip_share_loss if view.clipped_in_loss else t.clip_share
    if clip is not None and (share := clip.level(t.size_span)) >= factor * least:
        found["clip_fraction"] = (share, factor * least)
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
    """CUSUM of log entropy above its first level, in deviations of its noise; None while the reward holds."""
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
    gate = (t.rise_gate_share, t.rise_gate_z) if view.seen <= t.rise_early else (t.gate_share, t.gate_z)
    if reward is not None and (reward.trend(t.rising_span)[1] > t.rising_z or not _below_best(view, *gate)):
        return None
    return {"entropy": (entropy.level(), entropy.first), "entropy_cusum": (total, t.rise_limit)}


def degradation(view: View) -> Signals | None:
    """Entropy up, reward down, likelihood of correct responses down: combined standard errors over the threshold."""
    t = view.thresholds.collapse
    entropy, reward = view.get("entropy", view.warmup), view.get("reward", view.warmup)
    matters = (entropy is not None and _factor_above_lowest(view) >= t.entropy_factor) or (
        reward is not None and reward.lost() >= t.reward_lost
    )
    if not matters or (reward is not None and not _below_best(view, t.gate_share, t.gate_z)):
        return None  # the standard errors below are the costlier question
    scores: dict[str, float] = {}
    for name, up in (("entropy", True), ("reward", False), ("logprob_correct", False)):
        one = view.get(name, view.warmup)
        if one is not None:
            scores[name] = min(max(one.rise() if up else one.drop(), t.floor), t.cap)
    total = sum(scores.values()) / len(scores) ** 0.5
    if total < t.degradation_z:
        return None
    return {"degradation_z": (total, t.degradation_z), **{f"{k}_z": (v, t.cap) for k, v in scores.items()}}


def _below_best(view: View, share: float, z: float) -> bool:
    """Whether a part of the reward is gone that is more than noise."""
    falls = view.falls("reward")
    return falls is None or falls.significant(share, z) is not None


def spiral(view: View) -> Signals | None:
    """The death spiral of the phase classifier: what the alarm of that name and the collapse rule both report."""
    delta = view.get("delta_correct")
    if delta is None or not view.phase.death_spiral:
        return None
    t = view.thresholds.death_spiral
    return {"delta_correct": (delta.level(t.window), -t.epsilon)}


def reward_decline(view: View) -> Signals | None:
    """The reward itself is significantly below its best: late, but all there is in a log with nothing else."""
    t, falls = view.thresholds.collapse, view.falls("reward")
    fall = falls.significant(t.decline_lost, t.decline_z) if falls is not None else None
    return _lost(fall, t.decline_lost, t.decline_z) if fall is not None else None


def crash(view: View) -> Signals | None:
    """The last rows are far below those before, in the warm-up too; a changed tool shows in one row (`causes`)."""
    t, falls = view.thresholds.collapse, view.falls("reward")
    if falls is None:
        return None
    fall = falls.crash(t.crash_rows, t.crash_kept, t.crash_z)
    if fall is None and view.tool_changed is not None:
        fall = falls.crash(1, t.crash_kept, t.crash_z)
    return _lost(fall, 1 - t.crash_kept, t.crash_z) if fall is not None else None


def truncation(view: View) -> Signals | None:
    """Most responses are cut in several rows in a row, few were at the start, and the reward has begun to go."""
    t, cut = view.thresholds.collapse, view.get("truncated_share", view.thresholds.collapse.truncated_rows)
    if cut is None or min(cut.last(t.truncated_rows)) < t.truncated or cut.values_at_start() >= t.truncated_from:
        return None
    falls, limits = view.falls("reward"), view.thresholds.truncation
    if falls is None or falls.significant(limits.lost, limits.z) is None:
        return None
    return {"truncated_share": (min(cut.last(t.truncated_rows)), t.truncated)}


def _lost(fall: Fall, share: float, z: float) -> Signals:
    return {"reward_lost": (fall.share, share), "reward_lost_z": (fall.z, z)}


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
    "crash": crash,
    "truncation": truncation,
}


class Collapse:
    """Warn on any evidence, critical once the reward goes. `only` restricts the evidence, to measure it."""

    name = "collapse"

    def __init__(self, only: tuple[str, ...] = EVIDENCE) -> None:
        self.only = only

    def __call__(self, view: View) -> Finding | None:
        """Combine the evidence of this step; name the story that fits."""
        t = view.thresholds.collapse
        now = evidence(view, self.only)
        signals = {k: v for found in now.values() for k, v in found.items()}
        falls = view.falls("reward")
        alone = "reward_decline" not in self.only  # measured by itself: the loss of the reward is not its evidence
        gone = falls.significant(t.collapse_lost, t.collapse_z) if falls is not None and not alone else None
        if not now and gone is None:
            return None
        story = story_of(view, tuple(now))
        if gone is not None:
            signals |= _lost(gone, t.collapse_lost, t.collapse_z)
            message = (
                f"Collapse under way: {gone.share:.0%} of the best mean reward {gone.peak:.2f} is gone ({gone.z:.1f} "
                f"standard errors). {story.words}"
            )
            return Finding(
                "critical",
                message,
                signals,
                story.remedy(view, critical=True),
                tuple(now),
                immediate=True,
                story=story.name,
            )
        at_once = any(name in now for name in AT_ONCE)
        message = f"{self._message(now)}. {story.words}"
        remedy = story.remedy(view, critical=False)
        return Finding("warn", message, signals, remedy, tuple(now), immediate=at_once, story=story.name)

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
                f"entropy stays above its start ({first:.3f} to {level:.3f} nats) and the reward is below its best"
            )
        if "degradation" in now:
            worst = sorted((v[0], k.removesuffix("_z")) for k, v in now["degradation"].items() if k != "degradation_z")
            parts.append(
                "degradation, mostly " + " and ".join(name for _, name in worst[::-1][:2]) + ", "
                f"{now['degradation']['degradation_z'][0]:.1f} standard errors from the best level"
            )
        if "truncation" in now:
            parts.append(
                f"{now['truncation']['truncated_share'][0]:.0%} of the responses are cut and the reward goes down"
            )
        for name, words in (("crash", "fell within two steps by"), ("reward_decline", "lost")):
            if name in now:
                share, z = now[name]["reward_lost"][0], now[name]["reward_lost_z"][0]
                parts.append(f"the reward {words} {share:.0%} ({z:.1f} standard errors)")
        if "death_spiral" in now:
            parts.append("updates make correct responses less likely, more so every step (death spiral)")
        return "Collapse ahead: " + "; ".join(parts)


def _factor_above_lowest(view: View) -> float:
    entropy = view.series["entropy"]
    return math.exp(entropy.scaled(entropy.level()) - entropy.lowest)

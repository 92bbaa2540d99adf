"""Validation by data set: one of them drops to 0 where the mean over all of them hides it."""

from __future__ import annotations

from agentrl.monitors.view import Finding, View


class SourceLost:
    """Held-out success of a data set is near 0 that was not, while the training reward holds."""

    name = "source_lost"

    def __call__(self, view: View) -> Finding | None:
        """Warn when more data sets are near 0 than in any validation before, twice in a row.

        A data set that is hard is near 0 from the start, and one that is small now and then: neither is news.
        """
        zero, reward = view.series.get("validation_at_zero"), view.get("reward", view.warmup)
        t = view.thresholds.validation
        if zero is None or reward is None or zero.steps[-1] != view.record.step or zero.count < t.least + 1:
            return None
        before, now = max(zero.values[:-2]), min(zero.values[-2:])
        falling = reward.falls is not None and reward.falls.significant(t.lost, 2.0) is not None
        if now <= before or falling:
            return None
        return Finding(
            "warn",
            f"Held-out success is near 0 on {now:.0f} data sets, {before:.0f} before, while the training reward holds "
            f"({reward.level():.3f})",
            {"validation_at_zero": (now, before), "reward": (reward.level(), reward.peak_mean)},
            "Look at that data set's validation by hand: its tool, its answers, its prompt. Against it would speak: "
            "few questions in it.",
            by="reward",
            immediate=True,
            story="tool or data changed",
        )

"""The other rules: one small class each, most of them about things that look like learning and are not.

They are deliberately blunt (factors of two and more, against the run's own start), because a warning that is wrong
once is not read the second time. Thresholds stand next to the comparison that uses them, with their unit.
"""

from __future__ import annotations

import math

from agentrl.monitors.view import Finding, View

_FINITE = ("loss", "grad_norm", "entropy", "kl", "ratio_max", "logprob_correct", "logprob_incorrect", "reward")


class NonFinite:
    """NaN or infinity in a number that the update rests on."""

    name = "non_finite"

    def __call__(self, view: View) -> Finding | None:
        """Critical from the third step in a row: the update is then lost for good or the weights already are."""
        bad = [k for k in _FINITE if (v := view.value(k)) is not None and not math.isfinite(v)]
        skipped = view.value("skipped_updates") or 0
        if not bad and not skipped:
            view.memory["run"] = 0
            return None
        run = view.memory["run"] = view.memory.get("run", 0) + 1
        what = ", ".join(bad) if bad else f"{skipped:.0f} skipped updates"
        signals = {k: (view.record.metrics[k], math.inf) for k in bad} or {"skipped_updates": (skipped, 0.0)}
        return Finding(
            "critical" if run >= 3 else "warn",
            f"Not finite at this step: {what}" + (f", {run} steps in a row" if run > 1 else ""),
            signals,
            "Look at the dumped batch; set optim.max_grad_norm=0.5, a lower optim.lr, or model.dtype=float32.",
            by="logprob",
            immediate=True,
        )


class DeathSpiral:
    """Def. 5.1 of the LLDS paper on the measured Δ."""

    name = "death_spiral"

    def __call__(self, view: View) -> Finding | None:
        """Warn; what it means for the run is up to the collapse rule."""
        delta = view.get("delta_correct")
        if delta is None or not view.phase.death_spiral:
            return None
        return Finding(
            "warn",
            f"Death spiral: an update changes correct responses by {delta.level(12):.3f} nats per token, and falling",
            {"delta_correct": (delta.level(12), -0.005)},
            "Set algorithm.loss.llds.enabled=true (algorithm.loss.llds.weight=0.2 or more).",
        )


class EntropyCollapse:
    """The policy stops exploring while there is still something to find."""

    name = "entropy_collapse"

    def __call__(self, view: View) -> Finding | None:
        """Info below 15 % of the starting entropy; warn below 5 % if the log shows questions that are still unsolved.

        A task that is solved ends with little entropy too, so without such a sign it stays information.
        """
        entropy, t = view.get("entropy", view.thresholds.warmup), view.thresholds
        if entropy is None or not entropy.first:
            return None
        share = entropy.level() / entropy.first
        if share >= 0.15:
            return None
        wrong, correct = view.get("groups_all_wrong", t.warmup), view.get("correct_rate", t.warmup)
        unsolved = (wrong is not None and wrong.level() >= 0.2) or (correct is not None and correct.level() <= 0.7)
        limit = 0.05 if share < 0.05 and unsolved else 0.15
        return Finding(
            "warn" if limit == 0.05 else "info",
            f"Entropy is at {share:.0%} of where it started ({entropy.level():.4f} nats per token)",
            {"entropy": (entropy.level(), limit * entropy.first)},
            "Set algorithm.loss.entropy_coef=0.001 or algorithm.loss.clip_high=0.28; check rollout.temperature=1.0.",
            by="reward",
        )


class RewardHacking:
    """Reward rises for a reason that is not the task."""

    name = "reward_hacking"

    def __call__(self, view: View) -> Finding | None:
        """Reward up while correctness is not, or while answers come from nothing retrieved."""
        t = view.thresholds
        reward = view.get("reward", 2 * t.warmup)
        if reward is None or reward.trend(t.rising_span)[1] <= 3:
            return None
        correct = view.get("correct_rate", 2 * t.warmup)
        if correct is not None and correct.trend(t.rising_span)[1] < -1:
            return Finding(
                "warn",
                "Reward rises while the share of correct answers falls: a part of the reward other than the answer "
                "(format, length) is being earned",
                {"correct_rate": (correct.level(), correct.peak_mean), "reward": (reward.level(), reward.peak_mean)},
                "Read the rollouts named here; lower the weight of the other reward parts in env.kwargs.",
                by="reward",
            )
        if correct is not None and correct.trend(t.rising_span)[1] < 1 and correct.level() <= 0.5 * reward.level():
            return Finding(
                "info",
                f"Reward rises to {reward.level():.2f} while the share of correct answers stays at "
                f"{correct.level():.2f}: most of it is not for answers (format, length)",
                {"correct_rate": (correct.level(), 0.5 * reward.level()), "reward": (reward.level(), reward.peak_mean)},
                "Normal while a format is being learnt; if it lasts, lower the weight of the other reward parts in "
                "env.kwargs.",
                by="reward",
            )
        found = view.get("answer_in_retrieved", 2 * t.warmup)
        if found is not None and found.first and found.first >= 0.2 and found.level() < 0.5 * found.first:
            return Finding(
                "warn",
                f"Reward rises while the share of rewarded answers that stand in what was retrieved fell from "
                f"{found.first:.0%} to {found.level():.0%}",
                {"answer_in_retrieved": (found.level(), 0.5 * found.first)},
                "Read the rollouts named here: memorised answers, leaked questions, or a reward that can be guessed.",
                by="reward",
            )
        search = view.get("valid_search_ratio", 2 * t.warmup)
        if search is not None and search.first and search.first >= 0.1 and search.level() < 0.5 * search.first:
            return Finding(
                "warn",
                f"Reward rises while searches fall from {search.first:.0%} to {search.level():.0%} of the actions: "
                "answers come from nothing retrieved",
                {"valid_search_ratio": (search.level(), 0.5 * search.first)},
                "Read the rollouts named here: memorised answers, leaked questions, or a reward for guessing.",
                by="reward",
            )
        return None


class Mismatch:
    """The sampler and the trainer drift apart: what is learned is no longer what was sampled."""

    name = "mismatch"

    def __call__(self, view: View) -> Finding | None:
        """Warn at twice the starting level and at least 0.01 nats per token (an ordinary bf16 sampler has less).

        Judged on the mean difference, or where only that is logged on the divergence, with 0.001 nats (half the square
        of a difference of about 0.045).
        """
        for name, least in (("mismatch", 0.01), ("kl_sampler", 0.001)):
            gap = view.get(name, view.thresholds.warmup)
            if gap is None or gap.first is None:
                continue
            level, limit = gap.level(), max(2 * gap.first, least)
            if level < limit or gap.rise() < 4:
                return None
            return Finding(
                "warn",
                f"Sampler and trainer disagree by {level:.4f} nats per token, {level / max(gap.first, 1e-9):.1f} times "
                "the start",
                {name: (level, limit)},
                "Set algorithm.loss.tis_cap=2.0; check that the sampler got the last weights and uses the same dtype.",
                by="logprob",
            )
        return None


class ToolOutage:
    """Tools fail: episodes are lost, or the agent learns from error messages."""

    name = "tool_outage"

    def __call__(self, view: View) -> Finding | None:
        """Failures in three steps running, far above the run's start; critical when no episode was left."""
        failed = view.value("failed_rollouts") or 0
        if failed and view.value("reward") is None:
            return Finding(
                "critical",
                f"All episodes of this step failed ({failed:.0f})",
                {"failed_rollouts": (failed, 0.0)},
                "Check the search server (agentrl retriever query WORDS --url URL) and retriever.url.",
                by="error",
                immediate=True,
            )
        for name in ("failed_rollouts", "tool_errors"):
            one = view.get(name)
            if one is None or one.count < 3:
                continue
            recent, limit = one.last(3), 3 * max(one.first or 0.0, 0.0) + 1
            if min(recent) >= limit:
                return Finding(
                    "warn",
                    f"{name.replace('_', ' ')}: {recent[-1]:.0f} at this step, three steps running",
                    {name: (recent[-1], limit)},
                    "Check the search server and retriever.timeout_s; lower rollout.concurrency if it is overloaded.",
                    by="error",
                    immediate=True,
                )
        latency = view.get("tool_latency_s", view.thresholds.warmup)
        if latency is not None and latency.first and latency.level() > max(5 * latency.first, 1.0):
            return Finding(
                "info",
                f"Tool calls take {latency.level():.1f} s, {latency.level() / latency.first:.0f} times the start",
                {"tool_latency_s": (latency.level(), max(5 * latency.first, 1.0))},
                "Check the search server's load; lower rollout.concurrency.",
            )
        return None


class InvalidActions:
    """The agent forgets the protocol."""

    name = "invalid_actions"

    def __call__(self, view: View) -> Finding | None:
        """Warn when a fifth of all actions became unreadable since the best level."""
        valid = view.get("valid_action_ratio", view.thresholds.warmup)
        if valid is None or valid.highest - valid.level() < 0.2:
            return None
        return Finding(
            "warn",
            f"Valid actions fell from {valid.highest:.0%} to {valid.level():.0%}",
            {"valid_action_ratio": (valid.level(), valid.highest - 0.2)},
            "Go back to a checkpoint before the fall; check rollout.stop and rollout.max_tokens_per_turn.",
            by="reward",
        )


class Truncation:
    """Episodes run into a limit."""

    name = "truncation"

    def __call__(self, view: View) -> Finding | None:
        """Warn at a quarter of the episodes if that is twice the start."""
        cut = view.get("truncated_share", view.thresholds.warmup)
        if cut is None or cut.first is None or cut.level() < max(0.25, 2 * cut.first):
            return None
        return Finding(
            "warn",
            f"{cut.level():.0%} of the episodes are cut by a limit, {cut.first:.0%} at the start",
            {"truncated_share": (cut.level(), max(0.25, 2 * cut.first))},
            "Raise rollout.max_tokens_per_turn, rollout.max_turns or rollout.max_context, or look for endless output.",
            by="reward",
        )


class GradientSpike:
    """One step's gradient is far out of the ordinary."""

    name = "gradient_spike"

    def __call__(self, view: View) -> Finding | None:
        """Info at ten times the median of the last steps: the norm alone does not foretell a collapse."""
        one = view.get("grad_norm", view.thresholds.warmup)
        now = view.value("grad_norm_max") or view.value("grad_norm")
        if one is None or now is None or not math.isfinite(now):
            return None
        usual = one.level(20)
        if usual <= 0.01 or now < 10 * usual:
            return None
        return Finding(
            "info",
            f"Gradient norm {now:.2f}, {now / usual:.0f} times the usual {usual:.2f}",
            {"grad_norm": (now, 10 * usual)},
            "Keep optim.max_grad_norm=1.0 or lower; look at the batch's longest and least likely responses.",
            by="logprob",
            immediate=True,
        )


class NoSignal:
    """Nearly all groups have equal rewards: there is nothing to learn from."""

    name = "no_signal"

    def __call__(self, view: View) -> Finding | None:
        """Info at nine tenths of the groups."""
        right = view.get("groups_all_correct", view.thresholds.warmup)
        wrong = view.get("groups_all_wrong", view.thresholds.warmup)
        if right is None or wrong is None or right.level() + wrong.level() < 0.9:
            return None
        return Finding(
            "info",
            f"{right.level():.0%} of the groups are all correct and {wrong.level():.0%} all wrong: hardly any gradient",
            {"groups_all_correct": (right.level(), 0.9), "groups_all_wrong": (wrong.level(), 0.9)},
            "Set algorithm.dynamic_sampling=true, or use questions of another difficulty.",
            by="reward",
        )

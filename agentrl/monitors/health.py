"""The other rules: one small class each, most of them about things that look like learning and are not.

They are deliberately blunt (factors of two and more, against the run's own start), because a warning that is wrong
once is not read the second time. Thresholds are in `thresholds`.
"""

from __future__ import annotations

import math

from agentrl.monitors.collapse import spiral
from agentrl.monitors.falls import best_by_luck
from agentrl.monitors.stats import Series
from agentrl.monitors.thresholds import RewardHackingThresholds
from agentrl.monitors.view import Finding, View

_FINITE = ("loss", "grad_norm", "entropy", "kl", "ratio_max", "logprob_correct", "logprob_incorrect", "reward")


class NonFinite:
    """NaN or infinity in a number that the update rests on."""

    name = "non_finite"

    def __call__(self, view: View) -> Finding | None:
        """Critical after some steps in a row: the update is then lost for good or the weights already are."""
        bad = [k for k in _FINITE if (v := view.value(k)) is not None and not math.isfinite(v)]
        skipped = view.value("skipped_updates") or 0
        if not bad and not skipped:
            view.memory["run"] = 0
            return None
        run = view.memory["run"] = view.memory.get("run", 0) + 1
        what = ", ".join(bad) if bad else f"{skipped:.0f} skipped updates"
        signals = {k: (view.record.metrics[k], math.inf) for k in bad} or {"skipped_updates": (skipped, 0.0)}
        return Finding(
            "critical" if run >= view.thresholds.non_finite.critical_run else "warn",
            f"Not finite at this step: {what}" + (f", {run} steps in a row" if run > 1 else ""),
            signals,
            "Look at the dumped batch; set optim.max_grad_norm=0.5, a lower optim.lr, or model.dtype=float32.",
            by="logprob",
            immediate=True,
            story="numerical failure",
        )


class DeathSpiral:
    """Def. 5.1 of the LLDS paper on the measured Δ."""

    name = "death_spiral"

    def __call__(self, view: View) -> Finding | None:
        """Warn; what it means for the run is up to the collapse rule."""
        signals = spiral(view)
        if signals is None:
            return None
        change = signals["delta_correct"][0]
        return Finding(
            "warn",
            f"Death spiral: an update changes correct responses by {change:.3f} nats per token, and falling",
            signals,
            "Set algorithm.loss.llds.enabled=true (algorithm.loss.llds.weight=0.2 or more).",
            story="likelihood displacement",
        )


class EntropyCollapse:
    """The policy stops exploring while there is still something to find."""

    name = "entropy_collapse"

    def __call__(self, view: View) -> Finding | None:
        """Info at little of the starting entropy; warn at very little if the log shows questions that are unsolved.

        A task that is solved ends with little entropy too, so without such a sign it stays information.
        """
        entropy, t = view.get("entropy", view.warmup), view.thresholds.entropy_collapse
        if entropy is None or not entropy.first:
            return None
        share = entropy.level() / entropy.first
        if share >= t.low:
            return None
        wrong, correct = view.get("groups_all_wrong", view.warmup), view.get("correct_rate", view.warmup)
        unsolved = (wrong is not None and wrong.level() >= t.all_wrong) or (
            correct is not None and correct.level() <= t.correct
        )
        limit = t.very_low if share < t.very_low and unsolved else t.low
        return Finding(
            "warn" if limit == t.very_low else "info",
            f"Entropy is at {share:.0%} of where it started ({entropy.level():.4f} nats per token)",
            {"entropy": (entropy.level(), limit * entropy.first)},
            "Set algorithm.loss.entropy_coef=0.001 or algorithm.loss.clip_high=0.28; check rollout.temperature=1.0.",
            by="reward",
            story="entropy collapse",
        )


class RewardHacking:
    """Reward rises for a reason that is not the task."""

    name = "reward_hacking"

    def __call__(self, view: View) -> Finding | None:
        """Reward up while correctness is not, or while answers come from nothing retrieved."""
        t, span = view.thresholds.reward_hacking, view.thresholds.collapse.rising_span
        reward = view.get("reward", 2 * view.warmup)
        correct = view.get("correct_rate", 2 * view.warmup)
        if reward is not None and correct is not None and (gap := _gap(reward, correct, t)) is not None:
            return Finding(
                "warn",
                f"The reward rose by {gap[0]:.2f} over the share of correct answers, which did not rise: something "
                "else than the answer is being rewarded",
                {"reward_without_correct": (gap[0], t.gap), "correct_rate": (correct.level(), correct.peak_mean)},
                "Read the rollouts named here; lower the weight of the other reward parts in env.kwargs.",
                by="reward",
                story="reward hacking",
            )
        found, search = (view.get(k, 2 * view.warmup) for k in ("answer_in_retrieved", "valid_search_ratio"))
        others = (correct, found, search)
        if reward is None or all(one is None for one in others) or reward.trend(span)[1] <= t.rising_z:
            return None
        if correct is not None and correct.trend(span)[1] < t.falling_z:
            return Finding(
                "warn",
                "Reward rises while the share of correct answers falls: a part of the reward other than the answer "
                "(format, length) is being earned",
                {"correct_rate": (correct.level(), correct.peak_mean), "reward": (reward.level(), reward.peak_mean)},
                "Read the rollouts named here; lower the weight of the other reward parts in env.kwargs.",
                by="reward",
                story="reward hacking",
            )
        if (
            correct is not None
            and correct.trend(span)[1] < t.flat_z
            and correct.level() <= t.correct_share * reward.level()
        ):
            return Finding(
                "info",
                f"Reward rises to {reward.level():.2f} while the share of correct answers stays at "
                f"{correct.level():.2f}: most of it is not for answers (format, length)",
                {
                    "correct_rate": (correct.level(), t.correct_share * reward.level()),
                    "reward": (reward.level(), reward.peak_mean),
                },
                "Normal while a format is being learnt; if it lasts, lower the weight of the other reward parts in "
                "env.kwargs.",
                by="reward",
                story="reward hacking",
            )
        if (
            found is not None
            and found.first
            and found.first >= t.least_retrieved
            and found.level() < t.kept * found.first
        ):
            return Finding(
                "warn",
                f"Reward rises while the share of rewarded answers that stand in what was retrieved fell from "
                f"{found.first:.0%} to {found.level():.0%}",
                {"answer_in_retrieved": (found.level(), t.kept * found.first)},
                "Read the rollouts named here: memorised answers, leaked questions, or a reward that can be guessed.",
                by="reward",
                story="reward hacking",
            )
        if (
            search is not None
            and search.first
            and search.first >= t.least_search
            and search.level() < t.kept * search.first
        ):
            return Finding(
                "warn",
                f"Reward rises while searches fall from {search.first:.0%} to {search.level():.0%} of the actions: "
                "answers come from nothing retrieved",
                {"valid_search_ratio": (search.level(), t.kept * search.first)},
                "Read the rollouts named here: memorised answers, leaked questions, or a reward for guessing.",
                by="reward",
                story="reward hacking",
            )
        return None


def _gap(reward: Series, correct: Series, t: RewardHackingThresholds) -> tuple[float, float] | None:
    """(rise of reward minus correct share, its standard errors) of the last five rows over those before, or None.

    Question difficulty moves both, so that their difference has little noise.
    """
    pairs = dict(zip(correct.steps, correct.values))
    rows = [(r, pairs[s]) for s, r in zip(reward.steps, reward.values) if s in pairs][-25:]
    new, old = rows[-5:], rows[:-5]
    if len(old) < 10:
        return None
    before, now = [r - c for r, c in old], [r - c for r, c in new]
    middle, right = sum(before) / len(before), sum(c for _, c in old) / len(old)
    spread = math.sqrt(sum((g - middle) ** 2 for g in before) / len(before)) + 0.01
    rise = sum(now) / 5 - middle
    z = rise / (spread * math.sqrt(1 / 5 + 1 / len(old)))
    rising = sum(c for _, c in new) / 5 > right + 0.02
    if rise < t.gap or z < t.gap_z or right < t.least_correct or rising:
        return None
    return rise, z


class Mismatch:
    """The sampler and the trainer drift apart: what is learned is no longer what was sampled."""

    name = "mismatch"

    def __call__(self, view: View) -> Finding | None:
        """Warn far above the starting level of the mean difference, or where only that is logged of the divergence."""
        t = view.thresholds.mismatch
        for name, least in (("mismatch", t.least), ("kl_sampler", t.least_kl)):
            gap = view.get(name, view.warmup)
            if gap is None or gap.first is None:
                continue
            level, limit = gap.level(), max(t.factor * gap.first, least)
            if level < limit or gap.rise() < t.z:
                return None
            return Finding(
                "warn",
                f"Sampler and trainer disagree by {level:.4f} nats per token, {level / max(gap.first, 1e-9):.1f} times "
                "the start",
                {name: (level, limit)},
                "Set algorithm.loss.tis_cap=2.0; check that the sampler got the last weights and uses the same dtype.",
                by="logprob",
                story="train-inference mismatch",
            )
        return None


class ToolOutage:
    """Tools fail: episodes are lost, or the agent learns from error messages."""

    name = "tool_outage"

    def __call__(self, view: View) -> Finding | None:
        """Failures in several steps running, far above the run's start; critical when no episode was left."""
        t = view.thresholds.tool_outage
        failed = view.value("failed_rollouts") or 0
        if failed and view.value("reward") is None:
            return Finding(
                "critical",
                f"All episodes of this step failed ({failed:.0f})",
                {"failed_rollouts": (failed, 0.0)},
                "Check the search server (agentrl retriever query WORDS --url URL) and retriever.url.",
                by="error",
                immediate=True,
                story="tool or data changed",
            )
        for name in ("failed_rollouts", "tool_errors"):
            one = view.get(name)
            if one is None or one.count < t.run:
                continue
            recent, limit = one.last(t.run), t.factor * max(one.first or 0.0, 0.0) + 1
            if min(recent) >= limit:
                return Finding(
                    "warn",
                    f"{name.replace('_', ' ')}: {recent[-1]:.0f} at this step, {t.run} steps running",
                    {name: (recent[-1], limit)},
                    "Check the search server and retriever.timeout_s; lower rollout.concurrency if it is overloaded.",
                    by="error",
                    immediate=True,
                    story="tool or data changed",
                )
        if (finding := self._calls(view)) is not None:
            return finding
        latency = view.get("tool_latency_s", view.warmup)
        if (
            latency is not None
            and latency.first
            and latency.level() > max(t.latency_factor * latency.first, t.latency_s)
        ):
            return Finding(
                "info",
                f"Tool calls take {latency.level():.1f} s, {latency.level() / latency.first:.0f} times the start",
                {"tool_latency_s": (latency.level(), max(t.latency_factor * latency.first, t.latency_s))},
                "Check the search server's load; lower rollout.concurrency.",
                story="tool or data changed",
            )
        return None

    def _calls(self, view: View) -> Finding | None:
        """Calls that raise lose no episode: the model reads their errors, and learns from them."""
        t = view.thresholds.tool_outage
        failing = view.get("call_failures")
        if failing is None or failing.count <= t.run or (failing.first or 0.0) * t.factor >= t.calls:
            return None
        recent = failing.last(t.run)
        if min(recent) < t.calls:
            return None
        return Finding(
            "warn",
            f"{recent[-1]:.0%} of the tool calls raise or are late, {t.run} steps running",
            {"call_failures": (recent[-1], t.calls)},
            "Look at what the tools say (agentrl rollouts show RUN --worst 3); call_failures/NAME names the tool.",
            by="error",
            immediate=True,
            story="tool or data changed",
        )


class InvalidActions:
    """The agent forgets the protocol."""

    name = "invalid_actions"

    def __call__(self, view: View) -> Finding | None:
        """Warn when a part of all actions became unreadable since the best level."""
        lost = view.thresholds.invalid_actions.lost
        valid = view.get("valid_action_ratio", view.warmup)
        if valid is None or valid.highest - valid.level() < lost:
            return None
        return Finding(
            "warn",
            f"Valid actions fell from {valid.highest:.0%} to {valid.level():.0%}",
            {"valid_action_ratio": (valid.level(), valid.highest - lost)},
            "Go back to a checkpoint before the fall; check rollout.stop and rollout.max_tokens_per_turn.",
            by="reward",
        )


_LIMITS = (
    (
        "cut_share",
        "responses are cut at rollout.max_tokens_per_turn",
        "Raise rollout.max_tokens_per_turn (and rollout.max_context with it), or look for endless output.",
    ),
    (
        "truncated_share",
        "episodes are cut by a limit",
        "Raise rollout.max_tokens_per_turn, rollout.max_turns or rollout.max_context, or look for endless output.",
    ),
)


class Truncation:
    """Episodes run into a limit."""

    name = "truncation"

    def __call__(self, view: View) -> Finding | None:
        """Most cut in several rows running, few at the start, or nearly all: a warning once the reward goes, too."""
        found = (self._cut(view, *limit) for limit in _LIMITS)
        return next((finding for finding in found if finding is not None), None)

    def _cut(self, view: View, name: str, what: str, remedy: str) -> Finding | None:
        t, rows = view.thresholds.truncation, view.thresholds.collapse.truncated_rows
        cut = view.get(name, rows)
        if cut is None:
            return None
        start, now = cut.values_at_start(), min(cut.last(rows))
        limit = t.share if start < t.start else start + t.more
        if name == "cut_share":  # where nearly all are cut, there is no start to compare with
            limit = min(limit, t.nearly_all)
        if limit > 1 or now < limit:
            return None
        falls = view.falls("reward")
        lost = falls is not None and falls.significant(t.lost, t.z) is not None
        return Finding(
            "warn" if lost else "info",
            f"At least {now:.0%} of the {what} for {rows} steps, {start:.0%} at the start"
            + ("" if lost else "; the reward holds"),
            {name: (now, limit)},
            remedy,
            by="reward",
            immediate=True,
            story="length explosion",
        )


class GradientSpike:
    """One step's gradient is far out of the ordinary."""

    name = "gradient_spike"

    def __call__(self, view: View) -> Finding | None:
        """Info at a multiple of the median of the last steps: the norm alone does not foretell a collapse."""
        t = view.thresholds.gradient_spike
        if (count := view.memory.get("explosions", 0)) >= t.explosions:
            return Finding(
                "warn",
                f"{count} gradient norms above {t.explosion:g} so far: the direction of such an update is noise",
                {"grad_norm": (view.value("grad_norm") or 0.0, t.explosion)},
                "Set optim.max_grad_norm=0.5, model.dtype=float32, a lower optim.lr; look at those batches.",
                by="logprob",
                immediate=True,
                story="numerical failure",
            )
        one = view.get("grad_norm", view.warmup)
        now = view.value("grad_norm_max") or view.value("grad_norm")
        if one is None or now is None or not math.isfinite(now):
            return None
        usual = one.level(t.span)
        if usual <= t.least or now < t.factor * usual:
            return None
        return Finding(
            "info",
            f"Gradient norm {now:.2f}, {now / usual:.0f} times the usual {usual:.2f}",
            {"grad_norm": (now, t.factor * usual)},
            "Keep optim.max_grad_norm=1.0 or lower; look at the batch's longest and least likely responses.",
            by="logprob",
            immediate=True,
        )


class NoSignal:
    """Nearly all groups have equal rewards, or none of their responses counts as correct: nothing is learned."""

    name = "no_signal"

    def __call__(self, view: View) -> Finding | None:
        """Info where most groups have no contrast, warn where they have it and the method cannot use it."""
        share = view.thresholds.no_signal.share
        unreached = view.get("groups_out_of_reach", 1)
        if unreached is not None and unreached.level() >= share:
            return Finding(
                "warn",
                f"In {unreached.level():.0%} of the groups rewards differ, but no response is correct, which the "
                "method needs: no reward reaches algorithm.correct_threshold",
                {"groups_out_of_reach": (unreached.level(), share)},
                "Lower algorithm.correct_threshold to the reward of a correct response.",
                by="reward",
            )
        equal = view.get("groups_equal", view.warmup)
        if equal is not None:
            if equal.level() < share:
                return None
            return self._finding(view, f"{equal.level():.0%} of the groups have equal rewards", equal.level(), share)
        flat = [view.get(name, view.warmup) for name in ("reward_group_std", "grad_norm")]
        if all(one is not None and not any(one.last(view.warmup)) for one in flat):
            return self._finding(view, "rewards do not differ within groups and the gradient is 0", 1.0, share)
        right, wrong = (view.get(f"groups_all_{kind}", view.warmup) for kind in ("correct", "wrong"))
        if right is None or wrong is None or right.level() + wrong.level() < share:
            return None
        return Finding(
            "info",
            f"{right.level():.0%} of the groups are all correct and {wrong.level():.0%} all wrong: hardly any gradient",
            {"groups_all_correct": (right.level(), share), "groups_all_wrong": (wrong.level(), share)},
            self._remedy(view),
            by="reward",
            story="data exhausted",
        )

    def _finding(self, view: View, what: str, value: float, share: float) -> Finding:
        return Finding(
            "info",
            f"{what[0].upper()}{what[1:]}: hardly any gradient",
            {"groups_equal": (value, share)},
            self._remedy(view),
            by="reward",
            story="data exhausted",
        )

    def _remedy(self, view: View) -> str:
        """Other questions do not help where responses do not come to their end."""
        cut = view.get("cut_share", view.warmup)
        if cut is not None and cut.level() >= view.thresholds.truncation.nearly_all:
            return f"Raise rollout.max_tokens_per_turn first: {cut.level():.0%} of the responses are cut at it."
        return "Set algorithm.dynamic_sampling=true, or use questions of another difficulty."


class Validation:
    """Validation against training: the held-out reward falls while the training reward does not."""

    name = "validation"

    def __call__(self, view: View) -> Finding | None:
        """Warn when the last two validations lost a part of the best, and the training reward is at its best.

        The noise of one is the standard error that is logged with it, or what validations differ by.
        """
        t = view.thresholds.validation
        held_out, reward = view.series.get("validation"), view.get("reward", view.warmup)
        if held_out is None or reward is None or held_out.steps[-1] != view.record.step or held_out.count < t.least:
            return None
        values = list(held_out.values)
        best, last = max(values[:-2]), max(values[-2:])
        falling = reward.falls is not None and reward.falls.significant(t.lost, 2.0) is not None
        if best <= 0 or last > (1 - t.lost) * best or falling:
            return None
        error = view.value("validation_error") or held_out.noise()
        certain = best - best_by_luck(len(values) - 2, 1) * error - sum(values[-2:]) / 2
        if certain < t.z * error * math.sqrt(1 + 1 / 2):
            return None
        return Finding(
            "warn",
            f"Held-out reward fell from {best:.3f} to {last:.3f} while that of training holds ({reward.level():.3f})",
            {"validation": (last, (1 - t.lost) * best), "reward": (reward.level(), reward.peak_mean)},
            "Compare rollouts of training and held-out questions: leaked or memorised answers, a reward that can be "
            "earned without the task, or another tool in validation; go back to the best held-out checkpoint.",
            by="reward",
            immediate=True,
            story="reward hacking",
        )

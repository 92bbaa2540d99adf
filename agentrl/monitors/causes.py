"""Name the cause: which story fits what the signals show, what speaks for it, what would speak against it, what helps.

A story is one entry of `STORIES`, asked in order; the first whose signs are there is named. Its remedy is in agentrl's
words here; `remedies.in_terms_of` adds the names of the trainer that wrote the log. `ACTING` are the stories in which
softer updates or going back helps: the guard acts on these and on no other. On a dead tool it must not roll back.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

from agentrl.monitors.stats import Series
from agentrl.monitors.view import View

TIME_FACTOR = 3.0  # generation time per response token over its median of TIME_SPAN steps
TIME_SPAN = 20
JUMP_Z = 8.0  # deviations of one step's change that count as a jump
JUMP_SHARE = 0.3  # and the least relative size of it
STEADY = 1.6  # factor within which entropy and KL count as unchanged
CUT = 0.7  # share of responses cut in the row of a cliff from which the length limit explains it
RECENT = 20  # steps after a jump for which it explains what follows


@dataclass(frozen=True)
class Story:
    """One cause. `words`: what speaks for it and what would speak against it."""

    name: str
    words: str
    advice: str
    back: bool  # whether going back to a checkpoint helps

    def remedy(self, view: View, critical: bool) -> str:
        """What to do, in agentrl's own options."""
        lr = view.value("lr")
        lower = f"optim.lr={lr / 2:.2g} (now {lr:.2g})" if lr else "optim.lr halved"
        advice = self.advice.replace("{lower}", lower)
        if not critical or not self.back:
            return advice
        since = view.phase.decay_since
        where = f" at or before step {since}" if since is not None else " before the decay"
        return f"Stop and go back to the last checkpoint{where}, then: {advice}"


_SOFTER = "Set algorithm.loss.llds.enabled=true, {lower}, train.epochs=1 with train.mini_batches=2."

#: Stories in which the guard may act: softer updates, LLDS or an earlier checkpoint help.
ACTING = frozenset(
    {
        "updates too large",
        "likelihood displacement",
        "entropy collapse",
        "length explosion",
        "numerical failure",
        "policy degrades",
        "",
    }
)


def tool_changed(view: View) -> str | None:
    """What of the world outside the policy jumped in the last steps, in words; None where nothing did.

    The policy itself must look as before: entropy and divergence unchanged over the jump, or the update before a cliff
    of the reward too small to have made it.
    """
    at = view.memory.get("tool_step")
    if at is not None and view.record.step - at <= RECENT:
        return str(view.memory["tool_words"])
    what = _slow(view) or _jump(view)
    if what is not None and not (_steady(view, "entropy") and _steady(view, "kl")):
        what = None
    what = what or _cliff(view)
    if what is None:
        return None
    view.memory["tool_step"], view.memory["tool_words"] = view.record.step, what
    return what


def _slow(view: View) -> str | None:
    """Generation time per response token far above its median."""
    gen, length = view.get("t_rollout_s", TIME_SPAN), view.get("response_length", TIME_SPAN)
    if gen is None or length is None or gen.steps[-1] != view.record.step or length.steps[-1] != view.record.step:
        return None
    pairs = [t / n for t, n in zip(gen.last(TIME_SPAN + 1), length.last(TIME_SPAN + 1)) if n > 0]
    if len(pairs) <= TIME_SPAN // 2:
        return None
    usual = sorted(pairs[:-1])[(len(pairs) - 1) // 2]
    if usual <= 0 or pairs[-1] < TIME_FACTOR * usual:
        return None
    return f"generation takes {pairs[-1] / usual:.1f} times as long per response token"


def _jump(view: View) -> str | None:
    """Length, turns or tool calls change in one step by far more than they ever do, away from what is usual.

    Back to it is no change of the world; and where the update before lowered correct responses, the policy jumped.
    """
    if _lowered(view):
        return None
    for name, words in (
        ("response_length", "the response length"),
        ("turns", "the number of turns"),
        ("tool_errors", "the number of failed tool calls"),
        ("valid_search_ratio", "the share of executed searches"),
    ):
        one = view.get(name, TIME_SPAN)
        if one is None or one.steps[-1] != view.record.step:
            continue
        values = one.last(TIME_SPAN + 1)
        change = values[-1] - values[-2]
        level = sorted(values[:-1])[len(values[:-1]) // 2]
        away = min(abs(change), abs(values[-1] - level))
        if away < JUMP_SHARE * max(abs(values[-2]), 1e-9):
            continue
        changes = sorted(abs(b - a) for a, b in itertools.pairwise(values[:-1]))
        usual = max(changes[int(0.9 * (len(changes) - 1))], 1e-3 * abs(values[-2]))
        if abs(change) >= JUMP_Z / 1.645 * usual:
            return f"{words} jumped from {values[-2]:.3g} to {values[-1]:.3g} in one step"
    return None


def _cliff(view: View) -> str | None:
    """The reward falls off in one row, and the update before it was an ordinary, small one."""
    t, falls = view.thresholds.collapse, view.falls("reward")
    clip, norm = view.get("clip_fraction", view.warmup), view.get("grad_norm", view.warmup)
    if falls is None or clip is None or not any(clip.values) or falls.crash(1, t.crash_kept, t.crash_z) is None:
        return None
    if falls.values[-2] - falls.base < t.crash_kept * (max(falls.values[-TIME_SPAN:-1]) - falls.base):
        return None  # it fell before this row
    for one, least in ((clip, t.clip_share_loss), (norm, 0.0)):
        if one is not None:
            values = one.last(TIME_SPAN + 1)
            usual = sorted(values[:-1])[len(values[:-1]) // 2]
            if values[-2] > max(TIME_FACTOR * usual, least):
                return None
    cut = view.value("truncated_share")
    if cut is not None and cut >= CUT:
        return None  # the length limit has changed
    if _lowered(view):
        view.memory["lowered_step"] = view.record.step
    lowered = view.memory.get("lowered_step")
    if lowered is not None and view.record.step - lowered <= RECENT:
        return None  # what was measured of the policy says that it has changed; the same cliff is seen for some steps
    return "the reward fell off in one step, and the update before it was small"


def _lowered(view: View) -> bool:
    """Whether the update of this step or of the one before lowered correct responses by more than a large update."""
    moved = view.get("delta_correct")
    return moved is not None and min(moved.last(2)) < -view.thresholds.collapse.delta_size


def _steady(view: View, name: str) -> bool:
    """Whether a signal is about where it was; where it is not logged nothing speaks against it."""
    one = view.get(name, 5)
    if one is None:
        return True
    now, before = one.values[-1], one.last(TIME_SPAN + 1)[:-1]
    usual = sorted(before)[len(before) // 2]
    return usual == now or (usual > 0 and now > 0 and 1 / STEADY <= now / usual <= STEADY)


def _level(view: View, name: str, n: int = 5) -> tuple[Series, float] | None:
    one = view.get(name, n)
    return None if one is None else (one, one.level(n))


def _tool(view: View, evidence: tuple[str, ...]) -> Story | None:
    what = view.tool_changed
    timeouts = view.get("tool_timeouts")
    if (
        what is None
        and timeouts is not None
        and timeouts.values[-1] > 0.1
        and timeouts.values[-1] > 3 * timeouts.values[0]
    ):
        what = f"validation's tool calls run out of time ({timeouts.values[-1]:.2f} per question)"
    if what is None:
        return None
    return Story(
        "tool or data changed",
        f"Story: tool or data changed: {what}; the policy looks as before. Against it would speak: an entropy that "
        "rises first, or a tool that answers when asked by hand.",
        "Check the retriever (agentrl retriever query WORDS --url URL) and the data; do not roll back: the "
        "policy is as it was. Pause until the tool answers, then go on.",
        False,
    )


def _numerical(view: View, evidence: tuple[str, ...]) -> Story | None:
    norms = view.get("grad_norm")
    big = view.memory.get("explosions", 0) if norms is not None else 0
    broken = [k for k in ("loss", "grad_norm", "entropy") if (v := view.value(k)) is not None and v != v]
    if not broken and big < view.thresholds.gradient_spike.explosions:
        return None
    why = (
        f"{', '.join(broken)} is NaN"
        if broken
        else f"{big} gradient norms above {view.thresholds.gradient_spike.explosion:g}"
    )
    return Story(
        "numerical failure",
        f"Story: numerical failure: {why}. Against it would speak: finite, ordinary norms in full precision.",
        "Set model.dtype=float32, optim.max_grad_norm=0.5, {lower}; look at the dumped batch.",
        True,
    )


def _mismatch(view: View, evidence: tuple[str, ...]) -> Story | None:
    t = view.thresholds.mismatch
    for name, least in (("mismatch", t.least), ("kl_sampler", t.least_kl)):
        found = _level(view, name)
        if (
            found
            and found[0].first is not None
            and found[1] >= max(t.factor * found[0].first, least)
            and found[0].rise() >= t.z
        ):
            return Story(
                "train-inference mismatch",
                f"Story: train-inference mismatch: {name} went from {found[0].first:.4f} to {found[1]:.4f}. Against it "
                "would speak: a difference that was as large from the start.",
                "Set algorithm.loss.tis_cap=2.0; check that the sampler got the last weights and uses the same dtype.",
                False,
            )
    return None


def _length(view: View, evidence: tuple[str, ...]) -> Story | None:
    cut, length = view.get("truncated_share", 2), view.get("response_length", 10)
    share = min(cut.last(2)) if cut is not None else 0.0
    grown = length.level() / length.first if length is not None and length.first else 1.0
    if share < 0.3 and grown < 2:
        return None
    return Story(
        "length explosion",
        f"Story: length explosion: responses are {grown:.1f} times as long as at the start, {share:.0%} are cut. "
        "Against it would speak: correct answers among the long ones.",
        "Raise rollout.max_tokens_per_turn if answers need it; else {lower} and "
        "algorithm.loss.aggregation=token-mean; read the longest responses.",
        True,
    )


def _exhausted(view: View, evidence: tuple[str, ...]) -> Story | None:
    equal = _level(view, "groups_equal")
    right, wrong = _level(view, "groups_all_correct"), _level(view, "groups_all_wrong")
    share = equal[1] if equal else (right[1] + wrong[1]) if right and wrong else 0.0
    if share < view.thresholds.no_signal.share:
        return None
    return Story(
        "data exhausted",
        f"Story: data exhausted: {share:.0%} of the groups have equal rewards, so that noise alone moves the "
        "policy. Against it would speak: mixed groups.",
        "Set algorithm.dynamic_sampling=true, or use questions of another difficulty; {lower}.",
        True,
    )


def _hacking(view: View, evidence: tuple[str, ...]) -> Story | None:
    correct, reward = view.get("correct_rate", 10), view.get("reward", 10)
    if correct is None or reward is None or reward.lost() > 0.1 or correct.lost() < 0.3:
        return None
    return Story(
        "reward hacking",
        f"Story: reward hacking: the reward holds while correct answers fell by {correct.lost():.0%}. Against it would "
        "speak: held-out answers that rise with the reward.",
        "Read the rollouts named here; lower the weight of the reward's other parts in env.kwargs; raise "
        "algorithm.loss.kl_coef.",
        True,
    )


def _displaced(view: View, evidence: tuple[str, ...]) -> Story | None:
    likelihood = view.get("logprob_correct", view.warmup)
    falling = likelihood is not None and likelihood.drop() > 4
    if "death_spiral" not in evidence and not view.phase.death_spiral and not falling:
        return None
    return Story(
        "likelihood displacement",
        "Story: likelihood displacement: correct responses become less likely with the updates. Against it would "
        "speak: a Δ of correct responses above 0.",
        _SOFTER,
        True,
    )


def _large(view: View, evidence: tuple[str, ...]) -> Story | None:
    t, clip = view.thresholds.collapse, view.get("clip_fraction", 3)
    least = t.early_factor * (t.clip_share_loss if view.clipped_in_loss else t.clip_share)
    if "large_updates" not in evidence and (clip is None or max(clip.last(3)[:-1]) < least):
        return None
    return Story(
        "updates too large",
        "Story: updates too large for what they learn. Against it would speak: a reward that rises again, or a "
        "clip fraction that settles.",
        _SOFTER,
        True,
    )


def _certain(view: View, evidence: tuple[str, ...]) -> Story | None:
    entropy = view.get("entropy", view.warmup)
    if entropy is None or not entropy.first or entropy.level() >= view.thresholds.entropy_collapse.low * entropy.first:
        return None
    return Story(
        "entropy collapse",
        f"Story: entropy collapse: entropy is at {entropy.level() / entropy.first:.0%} of its start. Against it "
        "would speak: a task that is solved.",
        "Set algorithm.loss.entropy_coef=0.001 or algorithm.loss.clip_high=0.28; check rollout.temperature=1.0; "
        "{lower}.",
        True,
    )


STORIES: tuple[Callable[[View, tuple[str, ...]], Story | None], ...] = (
    _numerical,
    _tool,
    _mismatch,
    _large,
    _length,
    _displaced,
    _certain,
    _hacking,
    _exhausted,
)


def story_of(view: View, evidence: tuple[str, ...]) -> Story:
    """The first story whose signs are there; where none is, that the policy degrades."""
    for tell in STORIES:
        if (story := tell(view, evidence)) is not None:
            return story
    return Story(
        "policy degrades",
        "Story: the policy degrades; no signal names a narrower cause.",
        _SOFTER,
        True,
    )

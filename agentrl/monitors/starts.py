"""Ills that are there from the first row: a run that cannot learn as it stands. One rule each, in absolute terms.

Named after the first step as information, and as a warning once it has been so for `starts.rows` steps from the start:
what is ordinary in one row (a learning rate of 0 in the first row of a warm-up) is not in five. Silent for good as soon
as a row is different.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from agentrl.monitors.thresholds import StartThresholds
from agentrl.monitors.view import Finding, View

Signals = dict[str, tuple[float, float]]
Check = Callable[[View, StartThresholds], Signals | None]


@dataclass
class Ill:
    """One rule. `check` says what a row shows, None where it is as it should be, nothing where more rows must tell."""

    name: str
    what: str
    remedy: str
    check: Check
    needs: tuple[str, ...]  # signals, any of which says how it is

    def __call__(self, view: View) -> Finding | None:
        """Judge a row; the first one that is different ends it."""
        if view.memory.get("over"):
            return None
        t = view.thresholds.starts
        signals = self.check(view, t)
        if signals is None:
            view.memory["over"] = any(view.value(name) is not None for name in self.needs)
            return None
        rows = view.memory["rows"] = view.memory.get("rows", 0) + 1
        if not signals:
            return None
        lasting = rows >= t.rows
        message = f"{self.what}, in every row so far ({rows})" if lasting else f"{self.what} in the first row"
        return Finding("warn" if lasting else "info", message, signals, self.remedy, by="reward", immediate=True)


def _above(view: View, name: str, limit: float) -> Signals | None:
    value = view.value(name)
    return {name: (value, limit)} if value is not None and value >= limit else None


def _below(view: View, name: str, limit: float) -> Signals | None:
    value = view.value(name)
    return {name: (value, limit)} if value is not None and 0 <= value <= limit else None


def _equal(view: View, t: StartThresholds) -> Signals | None:
    if (found := _above(view, "groups_equal", t.equal)) is not None:
        return found
    right, wrong = view.value("groups_all_correct"), view.value("groups_all_wrong")
    if right is None or wrong is None or right + wrong < t.equal:
        return None
    return {"groups_all_correct": (right, t.equal), "groups_all_wrong": (wrong, t.equal)}


def _constant(view: View, t: StartThresholds) -> Signals | None:
    """A reward of 0, or one that never changes at all: within groups, or over so many rows where that is not logged."""
    reward = view.value("reward")
    if reward is None or not math.isfinite(reward):
        return None
    first, spread = view.memory.setdefault("first", reward), view.value("reward_group_std")
    if reward != first or (reward != 0 and spread):
        return None
    if reward != 0 and spread is None and view.memory.get("rows", 0) + 1 < t.rows:
        return {}
    return {"reward": (reward, reward)}


def cut_from_start() -> Ill:
    """Most responses are cut."""
    return Ill(
        "cut_from_start",
        "Most responses are cut by the length limit",
        "Raise rollout.max_tokens_per_turn, or ask for shorter turns: what is cut has no answer to reward.",
        lambda view, t: _above(view, "cut_share", t.cut) or _above(view, "truncated_share", t.cut),
        ("cut_share", "truncated_share"),
    )


def equal_from_start() -> Ill:
    """All groups are equal."""
    return Ill(
        "equal_from_start",
        "All groups have equal rewards: there is nothing to learn from",
        "Use easier or harder questions, a larger rollout.group_size, or rollout.temperature=1.0.",
        _equal,
        ("groups_equal", "groups_all_correct"),
    )


def no_reward() -> Ill:
    """Reward 0, or constant."""
    return Ill(
        "no_reward",
        "The reward is 0 or always the same",
        "Read rollouts: is the answer found in the text, is the reward the right one? Then a warm start or easier "
        "questions.",
        _constant,
        ("reward",),
    )


def no_answer() -> Ill:
    """No episode ends with an answer."""
    return Ill(
        "no_answer",
        "No episode ends with an answer",
        "Raise rollout.max_turns and rollout.max_tokens_per_turn, warm-start on the protocol, and check that the "
        "prompt says how to answer.",
        lambda view, t: _below(view, "answered_share", t.answered),
        ("answered_share",),
    )


def no_valid_action() -> Ill:
    """No action can be read."""
    return Ill(
        "no_valid_action",
        "The environment can read no action",
        "Warm-start on demonstrations of the protocol, or use a model that follows the prompt; check rollout.stop.",
        lambda view, t: _below(view, "valid_action_ratio", t.valid),
        ("valid_action_ratio",),
    )


def no_entropy() -> Ill:
    """Entropy near 0."""
    return Ill(
        "no_entropy",
        "Entropy is near 0: all responses to a question are the same",
        "Set rollout.temperature=1.0, or start from a checkpoint that was trained less.",
        lambda view, t: _below(view, "entropy", t.entropy),
        ("entropy",),
    )


def no_gradient() -> Ill:
    """Gradient 0."""
    return Ill(
        "no_gradient",
        "The gradient is 0",
        "See equal rewards and the loss mask: without a difference in a group or a trained token nothing moves.",
        lambda view, t: _below(view, "grad_norm", 0.0),
        ("grad_norm",),
    )


def no_learning_rate() -> Ill:
    """Learning rate 0."""
    return Ill(
        "no_learning_rate",
        "The learning rate is 0 (ordinary in the first row of a warm-up)",
        "Set optim.lr above 0; a warm-up that is longer than the run never ends: optim.warmup_steps.",
        lambda view, t: _below(view, "lr", 0.0),
        ("lr",),
    )

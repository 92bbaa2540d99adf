"""Responses that do not depend on the question any more, are all the same, or contain control tokens.

Entropy sees none of the first: a policy may sample many different texts, and the same ones for every question.
"""

from __future__ import annotations

from agentrl.monitors.view import Finding, View


class TemplateCollapse:
    """The responses tell less and less about the question (arXiv 2604.06268)."""

    name = "template_collapse"

    def __call__(self, view: View) -> Finding | None:
        """Warn where the mutual information of question and response lost a large, significant part of its start."""
        t, one = view.thresholds.diversity, view.get("question_information", view.warmup)
        if one is None or not one.first or one.first <= 0:
            return None
        level, limit = one.level(), t.information * one.first
        if level > limit or one.drop() < t.z:
            return None
        return Finding(
            "warn",
            f"Responses depend less on the question: their mutual information fell from {one.first:.2f} to {level:.2f} "
            "nats, while entropy may look healthy (template collapse)",
            {"question_information": (level, limit)},
            "Set algorithm.dynamic_sampling=true (groups without contrast only add noise), raise "
            "algorithm.loss.kl_coef; read rollouts of different questions side by side.",
            by="reward",
            story="template collapse",
        )


class SameResponses:
    """All responses to a question are nearly the same."""

    name = "same_responses"

    def __call__(self, view: View) -> Finding | None:
        """Info, as a task that is solved ends so, too; a warning while most questions are not."""
        t, one = view.thresholds.diversity, view.get("diversity_within", view.warmup)
        if one is None or not one.first or one.level() > t.within * one.first or one.drop() < t.z:
            return None
        correct = view.get("correct_rate", view.warmup)
        unsolved = correct is not None and correct.level() <= t.unsolved
        return Finding(
            "warn" if unsolved else "info",
            f"Responses to one question are alike: their distance fell from {one.first:.2f} to {one.level():.2f}",
            {"diversity_within": (one.level(), t.within * one.first)},
            "Set algorithm.loss.entropy_coef=0.001 or algorithm.loss.clip_high=0.28; check rollout.temperature=1.0.",
            by="reward",
            story="entropy collapse",
        )


class ControlTokens:
    """Special tokens are sampled in the middle of turns."""

    name = "control_tokens"

    def __call__(self, view: View) -> Finding | None:
        """Warn when their share has jumped far above what it was, in some rows in a row."""
        t = view.thresholds.diversity
        one = view.get("control_tokens", max(view.warmup, t.control_rows + 1))
        if one is None:
            return None
        now, before = min(one.last(t.control_rows)), one.last(20 + t.control_rows)[: -t.control_rows]
        limit = max(t.control, t.control_factor * max(before))
        if now < limit:
            return None
        return Finding(
            "warn",
            f"{now:.1%} of the sampled tokens are control tokens in the middle of a turn, {max(before):.1%} before",
            {"control_tokens": (now, limit)},
            "Check rollout.stop and the chat template; go back to a checkpoint before the jump with optim.lr halved.",
            by="logprob",
            immediate=True,
            story="policy degrades",
        )

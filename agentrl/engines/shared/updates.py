"""What both engines do in an update: the loss of a micro-batch, the rows that count, the learning rate, no dropout."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from agentrl.algorithms import LossNormalizer, Metrics, policy_loss
from agentrl.algorithms.logprobs import token_logprobs
from agentrl.batch import TokenBatch
from agentrl.config import LossConfig, OptimConfig
from agentrl.engines.base import Scorer, ScoreResult
from agentrl.engines.shared.scoring import GroupScores, write_rows


@dataclass(frozen=True)
class Update:
    """A mini-batch, or some of its rows, with all that its loss asks for. Tensors (B, S)."""

    batch: TokenBatch
    advantages: Tensor
    old_logprobs: Tensor
    reference_logprobs: Tensor | None
    loss: LossConfig
    normalizer: LossNormalizer  # of the whole mini-batch
    temperature: float

    def rows(self, index: Tensor) -> Update:
        """The rows `index`, in columns that they fill."""
        batch = self.batch.rows(index)
        S = batch.action_mask.shape[1]
        reference = None if self.reference_logprobs is None else self.reference_logprobs[index, :S]
        return Update(
            batch, self.advantages[index, :S], self.old_logprobs[index, :S], reference,
            self.loss, self.normalizer, self.temperature,
        )  # fmt: skip


def loss_of_rows(
    model: Scorer,
    update: Update,
    index: Tensor,
    scores: ScoreResult | None = None,
    groups: GroupScores | None = None,
) -> tuple[Tensor, Metrics]:
    """The loss of the rows `index` (scalar, differentiable) and its metrics, from one forward pass of `model`.

    With `scores` this is the only update of its batch: the policy of this pass is π_old, `old_logprobs` is not read,
    and the rows of `scores` are filled. With `groups` too, the rows are whole groups, NTHR comes from the same pass
    over the output head, and its factor multiplies the advantages.
    """
    part, device, loss = update.rows(index), model.device, update.loss
    batch, reference = part.batch.to(device), part.reference_logprobs
    bonus, advantages = loss.entropy_coef != 0, part.advantages
    if groups is not None:
        logprobs, entropy = _of_groups(model, batch, index, groups, bonus)
        assert scores is not None and scores.nthr_factor is not None
        advantages = advantages * scores.nthr_factor[index, : advantages.shape[1]]
    else:
        logprobs, entropy = model.logprobs(
            batch, update.temperature, entropy=bonus or scores is not None, entropy_gradient=bonus
        )
        if scores is not None:
            write_rows(scores, index, logprobs, entropy)
    return policy_loss(
        logprobs,
        part.old_logprobs.to(device) if scores is None else logprobs.detach(),
        advantages.to(device),
        batch.action_mask,
        config=loss,
        normalizer=update.normalizer,
        turn_ids=batch.turn_ids,
        answer_mask=batch.answer_mask,
        correct=batch.correct,
        reference_logprobs=None if reference is None else reference.to(device),
        rollout_logprobs=batch.rollout_logprobs,
        entropy=entropy if bonus else None,
    )


def _of_groups(
    model: Scorer, batch: TokenBatch, index: Tensor, groups: GroupScores, bonus: bool
) -> tuple[Tensor, Tensor | None]:
    """log π (B, S) of the rows `index`, differentiable, and entropy for a `bonus`; fills the scores of `groups`."""
    mask = batch.action_mask
    hidden = model.hidden(batch.input_ids[:, :-1], batch.attention_mask[:, :-1])[mask]
    done = groups.fill(index, hidden.detach())
    flat, spread = token_logprobs(groups.head, hidden, batch.input_ids[:, 1:][mask], entropy=bonus, done=done)
    zero = torch.zeros(mask.shape, device=flat.device)
    return zero.masked_scatter(mask, flat), None if spread is None else zero.masked_scatter(mask, spread)


def without_dropout(model: Any) -> None:
    """Training mode computes what evaluation mode does: the sampler and the scorer must be the same function."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0


def has_gradient(advantages: Tensor, loss: LossConfig) -> bool:
    """Whether the loss has any gradient: an advantage (B, S) that is not zero, or a part that needs none."""
    return bool(loss.kl_coef or loss.entropy_coef or loss.nll_coef or loss.llds.enabled or (advantages != 0).any())


def rows_with_gradient(batch: TokenBatch, advantages: Tensor, loss: LossConfig) -> Tensor:
    """Indices of the rows that add to the gradient, at least one.

    Where only the clipped surrogate is on, a response whose advantages are all zero (its group's rewards are equal)
    adds exactly nothing to loss and gradient; the divisor has counted it already, so it need not be computed.
    """
    if loss.kl_coef or loss.entropy_coef or loss.nll_coef or loss.llds.enabled:
        return torch.arange(len(batch))
    rows = (advantages != 0).any(1).nonzero()[:, 0]
    # one row keeps the metrics and the gradient (zero) defined
    return rows if len(rows) else batch.lengths().argmin()[None]


def decay_groups(parameters: Iterable[torch.nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for AdamW: weight decay on matrices, none on norms and biases (tensors of one dimension)."""
    trained = list(parameters)
    matrices, others = [p for p in trained if p.dim() > 1], [p for p in trained if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [g for g in groups if g["params"]]


def learning_rate(config: OptimConfig, update: int, total: int) -> float:
    """At optimiser step `update` (from 0) of `total`."""
    scale = min(1.0, (update + 1) / max(1, config.warmup_steps))
    done = min(1.0, update / total)
    if config.schedule == "linear":
        scale *= 1.0 - done
    elif config.schedule == "cosine":
        scale *= 0.5 * (1.0 + math.cos(math.pi * done))
    return config.lr * scale

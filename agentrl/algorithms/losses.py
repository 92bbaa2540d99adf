"""The policy loss: clipped surrogate on action tokens, or `loss.name`'s, and what may be added (docs/algorithms.md).

PPO clip with separate bounds (Schulman et al. 2017, arXiv 1707.06347; Yu et al. 2025, arXiv 2503.14476), dual clip
(Ye et al. 2019, arXiv 1912.09729), sequence-level ratio (GSPO, Zheng et al. 2025, arXiv 2507.18071), k3 KL (Schulman
2020, "Approximating KL divergence"), truncated importance weights, NLL on correct responses (Deng et al. 2025, arXiv
2505.18830, §7.8), entropy bonus, LLDS (`llds.py`).

Every divisor is that of the whole optimiser-step batch, fixed beforehand in a `LossNormalizer`: the losses of its
micro-batches *sum* to the loss of the batch, whatever the split. Parts that are off cost nothing and have no metric.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from agentrl import plugins
from agentrl.algorithms.llds import llds_term, noise_of
from agentrl.config import LossConfig
from agentrl.errors import AlgorithmError

# |log ratio| is cut here: exp(20) ≈ 5e8 is beyond any clip range, and exp(89) would be infinite in fp32.
MAX_LOG_RATIO = 20.0
NOISE_FACTOR = 3.0  # standard deviations of the noise that a decrease must exceed to be believed


@dataclass(frozen=True)
class LossNormalizer:
    """Counts over the batch of one optimiser step, before it is split."""

    action_tokens: int
    sequences: int  # responses with at least one action token
    correct_tokens: int | None = None  # action tokens of correct responses; needed for the NLL term

    @classmethod
    def of(cls, action_mask: Tensor, *, correct: Tensor | None = None) -> LossNormalizer:
        """From the whole batch: action_mask (B, S) bool, correct (B,) bool."""
        per_row = action_mask.sum(1)
        return cls(
            int(per_row.sum()),
            int((per_row > 0).sum()),
            None if correct is None else int(per_row[correct].sum()),
        )


class Metric(NamedTuple):
    """A part of a mean: `total / weight` after adding both over micro-batches. Without a weight the totals add up.

    A name that ends in `_max` holds a largest value instead.
    """

    total: Tensor
    weight: Tensor | None = None


Metrics = dict[str, Metric]


class MetricSums:
    """Adds the metrics of micro-batches; one transfer from the device at the end."""

    def __init__(self) -> None:
        self._parts: list[Metrics] = []

    def add(self, metrics: Metrics) -> None:
        """The metrics of one micro-batch."""
        self._parts.append(metrics)

    def result(self) -> dict[str, float]:
        """The metrics of the batch. A mean over nothing is absent."""
        flat: list[Tensor] = []
        names: list[tuple[str, bool]] = []
        for part in self._parts:
            for name, metric in part.items():
                names.append((name, metric.weight is not None))
                flat.append(metric.total.float())
                if metric.weight is not None:
                    flat.append(metric.weight.float())
        values = iter(torch.stack(flat).tolist() if flat else ())
        total: dict[str, float] = {}
        weight: dict[str, float] = {}
        for name, weighted in names:
            value = next(values)
            if name.endswith("_max"):
                total[name] = max(total.get(name, value), value)
                continue
            total[name] = total.get(name, 0.0) + value
            if weighted:
                weight[name] = weight.get(name, 0.0) + next(values)
        if total.get("ratio_max", 0.0) < 0:
            del total["ratio_max"]  # of no token
        return {n: v / weight[n] if n in weight else v for n, v in total.items() if weight.get(n) != 0.0}


def with_answer_weight(loss: LossConfig, valid_searches: float) -> LossConfig:
    """`loss` with LLDS-MA's scheduled answer weight as this step's number: min(V_s / 2, 1) (LLDS App. B.3)."""
    if not loss.llds.enabled or loss.llds.answer_weight != "schedule":
        return loss
    llds = loss.llds.model_copy(update={"answer_weight": min(valid_searches / 2, 1.0)})
    return loss.model_copy(update={"llds": llds})


def settled(loss: LossConfig, *, unchanged: bool, noise: float, moved: bool) -> LossConfig:
    """`loss` for one update, without the terms that would make a gradient of rounding.

    unchanged: the policy is the one that was scored. noise: of a pair of passes, in nats per √token. moved: the policy
    is no longer the reference. Where the two policies are one, LLDS's gates stay closed and the KL term is zero; else a
    gate opens where its decrease is NOISE_FACTOR times the noise.
    """
    if loss.llds.enabled:
        own = loss.llds.margin
        margin = math.inf if unchanged else NOISE_FACTOR * noise if isinstance(own, str) else own
        loss = loss.model_copy(update={"llds": loss.llds.model_copy(update={"margin": margin})})
    return loss if moved or not loss.kl_coef else loss.model_copy(update={"kl_coef": 0.0})


def clipped(logprobs: Tensor, ratio: Tensor, advantages: Tensor, action_mask: Tensor, config: LossConfig) -> Tensor:
    """The built-in `loss.name`: −min(γA, clip(γ)A) for each token, (B, S), with the dual clip where it is set.

    Every loss has these arguments: logprobs log π (B, S), 0 off action; ratio γ = π / π_old (B, S), of the token or of
    the response as `ratio` says, 1 off action; advantages (B, S); action_mask (B, S) bool; config, the loss's own keys.
    logprobs and ratio carry gradients. What stands off action is ignored; aggregation and added terms come afterwards.
    """
    token = -torch.minimum(ratio * advantages, ratio.clamp(1.0 - config.clip_low, 1.0 + config.clip_high) * advantages)
    if config.dual_clip is not None:
        token = torch.where(advantages < 0, torch.minimum(token, -config.dual_clip * advantages), token)
    return token


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    action_mask: Tensor,
    *,
    config: LossConfig,
    normalizer: LossNormalizer,
    turn_ids: Tensor | None = None,
    answer_mask: Tensor | None = None,
    correct: Tensor | None = None,
    reference_logprobs: Tensor | None = None,
    rollout_logprobs: Tensor | None = None,
    entropy: Tensor | None = None,
) -> tuple[Tensor, Metrics]:
    """The loss of a micro-batch (scalar, differentiable in logprobs and entropy) and its metrics (detached).

    All tensors (B, S) but correct (B,); log-probabilities and entropy in nats; values off action are ignored, even if
    not finite. normalizer counts the whole batch. turn_ids are needed for LLDS with the action gate, answer_mask for
    LLDS-MA, correct for the NLL term, reference_logprobs for the KL, rollout_logprobs for truncated importance weights,
    entropy for the bonus; a part that is on and lacks its tensor raises AlgorithmError.

    Metrics: loss, pg_loss, clip_fraction, clip_fraction_low, clip_fraction_high, ratio_max, and where the part is on:
    kl, nll_loss, entropy, tis_capped_share, llds_loss (without λ), llds_open_share, llds_noise (squared, and noise only
    while the policy is the one that gave old_logprobs).
    """
    off = ~action_mask
    n = float(max(normalizer.action_tokens, 1))
    count = action_mask.sum()  # tensor: no wait for the device
    log_ratio = (logprobs - old_logprobs).masked_fill(off, 0.0).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    if config.ratio == "sequence":
        # The value is the geometric mean ratio of the response; the gradient goes through each token by its share.
        mean = log_ratio.detach().sum(1, keepdim=True) / action_mask.sum(1, keepdim=True).clamp(min=1)
        log_ratio = mean + (log_ratio - log_ratio.detach())
    ratio = log_ratio.exp()
    token = plugins.find("loss", config.name)(logprobs.masked_fill(off, 0.0), ratio, advantages, action_mask, config)
    if not isinstance(token, Tensor) or token.shape != action_mask.shape:
        shape = tuple(token.shape) if isinstance(token, Tensor) else type(token).__name__
        raise AlgorithmError(
            f"loss {config.name!r} gives {shape}; it must give (B, S), here {tuple(action_mask.shape)}"
        )

    metrics: Metrics = {}
    if config.tis_cap is not None:
        ratio_to_sampler = (old_logprobs - _needed(rollout_logprobs, "tis_cap", "rollout_logprobs")).detach()
        ratio_to_sampler = ratio_to_sampler.masked_fill(off, 0.0).exp()
        token = token * ratio_to_sampler.clamp(max=config.tis_cap)
        metrics["tis_capped_share"] = Metric(((ratio_to_sampler > config.tis_cap) & action_mask).sum(), count)

    share = _aggregate(config, action_mask, normalizer)
    loss = pg = share(token)
    if config.kl_coef:
        gap = (_needed(reference_logprobs, "kl_coef", "reference_logprobs") - logprobs).masked_fill(off, 0.0)
        gap = gap.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        k3 = gap.exp() - gap - 1.0
        loss = loss + config.kl_coef * share(k3)
        metrics["kl"] = Metric(k3.detach().sum(), count)
    if config.entropy_coef:
        h = _needed(entropy, "entropy_coef", "entropy").masked_fill(off, 0.0)
        loss = loss - config.entropy_coef * share(h)
        metrics["entropy"] = Metric(h.detach().sum(), count)
    if config.nll_coef:
        ok = _needed(correct, "nll_coef", "correct")
        if normalizer.correct_tokens is None:
            raise AlgorithmError("nll_coef is set, but the LossNormalizer was made without correct; pass both")
        nll = -logprobs.masked_fill(off | ~ok[:, None], 0.0).sum() / max(normalizer.correct_tokens, 1)
        loss = loss + config.nll_coef * nll
        metrics["nll_loss"] = Metric(nll.detach())
    if config.llds.enabled:
        if isinstance(config.llds.answer_weight, str):
            raise AlgorithmError("llds.answer_weight is a schedule; resolve it to this step's number first")
        term = llds_term(
            logprobs, old_logprobs, advantages, action_mask, turn_ids,
            gate=config.llds.gate, answer_mask=answer_mask, answer_weight=config.llds.answer_weight,
            margin=0.0 if isinstance(config.llds.margin, str) else config.llds.margin,
        )  # fmt: skip
        llds = term.total / n
        loss = loss + config.llds.weight * llds
        metrics["llds_loss"] = Metric(llds.detach())
        metrics["llds_noise"] = Metric(*noise_of(logprobs, old_logprobs, action_mask, turn_ids))
        if term.open_gates is not None:
            metrics["llds_open_share"] = Metric(term.open_gates, term.gates)

    with torch.no_grad():
        # Of tokens with an advantage: rows without one are not always computed, and the clip is nothing to them.
        learned = action_mask & (advantages != 0)
        count = learned.sum()
        above = ((ratio > 1.0 + config.clip_high) & learned).sum()
        below = ((ratio < 1.0 - config.clip_low) & learned).sum()
        largest = ratio.detach().masked_fill(~learned, -1.0).max()  # -1: none here
        metrics |= {
            "loss": Metric(loss.detach()),
            "pg_loss": Metric(pg.detach()),
            "clip_fraction": Metric(above + below, count),
            "clip_fraction_low": Metric(below, count),
            "clip_fraction_high": Metric(above, count),
            "ratio_max": Metric(largest),
        }
    return loss, metrics


def _aggregate(config: LossConfig, action_mask: Tensor, normalizer: LossNormalizer) -> Callable[[Tensor], Tensor]:
    """How a (B, S) tensor of token values becomes the micro-batch's part of the whole batch's mean."""
    off = ~action_mask
    sequences = float(max(normalizer.sequences, 1))

    def token_mean(x: Tensor) -> Tensor:
        return x.masked_fill(off, 0.0).sum() / float(max(normalizer.action_tokens, 1))

    def seq_mean_token_mean(x: Tensor) -> Tensor:
        return (x.masked_fill(off, 0.0).sum(1) / action_mask.sum(1).clamp(min=1)).sum() / sequences

    def seq_mean_token_sum(x: Tensor) -> Tensor:
        return x.masked_fill(off, 0.0).sum() / sequences

    modes = {
        "token-mean": token_mean,
        "seq-mean-token-mean": seq_mean_token_mean,
        "seq-mean-token-sum": seq_mean_token_sum,
    }
    return modes[config.aggregation]


def _needed(tensor: Tensor | None, option: str, argument: str) -> Tensor:
    if tensor is None:
        raise AlgorithmError(f"{option} is set, but there is no {argument}; pass it, or switch {option} off")
    return tensor

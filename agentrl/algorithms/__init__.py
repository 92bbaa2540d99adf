"""The mathematics: pure functions from tokens and rewards to advantages and losses (docs/algorithms.md).

One algorithm, one file; no engine, no environment. Everything crosses as (B,) and (B, S) tensors.
"""

from agentrl.algorithms.advantages import advantages
from agentrl.algorithms.lld import Displacement, displacement
from agentrl.algorithms.llds import llds_loss
from agentrl.algorithms.losses import (
    LossNormalizer,
    Metric,
    Metrics,
    MetricSums,
    clipped,
    policy_loss,
    settled,
    with_answer_weight,
)
from agentrl.algorithms.nthr import NTHRResult, nthr_scores
from agentrl.algorithms.surrogate import group_gradient_weight, surrogate, surrogate_of, surrogate_slope
from agentrl.algorithms.weights import weigh_tokens

__all__ = [
    "Displacement",
    "LossNormalizer",
    "Metric",
    "MetricSums",
    "Metrics",
    "NTHRResult",
    "advantages",
    "clipped",
    "displacement",
    "group_gradient_weight",
    "llds_loss",
    "nthr_scores",
    "policy_loss",
    "settled",
    "surrogate",
    "surrogate_of",
    "surrogate_slope",
    "weigh_tokens",
    "with_answer_weight",
]

"""The mathematics: pure functions from tokens and rewards to advantages and losses (docs/algorithms.md).

One algorithm, one file; no engine, no environment. Everything crosses as (B,) and (B, S) tensors.
"""

from agentrl.algorithms.advantages import ADVANTAGES, advantages
from agentrl.algorithms.lld import Displacement, displacement
from agentrl.algorithms.llds import llds_loss
from agentrl.algorithms.losses import LossNormalizer, Metric, Metrics, MetricSums, policy_loss, with_answer_weight
from agentrl.algorithms.nthr import NTHRResult, nthr_scores
from agentrl.algorithms.surrogate import SURROGATES, group_gradient_weight, surrogate, surrogate_slope

__all__ = [
    "ADVANTAGES",
    "SURROGATES",
    "Displacement",
    "LossNormalizer",
    "Metric",
    "MetricSums",
    "Metrics",
    "NTHRResult",
    "advantages",
    "displacement",
    "group_gradient_weight",
    "llds_loss",
    "nthr_scores",
    "policy_loss",
    "surrogate",
    "surrogate_slope",
    "with_answer_weight",
]

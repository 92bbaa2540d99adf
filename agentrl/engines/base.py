"""What a training loop may ask of an engine. Everything an algorithm wants crosses as (B, S) tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from agentrl.batch import TokenBatch
from agentrl.config import LossConfig, ModelConfig, NTHRConfig
from agentrl.errors import AgentRLError
from agentrl.types import Sampler


@dataclass
class ScoreResult:
    """One scoring pass over a batch, under the current weights. Tensors live on the CPU, fp32, 0 off action."""

    logprobs: Tensor  # (B, S) nats, at the temperature of the rollout
    entropy: Tensor | None = None  # (B, S) nats
    nthr_scores: Tensor | None = None  # (B, S), 0 in groups that are not mixed
    nthr_selected: Tensor | None = None  # (B, S) bool
    nthr_factor: Tensor | None = None  # (B, S) multiplier of the advantage: eta where selected, 1 elsewhere
    gwhes: dict[int, float] | None = None  # group id -> GWHES
    metrics: dict[str, float] = field(default_factory=dict)


def check_request(ids: Sequence[int], max_tokens: int, limit: int) -> None:
    """What every `sample` refuses: nothing to do (ValueError), or more than `limit` positions (AgentRLError)."""
    if not ids or max_tokens < 1:
        raise ValueError(f"sample() got {len(ids)} context tokens and max_tokens={max_tokens}; both must be positive")
    if len(ids) + max_tokens > limit:
        raise AgentRLError(
            f"{len(ids)} context tokens + max_tokens {max_tokens} exceed the engine's {limit} positions; "
            "lower rollout.max_context or rollout.max_tokens_per_turn"
        )


class Engine(Sampler, Protocol):
    """One model: samples, scores, updates, saves."""

    tokenizer: Any  # a transformers PreTrainedTokenizerFast
    scores_while_updating: bool  # whether `update` takes `scores`
    needs_first_checkpoint: bool  # before the first step, to go back to after a worker's death
    context_length: int
    device: Any  # torch.device of the model
    parameters: int
    lr_scale: float  # the guard's
    reference: Any  # a frozen policy that the run must keep, or None

    @property
    def scheduled_lr(self) -> float:
        """Learning rate of the next update by the schedule alone, before `lr_scale`."""
        ...

    @property
    def samples_ahead(self) -> int:
        """Steps that may be sampled while an earlier one trains: versions that a sample may be behind; 0: in turns."""
        ...

    @property
    def sampled_tokens(self) -> int:
        """Tokens sampled since the engine was made."""
        ...

    def score(
        self,
        batch: TokenBatch,
        *,
        temperature: float = 1.0,
        nthr: NTHRConfig | None = None,
        entropy: bool = False,
        reference: bool = False,
    ) -> ScoreResult:
        """log π of every action token; NTHR from the same pass when asked. `reference`: the frozen initial policy."""
        ...

    def update(
        self,
        batch: TokenBatch,
        advantages: Tensor,
        old_logprobs: Tensor,
        *,
        loss: LossConfig,
        temperature: float = 1.0,
        reference_logprobs: Tensor | None = None,
        scores: ScoreResult | None = None,
        nthr: NTHRConfig | None = None,
    ) -> dict[str, float]:
        """One optimiser step on `batch` (a mini-batch), micro-batched by token budget.

        `advantages` and `old_logprobs` (B, S). Returns metrics; `nonfinite` is 1.0 when loss or gradient was not finite
        and the step was skipped. With `scores` (only where `scores_while_updating`) this is the one update of its
        batch: the policy before it is π_old, `old_logprobs` is not read, and `scores` is filled from the same pass;
        with `nthr`, which needs whole groups in `batch`, NTHR's part too, and its factor multiplies the advantages.
        """
        ...

    def sync(self) -> None:
        """Hand new weights to the sampler; bumps `policy_version`."""
        ...

    def save(self, path: Path) -> None:
        """Weights (safetensors, Hugging Face layout), optimiser, scheduler and generator state into a folder."""
        ...

    def save_model(self, path: Path) -> None:
        """Weights and tokenizer alone, for inference."""
        ...

    def load(self, path: Path) -> None:
        """The inverse of `save`."""
        ...

    def freeze_reference(self, saved: Path | None = None) -> None:
        """The policy as it is now, or as saved in a folder, becomes the reference, where one is kept."""
        ...

    def close(self) -> None:
        """End what was started; the engine is of no use afterwards."""
        ...


class Scorer(Protocol):
    """What the shared scoring pass and loss need: a model in this process, of the local engine or of a worker."""

    config: ModelConfig
    device: torch.device
    head: Any  # engines.shared.head.OutputHead
    micro_batch_tokens: int

    def hidden(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Right-padded ids (B, C) to the input of the output head (B, C, d)."""
        ...

    def logprobs(
        self,
        batch: TokenBatch,
        temperature: float = 1.0,
        *,
        entropy: bool = False,
        entropy_gradient: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        """log π of the action tokens (B, S), 0 elsewhere, and their entropy when asked; differentiable.

        The entropy only with `entropy_gradient`.
        """
        ...

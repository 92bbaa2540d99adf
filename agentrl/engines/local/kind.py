"""The engine of one process, before there is one (`engines.kind.EngineKind`). No torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from agentrl.config import RunConfig
from agentrl.engines.kind import Estimate, Parts, Shape, Table
from agentrl.engines.vllm import preflight

if TYPE_CHECKING:
    from agentrl.engines.local.engine import LocalEngine


class LocalKind:
    """See `engines.kind.EngineKind`."""

    warms_up_with: str | None = None
    samplers = ("torch", "vllm", "auto")  # of rollout.sampler

    def rules(self, config: RunConfig) -> Iterable[str]:
        """What vLLM as the sampler cannot do; all else depends on the model, and is seen when that is loaded."""
        lora, limit = config.model.lora, preflight.LORA_RANKS[-1]
        if config.rollout.sampler == "vllm" and lora is not None and lora.rank > limit:
            yield (
                f"model.lora.rank is {lora.rank} and vLLM takes adapters of rank {limit} at most: set it to {limit} or "
                "less, or rollout.sampler to torch"
            )

    def settled(self, config: RunConfig) -> tuple[RunConfig, str | None]:
        """The config with `rollout.sampler: auto` replaced by what it means on this machine, and a line that says why.

        Written into the run's directory, so that a resume on another machine does not change the sampler.
        """
        if config.rollout.sampler != "auto":
            return config, None
        sampler, why = preflight.chosen(config)
        rollout = config.rollout.model_copy(update={"sampler": sampler})
        return config.model_copy(update={"rollout": rollout}), f"rollout.sampler auto is {sampler}: {why}"

    def problems(self, config: RunConfig) -> list[str]:
        """vLLM that is missing or untested; nothing else that could be known before the model is loaded."""
        return preflight.problems(config)

    def placement(self, config: RunConfig) -> list[Table]:
        """All is in this process."""
        return []

    def estimate(self, config: RunConfig, shape: Shape) -> Estimate:
        """Memory and operations of one process."""
        from agentrl.engines.local.estimate import memory_rows, step_operations

        return Estimate(memory_rows(config, shape), step_operations(config, shape))

    def build(self, parts: Parts) -> LocalEngine:
        """Loads the model, and saved adapters."""
        from agentrl.engines.local.engine import LocalEngine
        from agentrl.engines.shared.loading import load_model, load_weights, precision_warning

        config = parts.config
        model = load_model(parts.model, parts.tokenizer, config.seed)
        if warning := precision_warning(parts.model, model.device):
            parts.say(warning)
        if parts.adapter is not None:
            load_weights(model, parts.adapter)
        options: dict[str, Any] = {
            "config": parts.model,
            "optim": config.optim,
            "total_steps": parts.total_steps,
            "micro_batch_tokens": config.train.micro_batch_tokens,
            "seed": config.seed,
            "keep_reference": config.algorithm.loss.kl_coef > 0,
            "turn_ends": parts.turn_ends,
        }
        if preflight.chosen(config)[0] == "vllm":
            from agentrl.engines.vllm.engine import VLLMEngine

            return VLLMEngine(config, model, parts.tokenizer, **options)
        return LocalEngine(model, parts.tokenizer, **options)


ENGINE = LocalKind()

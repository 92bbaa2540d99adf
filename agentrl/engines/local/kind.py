"""The engine of one process, before there is one (`engines.kind.EngineKind`). No torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from agentrl.config import RunConfig
from agentrl.engines.kind import Estimate, Parts, Shape, Table

if TYPE_CHECKING:
    from agentrl.engines.local.engine import LocalEngine


class LocalKind:
    """See `engines.kind.EngineKind`."""

    warms_up_with: str | None = None

    def rules(self, config: RunConfig) -> Iterable[str]:
        """It has none: what it cannot do depends on the model, and is seen when that is loaded."""
        return ()

    def problems(self, config: RunConfig) -> list[str]:
        """None that could be known before the model is loaded."""
        return []

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
        from agentrl.engines.shared.loading import load_model, load_weights

        config = parts.config
        model = load_model(parts.model, parts.tokenizer, config.seed)
        if parts.adapter is not None:
            load_weights(model, parts.adapter)
        return LocalEngine(
            model,
            parts.tokenizer,
            config=parts.model,
            optim=config.optim,
            total_steps=parts.total_steps,
            micro_batch_tokens=config.train.micro_batch_tokens,
            seed=config.seed,
            keep_reference=config.algorithm.loss.kl_coef > 0,
            turn_ends=parts.turn_ends,
        )


ENGINE = LocalKind()

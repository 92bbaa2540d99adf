"""An engine: here the one process, with half of the learning rate."""

from dataclasses import replace

from agentrl.engines.base import Engine
from agentrl.engines.kind import Parts
from agentrl.engines.local.kind import LocalKind


class HalfSpeedKind(LocalKind):
    """See `agentrl.engines.kind.EngineKind`."""

    def build(self, parts: Parts) -> Engine:
        """The local engine."""
        optim = parts.config.optim.model_copy(update={"lr": parts.config.optim.lr / 2})
        return super().build(replace(parts, config=parts.config.model_copy(update={"optim": optim})))


HALF_SPEED = HalfSpeedKind()

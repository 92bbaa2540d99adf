"""What the loop asks of an engine before there is one: may the config ask this of it, what would stop it here, what
will it need, build it.

Engines are looked up by name (`agentrl.plugins`, kind "engine"): a name is that of an `EngineKind`. A config is checked
without torch, so this module and those that define a kind import it in functions alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from agentrl import plugins
from agentrl.config import ModelConfig, RunConfig
from agentrl.errors import ConfigError

if TYPE_CHECKING:
    from agentrl.engines.base import Engine

INITIAL = "initial"  # folder of the model that a run began with, where it was made or warmed up for an engine of files

Table = list[list[str]]  # rows of two cells, the title first


@dataclass(frozen=True)
class Parts:
    """What an engine is built from."""

    config: RunConfig
    model: ModelConfig  # that of the config, with `path` leading to a checkpoint's where there is one
    adapter: Path | None  # a folder of saved LoRA adapters, to be put on `model`
    tokenizer: Any
    run_dir: Path
    total_steps: int  # optimiser steps of the whole run, for the schedule of the learning rate
    say: Callable[[str], None]
    turn_ends: tuple[int, ...] = ()  # ids that end a turn besides the model's own: those of the chat template


@dataclass(frozen=True)
class Shape:
    """What estimates need to know of a model."""

    parameters: int
    trainable: int
    layers: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocabulary: int
    positions: int


@dataclass(frozen=True)
class Estimate:
    """What a run will need, for the dry run."""

    memory: Table
    operations: float | None = None  # of one step, where this machine does them all; None: no time is estimated


@runtime_checkable
class EngineKind(Protocol):
    """One kind of engine."""

    # The engine that makes or warms up the model that this one starts from, as files. None: what it builds is a
    # LocalEngine, which makes and warms up its own.
    warms_up_with: str | None

    def rules(self, config: RunConfig) -> Iterable[str]:
        """What the config must not ask of this engine, one line each: the key, why, and a value that would work.

        Part of every check of a config, on any machine: quick, and without torch.
        """
        ...

    def problems(self, config: RunConfig) -> list[str]:
        """What would stop the engine on this machine, one line each. Asked before anything is made or warmed up."""
        ...

    def placement(self, config: RunConfig) -> list[Table]:
        """For the dry run: what goes where, as far as it does not depend on the model."""
        ...

    def estimate(self, config: RunConfig, shape: Shape) -> Estimate:
        """For the dry run, of a model of this shape."""
        ...

    def build(self, parts: Parts) -> Engine:
        """The engine, ready to sample. Raises AgentRLError for what does not work."""
        ...


def engine_kind(name: str) -> EngineKind:
    """The kind of this name, also `module:attribute`. PluginError where there is none, ConfigError for other things."""
    kind = plugins.find("engine", name)
    if not isinstance(kind, EngineKind):
        raise ConfigError(
            [f"engine is {name!r}, a {type(kind).__name__}: it must be an agentrl.engines.kind.EngineKind"]
        )
    return kind


def ready_kind(config: RunConfig) -> EngineKind:
    """The kind of the config's engine. ConfigError with all that would stop it on this machine."""
    kind = engine_kind(config.engine)
    if problems := kind.problems(config):
        raise ConfigError(problems)
    return kind

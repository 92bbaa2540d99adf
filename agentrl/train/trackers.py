"""Metrics to TensorBoard and Weights & Biases, beside the run directory. Both are optional packages."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Protocol

from agentrl.config import RunConfig
from agentrl.errors import ConfigError, pip_install
from agentrl.types import StepRecord


class Writer(Protocol):
    """What the trainer calls after every step and at the end."""

    def write(self, record: StepRecord) -> None:
        """One step's metrics."""
        ...

    def close(self) -> None:
        """No more steps."""
        ...


class TensorBoardWriter:
    """Event files under RUN/events; one scalar per signal."""

    def __init__(self, run_dir: Path) -> None:
        _need("tensorboard", "log.tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run_dir / "events"))

    def write(self, record: StepRecord) -> None:
        """See `Writer.write`."""
        for name, value in record.metrics.items():
            self._writer.add_scalar(name, value, record.step)

    def close(self) -> None:
        """See `Writer.close`."""
        self._writer.close()


class WandbWriter:
    """A W&B run; offline where WANDB_MODE=offline. The key is read by wandb from its own environment variable."""

    def __init__(self, config: RunConfig, run_dir: Path) -> None:
        wandb = _need("wandb", "log.wandb")
        self._run = wandb.init(
            project=config.log.wandb_project, name=run_dir.name, dir=str(run_dir), config=config.model_dump(mode="json")
        )

    def write(self, record: StepRecord) -> None:
        """See `Writer.write`."""
        self._run.log(record.metrics, step=record.step)

    def close(self) -> None:
        """See `Writer.close`."""
        self._run.finish()


def make_writers(config: RunConfig, run_dir: Path) -> tuple[Writer, ...]:
    """The writers that the config asks for; ConfigError where a package is missing."""
    out: list[Writer] = []
    if config.log.tensorboard:
        out.append(TensorBoardWriter(run_dir))
    if config.log.wandb:
        out.append(WandbWriter(config, run_dir))
    return tuple(out)


def _need(package: str, key: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError:
        raise ConfigError(
            [f"{key} is true but {package} is not installed: {pip_install(package)}, or set {key}=false"]
        ) from None

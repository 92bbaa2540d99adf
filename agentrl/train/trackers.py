"""Metrics to trackers, beside the run directory: TensorBoard and Weights & Biases (optional packages), or a plug-in.

A tracker is made with (config, run directory) and is a `Writer`.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Protocol

from agentrl import plugins
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

    def __init__(self, config: RunConfig, run_dir: Path) -> None:
        _need("tensorboard")
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
        wandb = _need("wandb")
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
    return tuple(plugins.find("tracker", name)(config, run_dir) for name in config.log.all_trackers)


def _need(package: str) -> Any:
    try:
        found = importlib.import_module(package)
        if found.__file__ is None:  # a folder of this name, such as the one where wandb keeps its runs
            raise ImportError(package)
        return found
    except ImportError:
        raise ConfigError(
            [
                f"log.{package} is true (or log.trackers has {package}) but {package} is not installed: "
                f"{pip_install(package)}, or set log.{package}=false"
            ]
        ) from None

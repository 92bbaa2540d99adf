"""Metrics to trackers, beside the run directory: TensorBoard and Weights & Biases (optional packages), or a plug-in.

A tracker is made with (config, run directory) and is a `Writer`.
"""

from __future__ import annotations

import importlib
import json
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from agentrl import plugins
from agentrl.config import RunConfig
from agentrl.errors import ConfigError, pip_install
from agentrl.runs.files import read_json
from agentrl.types import StepRecord


class Writer(Protocol):
    """What the trainer calls after every step and at the end.

    A writer may also have `evaluation(summary)`, one row of evals.jsonl, and `resume(step)`, called before anything is
    written where a run goes on at `step`: what it has of that step and later ones is then written again.
    """

    def write(self, record: StepRecord) -> None:
        """One step's metrics."""
        ...

    def close(self) -> None:
        """No more steps."""
        ...


def held_out(summary: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a held-out evaluation, as `held_out/em`; not its own description."""
    told = ("step", "split", "seconds")
    return {f"held_out/{k}": float(v) for k, v in summary.items() if k not in told and isinstance(v, int | float)}


class TensorBoardWriter:
    """Event files under RUN/events; one scalar per signal."""

    def __init__(self, config: RunConfig, run_dir: Path) -> None:
        _need("tensorboard")
        self._folder = str(run_dir / "events")
        self._purge: int | None = None
        self._opened: Any = None

    @property
    def _writer(self) -> Any:
        if self._opened is None:
            from torch.utils.tensorboard import SummaryWriter

            self._opened = SummaryWriter(self._folder, purge_step=self._purge)
        return self._opened

    def resume(self, step: int) -> None:
        """See `Writer`: TensorBoard drops what earlier files have from this step on."""
        self._purge = step
        _ = self._writer  # the mark must be in a file even where no step follows

    def write(self, record: StepRecord) -> None:
        """See `Writer.write`."""
        for name, value in record.metrics.items():
            self._writer.add_scalar(name, value, record.step)

    def evaluation(self, summary: Mapping[str, Any]) -> None:
        """See `Writer`."""
        for name, value in held_out(summary).items():
            self._writer.add_scalar(name, value, summary["step"])

    def close(self) -> None:
        """See `Writer.close`."""
        self._writer.close()


class WandbWriter:
    """A W&B run; offline where WANDB_MODE=offline. The key is read by wandb from its own environment variable.

    Its id is kept in the run directory, so that a resume goes on with the same W&B run, and so is how far it got: what
    is there already, because the run was resumed from an earlier checkpoint, is not written again. (With a server W&B
    would refuse it; offline, it would take it twice.)
    """

    ID_FILE = "wandb_id"
    WRITTEN_FILE = "wandb_written.json"

    def __init__(self, config: RunConfig, run_dir: Path) -> None:
        wandb = _need("wandb")
        run_dir.mkdir(parents=True, exist_ok=True)
        kept = run_dir / self.ID_FILE
        id = kept.read_text(encoding="utf-8").strip() if kept.is_file() else uuid.uuid4().hex[:16]
        self._run = wandb.init(
            project=config.log.wandb_project, name=run_dir.name, dir=str(run_dir), id=id, resume="allow",
            config=config.model_dump(mode="json"),
        )  # fmt: skip
        kept.write_text(id + "\n", encoding="utf-8")
        self._written = run_dir / self.WRITTEN_FILE
        self._newest: dict[str, int] = {"step": -1, "evaluation": -1} | read_json(self._written)

    def write(self, record: StepRecord) -> None:
        """See `Writer.write`."""
        self._once("step", record.step, record.metrics)

    def evaluation(self, summary: Mapping[str, Any]) -> None:
        """See `Writer`."""
        self._once("evaluation", summary["step"], held_out(summary))

    def _once(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        if step > self._newest[kind]:
            self._run.log(dict(values), step=step)
            self._newest[kind] = step
            self._written.write_text(json.dumps(self._newest), encoding="utf-8")

    def close(self) -> None:
        """See `Writer.close`."""
        self._run.finish()


def tell(writers: Iterable[Any], method: str, *arguments: Any, say: Callable[[str], None]) -> None:
    """Call `method` of each writer that has it. What a tracker raises is a line for `say`: it ends no training."""
    for writer in writers:
        if (call := getattr(writer, method, None)) is None:  # a plug-in's may have `write` and `close` alone
            continue
        try:
            call(*arguments)
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            say(f"warning: the tracker {type(writer).__name__} failed in {method} and lacks that ({what})")


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

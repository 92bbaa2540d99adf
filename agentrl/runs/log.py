"""The writer of a run directory. No torch.

    runs/NAME/  config.yaml  meta.json  status.json  metrics.jsonl  evals.jsonl  alarms.jsonl
                rollouts/step-000012.jsonl.gz  rollouts/eval-000050.jsonl.gz
                checkpoints/  reference/  index/  dumps/  events/

Steps are counted from 0; "after n steps" means that the rows of the steps 0 to n - 1 exist. The readers are in
`agentrl.runs.read`.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from agentrl.config import RunConfig
from agentrl.config.files import config_hash, to_yaml
from agentrl.config.paths import with_absolute_paths
from agentrl.errors import DISTRIBUTION, RunError, command
from agentrl.runs.checkpoint import clean_leftovers, list_checkpoints
from agentrl.runs.files import (
    RunLock,
    append_line,
    atomic_write,
    parse_line,
    read_json,
    read_lines,
    strict_json,
    writing,
)
from agentrl.runs.read import (
    ALARMS,
    CONFIG,
    EVALS,
    GUARD,
    LOCK,
    META,
    METRICS,
    ROLLOUTS,
    STATUS,
    find_run,
    grades_file,
    read_metrics,
    rollout_files,
)
from agentrl.types import Alarm, StepRecord

Status = Literal["running", "finished", "stopped", "failed"]

PACKAGES = (
    DISTRIBUTION,
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "gymnasium",
    "tantivy",
    "pydantic",
)


class RunLog:
    """The one writer of a run directory. Made by `create` or `open`; a context manager that ends the run's status."""

    def __init__(self, path: Path, lock: RunLock, say: Callable[[str], None]) -> None:
        self.path = path
        self.begun = True  # False from `create` to `settle`
        self._untouched = False  # True from `open` to `truncate_after`
        self._replaces = False  # whether `create` has set a run aside
        self._lock = lock
        self._say = say

    # -------------------------------------------------------------------------------------------- beginning and ending

    @classmethod
    def create(
        cls,
        runs_dir: str | Path,
        name: str,
        config: RunConfig,
        *,
        force: bool = False,
        argv: Sequence[str] | None = None,
        say: Callable[[str], None] | None = None,
    ) -> RunLog:
        """Make `runs_dir/name` with its config, versions and status.

        A run that is there is kept: RunError, unless `force`, which sets it aside until `settle` deletes it or
        `discard` puts it back. What is not a run directory, or is in use, is never touched.
        """
        if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise RunError(f"log.name is {name!r}: it becomes a folder's name, so use letters, digits, - and _")
        config = with_absolute_paths(config)  # a resume or an evaluation may be called from another folder
        text, meta = (
            to_yaml(config),
            json.dumps(_meta(config, argv), indent=1),
        )  # whatever cannot be written, is not begun
        path = Path(runs_dir).expanduser() / name
        replaces = _make_room(path, force)
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
        run = cls._locked(path, say)
        run.begun, run._replaces = False, replaces
        atomic_write(path / CONFIG, text)
        atomic_write(path / META, meta)
        run.set_status("running", step=0, steps=config.train.steps)
        return run

    def settle(self) -> None:
        """The run begins: what `create` was forced to set aside is deleted."""
        self.begun = True
        if self._replaces:
            shutil.rmtree(_aside(self.path), ignore_errors=True)
            if _aside(self.path).exists():
                self._say(
                    f"{_aside(self.path)}, the run that this one replaces, could not be deleted: delete it yourself"
                )

    def discard(self) -> None:
        """The run could not begin: delete its directory, and put back what `create` was forced to set aside."""
        self._lock.held = False  # it goes with the directory
        shutil.rmtree(self.path, ignore_errors=True)
        if self._replaces:
            try:
                os.rename(_aside(self.path), self.path)
            except OSError as error:  # why the run could not begin is what is to be shown
                self._say(
                    f"the run that was to be replaced is in {_aside(self.path)} and stays there ({error.strerror})"
                )

    @classmethod
    def open(cls, path: str | Path, *, say: Callable[[str], None] | None = None) -> RunLog:
        """Take over an existing run to go on with it. Nothing in it changes before `truncate_after`."""
        run = cls._locked(find_run(path), say)
        run._untouched = True
        return run

    @classmethod
    def _locked(cls, path: Path, say: Callable[[str], None] | None) -> RunLog:
        lock = RunLock(path / LOCK)
        lock.acquire(str(path))
        return cls(path, lock, say or (lambda line: print(line, file=sys.stderr)))

    def close(self) -> None:
        """Let others write to the run."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            ours = self._lock.held and not self._untouched
            if kind is not None and ours and self.status().get("status") == "running":
                interrupted = issubclass(kind, KeyboardInterrupt)
                message = "interrupted" if interrupted else f"{kind.__name__}: {error}"
                try:
                    self.set_status("stopped" if interrupted else "failed", message=message)
                except RunError as second:  # on a full disk the first error is the one to show
                    self._say(str(second))
        finally:
            self.close()

    # -------------------------------------------------------------------------------------------------------- writing

    def append(self, record: StepRecord, *, tokens: int | None = None) -> None:
        """One row of metrics.jsonl. Values that are not finite become null and are listed in `nonfinite`."""
        row: dict[str, Any] = {"step": record.step, "time": round(time.time(), 3)}
        if tokens is not None:
            row["tokens"] = tokens
        append_line(self.path / METRICS, _flat(row | record.metrics))
        if self.status().get("status") == "running":
            self.set_status("running", step=record.step + 1, durable=False)

    def evaluation(self, row: Mapping[str, Any]) -> None:
        """One row of evals.jsonl: `step` (steps done before it), `split`, `em`, `reward`, `n`, ..."""
        append_line(self.path / EVALS, _flat({"time": round(time.time(), 3), **row}))

    def alarm(self, alarm: Alarm) -> None:
        """One row of alarms.jsonl."""
        append_line(self.path / ALARMS, dataclasses.asdict(alarm))

    def guard_action(self, row: Mapping[str, Any]) -> None:
        """One row of guard.jsonl: what the guard did (`monitors.stop_rule.GuardAction`)."""
        append_line(self.path / GUARD, _flat({"time": round(time.time(), 3), **row}))

    def write_rollouts(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """The trajectories of one training step."""
        self._write_gz(f"step-{step:06d}", rows)

    def write_eval_rollouts(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """The trajectories of the evaluation after `step` steps."""
        self._write_gz(f"eval-{step:06d}", rows)

    def _write_gz(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        text = "".join(strict_json(row) + "\n" for row in rows)
        folder = self.path / ROLLOUTS
        with writing(folder):
            folder.mkdir(exist_ok=True)
        # No file name and time in the header: the same rollouts give the same bytes.
        atomic_write(folder / f"{name}.jsonl.gz", gzip.compress(text.encode(), compresslevel=4, mtime=0))

    def set_status(
        self,
        status: Status,
        *,
        step: int | None = None,
        steps: int | None = None,
        message: str | None = None,
        durable: bool = True,
    ) -> None:
        """Replace status.json; `step` defaults to the steps that were made, `steps` stays what it was.

        `durable`: also after a power cut.
        """
        before = self.status()
        if step is None:
            last = read_metrics(self.path, tail=1)
            step = int(last[0]["step"]) + 1 if last else before.get("step", 0)
        row = {
            "status": status,
            "step": step,
            "steps": before.get("steps") if steps is None else steps,
            "updated": round(time.time(), 3),
            "message": message or "",
        }
        atomic_write(self.path / STATUS, json.dumps(row), durable=durable)

    def status(self) -> dict[str, Any]:
        """status.json as it is."""
        return read_json(self.path / STATUS)

    def update_meta(self, values: Mapping[str, Any]) -> None:
        """Add to meta.json."""
        atomic_write(self.path / META, strict_json(read_json(self.path / META) | dict(values)))

    # -------------------------------------------------------------------------------------------------------- resuming

    def truncate_after(self, steps: int) -> None:
        """The resumed run begins: forget what came after its first `steps` steps, which it will write again.

        What a killed writer left torn is repaired first, aloud.
        """
        self._untouched = False
        clean_leftovers(self.path)
        for file in (METRICS, EVALS, ALARMS, GUARD):
            self._repair(self.path / file)
        dropped = self._keep(METRICS, lambda row: row["step"] < steps)
        self._keep(EVALS, lambda row: row["step"] <= steps)
        self._keep(ALARMS, lambda row: row["step"] < steps if "step" in row else True)
        self._keep(GUARD, lambda row: row["step"] < steps)
        for kind, step, path in rollout_files(self.path):
            if step >= steps + (kind == "eval"):
                path.unlink()
                grades_file(self.path, step, kind).unlink(missing_ok=True)
        if dropped:
            self._say(f"{self.path}: {dropped} steps after the checkpoint of step {steps} will be made again")

    def _keep(self, name: str, wanted: Callable[[dict[str, Any]], bool]) -> int:
        """Rewrite a JSONL file with the wanted rows; the number of rows dropped."""
        path = self.path / name
        rows = read_lines(path)
        kept = [row for row in rows if wanted(row)]
        if len(kept) < len(rows):
            atomic_write(path, "".join(strict_json(row) + "\n" for row in kept))
        return len(rows) - len(kept)

    def _repair(self, path: Path) -> None:
        """Cut off a last line that was not written whole, and say so."""
        if not path.exists():
            return
        data = path.read_bytes()
        if not data or data.endswith(b"\n"):
            return
        end = data.rfind(b"\n") + 1
        if parse_line(data[end:]) is not None:  # only the line break is missing
            atomic_write(path, data + b"\n")
        else:
            atomic_write(path, data[:end])
            self._say(f"{path}: the last line ({len(data) - end} bytes) was not written whole and is cut off")


def _make_room(path: Path, force: bool) -> bool:
    """Where `path` exists: nothing to do if empty, set a run aside if forced (then True), RunError otherwise."""
    if not path.exists():
        return False
    if not path.is_dir():
        raise RunError(f"{path} is a file; set log.name or log.runs_dir to something else")
    if not any(path.iterdir()):
        return False
    if not (path / CONFIG).exists() and not (path / STATUS).exists():
        raise RunError(f"{path} exists and is not a run directory, so it is left alone; set log.name to something else")
    if not force:
        raise RunError(
            f"{path} already holds a run. Go on with it ({command('resume', path)}), choose another name "
            "(--set log.name=...), or delete it and start again (--force)"
        )
    lock = RunLock(path / LOCK)
    lock.acquire(str(path))
    with writing(path):
        begun = (path / METRICS).exists() or bool(list_checkpoints(path))
        if _aside(path).exists() and not begun:  # killed while it began: what it replaced is worth more
            shutil.rmtree(path)
        else:
            shutil.rmtree(_aside(path), ignore_errors=True)
            os.rename(path, _aside(path))
            lock.path = _aside(path) / LOCK
            lock.release()
    return True


def _aside(path: Path) -> Path:
    """Where the run that `path` replaces waits; hidden, so that no list shows it."""
    return path.with_name(f".{path.name}.replaced")


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """Values that are not finite as null, their names in `nonfinite`."""
    bad = [k for k, v in row.items() if isinstance(v, float) and not math.isfinite(v)]
    return row | {k: None for k in bad} | {"nonfinite": bad} if bad else row


def _meta(config: RunConfig, argv: Sequence[str] | None) -> dict[str, Any]:
    world = None if config.world is None else config.seed if config.world.seed is None else config.world.seed
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # agentrl itself, run from a folder without an install
            continue
    return {
        "name": config.name,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "seed": config.seed,
        "seeds": {"run": config.seed, "world": world},
        "config_hash": config_hash(config),
        "argv": list(argv or []),
        "versions": versions,
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
    }

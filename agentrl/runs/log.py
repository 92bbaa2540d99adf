"""The run directory: what a run appends to, and what everything else reads. No torch.

    runs/NAME/  config.yaml  meta.json  status.json  metrics.jsonl  evals.jsonl  alarms.jsonl
                rollouts/step-000012.jsonl.gz  rollouts/eval-000050.jsonl.gz
                checkpoints/  reference/  index/  dumps/  events/

Steps are counted from 0; "after n steps" means that the rows of the steps 0 to n - 1 exist. The reading functions
tolerate a line that a killed writer has torn; only the writer mends files.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from agentrl.config import RunConfig
from agentrl.config.files import config_hash, to_yaml
from agentrl.errors import RunError, nearest
from agentrl.runs.checkpoint import clean_leftovers, list_checkpoints
from agentrl.runs.files import (
    RunLock,
    append_line,
    atomic_write,
    lock_holder,
    parse_line,
    read_json,
    read_last_lines,
    read_lines,
    strict_json,
    writing,
)
from agentrl.types import Alarm, StepRecord

Status = Literal["running", "finished", "stopped", "failed"]

CONFIG, META, STATUS, LOCK = "config.yaml", "meta.json", "status.json", "run.lock"
METRICS, EVALS, ALARMS, ROLLOUTS = "metrics.jsonl", "evals.jsonl", "alarms.jsonl", "rollouts"
GUARD = "guard.jsonl"
PACKAGES = (
    "agentrl",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "gymnasium",
    "tantivy",
    "pydantic",
)
_ROLLOUT_FILE = re.compile(r"(step|eval)-(\d{6,})\.jsonl\.gz")


class RunLog:
    """The one writer of a run directory. Made by `create` or `open`; a context manager that ends the run's status."""

    def __init__(self, path: Path, lock: RunLock, say: Callable[[str], None]) -> None:
        self.path = path
        self.begun = True  # False from `create` to `settle`
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
        path = Path(runs_dir).expanduser() / name
        replaces = _make_room(path, force)
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
        run = cls._locked(path, say)
        run.begun, run._replaces = False, replaces
        atomic_write(path / CONFIG, to_yaml(config))
        atomic_write(path / META, json.dumps(_meta(config, argv), indent=1))
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
        """Take over an existing run to go on with it; says what a killed writer left torn, and mends it."""
        path = find_run(path)
        run = cls._locked(path, say)
        clean_leftovers(path)
        for file in (METRICS, EVALS, ALARMS, GUARD):
            run._mend(path / file)
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
            if kind is not None and self._lock.held and self.status().get("status") == "running":
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

    def evaluation(self, row: Mapping[str, Any]) -> None:
        """One row of evals.jsonl: `step` (steps done before it), `split`, `em`, `n`, ..."""
        append_line(self.path / EVALS, _flat({"time": round(time.time(), 3), **row}))

    def alarm(self, alarm: Alarm) -> None:
        """One row of alarms.jsonl."""
        append_line(self.path / ALARMS, dataclasses.asdict(alarm))

    def guard_action(self, row: Mapping[str, Any]) -> None:
        """One row of guard.jsonl: what the guard did (`monitors.guard.GuardAction`)."""
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
        self, status: Status, *, step: int | None = None, steps: int | None = None, message: str | None = None
    ) -> None:
        """Replace status.json; `step` and `steps` stay what they were where they are not given."""
        before = self.status()
        row = {
            "status": status,
            "step": before.get("step", 0) if step is None else step,
            "steps": before.get("steps") if steps is None else steps,
            "updated": round(time.time(), 3),
            "resume": f"agentrl resume {self.path}",
            "message": message or "",
        }
        atomic_write(self.path / STATUS, json.dumps(row))

    def status(self) -> dict[str, Any]:
        """status.json as it is."""
        return read_json(self.path / STATUS)

    def update_meta(self, values: Mapping[str, Any]) -> None:
        """Add to meta.json."""
        atomic_write(self.path / META, strict_json(read_json(self.path / META) | dict(values)))

    # -------------------------------------------------------------------------------------------------------- resuming

    def truncate_after(self, steps: int) -> None:
        """Forget what came after the first `steps` steps: the rows that a resume from there will write again."""
        dropped = self._keep(METRICS, lambda row: row["step"] < steps)
        self._keep(EVALS, lambda row: row["step"] <= steps)
        self._keep(ALARMS, lambda row: row["step"] < steps if "step" in row else True)
        self._keep(GUARD, lambda row: row["step"] < steps)
        for kind, step, path in _rollout_files(self.path):
            if step >= steps + (kind == "eval"):
                path.unlink()
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

    def _mend(self, path: Path) -> None:
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
            f"{path} already holds a run. Go on with it (agentrl resume {path}), choose another name "
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


# ------------------------------------------------------------------------------------------------------------- reading


def read_metrics(path: str | Path, tail: int | None = None) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl in the order they were written; only the last `tail` where given."""
    file = Path(path) / METRICS
    return read_lines(file) if tail is None else read_last_lines(file, tail)


def read_evals(path: str | Path) -> list[dict[str, Any]]:
    """Rows of evals.jsonl."""
    return read_lines(Path(path) / EVALS)


def read_guard(path: str | Path) -> list[dict[str, Any]]:
    """What the guard did, in order."""
    return read_lines(Path(path) / GUARD)


def read_alarms(path: str | Path) -> list[dict[str, Any]]:
    """Alarms in the order they were raised, `acknowledged` filled in from the lines that say so."""
    rows = read_lines(Path(path) / ALARMS)
    acknowledged = {row.get("id"): row["acknowledged"] for row in rows if "rule" not in row and "acknowledged" in row}
    return [
        row | {"acknowledged": acknowledged.get(row.get("id"), row.get("acknowledged", False))}
        for row in rows
        if "rule" in row
    ]


def acknowledge(path: str | Path, alarm_id: str, acknowledged: bool = True) -> None:
    """Note that somebody has seen an alarm; works beside a running writer. RunError for an id that is not there."""
    ids = [str(row.get("id")) for row in read_alarms(path)]
    if alarm_id not in ids:
        raise RunError(f"{path} has no alarm {alarm_id!r}{nearest(alarm_id, ids)}")
    append_line(Path(path) / ALARMS, {"id": alarm_id, "acknowledged": acknowledged, "time": round(time.time(), 3)})


def rollout_steps(path: str | Path, kind: Literal["step", "eval"] = "step") -> list[int]:
    """Steps whose trajectories were stored, ascending."""
    return sorted(step for k, step, _ in _rollout_files(Path(path)) if k == kind)


def read_rollouts(path: str | Path, step: int, kind: Literal["step", "eval"] = "step") -> list[dict[str, Any]]:
    """Trajectories of one step (or of the evaluation after `step` steps). RunError where they were not stored."""
    file = Path(path) / ROLLOUTS / f"{kind}-{step:06d}.jsonl.gz"
    try:
        data = gzip.decompress(file.read_bytes())
    except FileNotFoundError:
        steps = rollout_steps(path, kind)
        known = f"stored are {steps[0]} to {steps[-1]}" if steps else "none are stored"
        raise RunError(f"{path} has no rollouts of {kind} {step}: {known}") from None
    except (OSError, EOFError) as error:
        raise RunError(f"{file} is damaged ({error}); other steps are not affected") from error
    return [row for row in map(parse_line, data.split(b"\n")) if row is not None]


def read_eval_rollouts(path: str | Path, step: int | None = None) -> list[dict[str, Any]]:
    """Trajectories of the last evaluation, or of the one after `step` steps; empty where none was stored."""
    steps = rollout_steps(path, "eval")
    if not steps:
        return []
    return read_rollouts(path, steps[-1] if step is None else step, "eval")


@dataclass(frozen=True)
class RunInfo:
    """A run as a list shows it. `status` is "stopped" for one that says "running" while its process is gone."""

    path: Path
    name: str
    status: str
    step: int
    steps: int | None
    updated: float
    message: str
    metrics: dict[str, Any] = field(default_factory=dict)  # the last row of metrics.jsonl


def read_info(path: str | Path) -> RunInfo:
    """State of one run, whatever is missing or torn."""
    path = Path(path)
    row = read_json(path / STATUS)
    status, message = str(row.get("status", "unknown")), str(row.get("message") or "")
    if status == "running" and lock_holder(path / LOCK) is None:
        status, message = "stopped", f"its process is gone; {row.get('resume') or f'agentrl resume {path}'}"
    last = read_metrics(path, tail=1)
    step, steps = row.get("step"), row.get("steps")
    done = int(last[0].get("step", -1)) + 1 if last else 0  # status.json is not rewritten at every step
    return RunInfo(
        path=path,
        name=path.name,
        status=status,
        step=max(done, step if isinstance(step, int) else 0),
        steps=steps if isinstance(steps, int) else None,
        updated=float(last[0].get("time") or 0.0) if last else float(row.get("updated") or 0.0),
        message=message,
        metrics=last[0] if last else {},
    )


def list_runs(runs_dir: str | Path) -> list[RunInfo]:
    """Every run directory directly under `runs_dir`, the most recently updated first."""
    folder = Path(runs_dir)
    found = folder.iterdir() if folder.is_dir() else ()
    runs = [
        read_info(p)
        for p in found
        if not p.name.startswith(".") and p.is_dir() and ((p / STATUS).exists() or (p / CONFIG).exists())
    ]
    return sorted(runs, key=lambda r: (-r.updated, r.name))


def find_run(path: str | Path) -> Path:
    """`path`, if it is a run directory; RunError with the nearest name otherwise."""
    path = Path(path).expanduser()
    if (path / CONFIG).is_file():
        return path
    if not path.is_dir():
        around = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise RunError(f"{path} does not exist{nearest(path.name, around)}; a run is a folder like runs/NAME")
    raise RunError(f"{path} is not a run directory: it has no {CONFIG}")


def _rollout_files(path: Path) -> Iterator[tuple[str, int, Path]]:
    folder = path / ROLLOUTS
    for file in folder.iterdir() if folder.is_dir() else ():
        if m := _ROLLOUT_FILE.fullmatch(file.name):
            yield m[1], int(m[2]), file

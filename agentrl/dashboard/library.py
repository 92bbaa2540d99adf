"""The runs under one folder: what is there, a line about each, and no way out of the folder."""

from __future__ import annotations

import os
import re
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from agentrl.config import RunConfig
from agentrl.dashboard import thin
from agentrl.dashboard.episodes import summary
from agentrl.dashboard.history import WHOLE, History
from agentrl.errors import AgentRLError, nearest
from agentrl.runs.files import read_json
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
    RunInfo,
    grades_file,
    how_to_go_on,
    read_alarms,
    read_evals,
    read_guard,
    read_info,
    read_rollouts,
    rollout_steps,
    search_rollouts,
)  # fmt: skip

FILES = (CONFIG, META, STATUS, LOCK, METRICS, EVALS, ALARMS, GUARD, ROLLOUTS)
SPARK = 40  # points of a spark line
WINDOW = 1 << 13  # bytes read per point: a row of all signals has about 2 kB
KEPT = 12  # runs whose rows stay in memory
KEPT_STEPS = 4  # rollout files that stay in memory
SEARCH_S = 3.0  # a search through all steps
HITS = 500
PREFETCHED = 4  # large runs that are looked through when the server starts
PREFETCH_S = 60.0  # for each at most
CONFIG_BYTES = 1 << 20
_REWARD = re.compile(rb'"reward":\s*(-?\d[\d.eE+-]*)')


class UnknownRun(AgentRLError):
    """The name in a request is no run of this folder."""


class Library:
    """Reads the run directories under `root` and remembers what has not changed since. Safe to use from threads."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().resolve()
        self._lock = threading.Lock()
        self._histories: OrderedDict[str, tuple[History, threading.Lock]] = OrderedDict()
        self._lines: dict[str, tuple[Any, dict[str, Any]]] = {}
        self._alarms: dict[str, tuple[Any, list[dict[str, Any]]]] = {}
        self._rollouts: OrderedDict[tuple[str, str, int], tuple[Any, list[dict[str, Any]]]] = OrderedDict()

    # --------------------------------------------------------------------------------------------------------- names

    def ids(self) -> list[str]:
        """Runs directly in the folder and one level below ("sweep/run-1")."""
        found: list[str] = []
        for entry in _folders(self.root):
            if _is_run(entry):
                found.append(entry.name)
            else:
                found += [f"{entry.name}/{inner.name}" for inner in _folders(entry) if _is_run(inner)]
        return found

    def path(self, run_id: str) -> Path:
        """The folder of a run. UnknownRun for what is not a run, or lies outside, also by way of a symbolic link."""
        parts = run_id.split("/")
        odd = not 1 <= len(parts) <= 2 or any(p in ("", ".", "..") or len(p.encode()) > 255 for p in parts)
        odd = odd or "\0" in run_id or "\\" in run_id
        folder = self.root.joinpath(*parts) if not odd else self.root
        if not odd and os.path.lexists(folder) and not self._inside(folder):
            raise UnknownRun(
                f"{run_id[:200]} is a link to somewhere outside {self.root} and is not read; start the dashboard over "
                "the folder that holds the run itself"
            )
        if odd or not _is_run(folder):
            raise UnknownRun(f"{run_id[:200]!r} is no run in {self.root}{nearest(run_id[:200], self.ids())}")
        for name in FILES:
            self._check(run_id, f"{folder}/{name}", directory=name == ROLLOUTS)
        return folder

    def _check(self, run_id: str, file: str, directory: bool = False) -> None:
        """UnknownRun where reading `file` would lead out of the folder, or never end (a pipe)."""
        name = os.path.basename(file)
        try:
            mode = os.lstat(file).st_mode
            if stat.S_ISLNK(mode):
                if not self._inside(file):
                    raise UnknownRun(f"{run_id}: its {name} is a link to somewhere outside {self.root}: not read")
                mode = os.stat(file).st_mode
        except OSError:  # not there, or a link to nothing: whoever reads it says so
            return
        if not (stat.S_ISDIR(mode) if directory else stat.S_ISREG(mode)):
            raise UnknownRun(f"{run_id}: its {name} is no {'folder' if directory else 'file'} and is not read")

    def _inside(self, path: Path | str) -> bool:
        try:
            return f"{os.path.realpath(path)}/".startswith(f"{self.root}/".replace("//", "/"))
        except (OSError, ValueError):
            return False

    # ---------------------------------------------------------------------------------------------------------- list

    def list_runs(self) -> tuple[list[dict[str, Any]], list[str]]:
        """A line about every run, the last updated first, and what could not be read."""
        lines, problems = [], []
        for run_id in self.ids():
            try:
                lines.append(self.line(run_id))
            except (AgentRLError, OSError, ValueError, TypeError) as error:  # one bad run must not hide the others
                problems.append(str(error) if isinstance(error, UnknownRun) else f"{run_id}: {error}")
        lines.sort(key=lambda r: (-r["updated"], r["id"]))
        return lines, problems

    def line(self, run_id: str) -> dict[str, Any]:
        """What a list shows of one run."""
        path = self.path(run_id)
        stamp = tuple(_stamp(path / name) for name in (STATUS, METRICS, ALARMS, LOCK))
        known = self._lines.get(run_id)
        if known is not None and known[0] == stamp and known[1]["status"] != "running":  # a process may have gone
            return known[1]
        line = self._line(run_id, path)
        self._lines[run_id] = (stamp, line)
        return line

    def _line(self, run_id: str, path: Path) -> dict[str, Any]:
        info = info_of(path)
        alarms = self.alarms(run_id)
        open_alarms = [a for a in alarms if not a["acknowledged"]]
        levels = [a.get("level") for a in open_alarms]
        return {
            **run_state(run_id, info),
            "spark": _spark(path / METRICS),
            "alarms": len(alarms),
            "open": {level: levels.count(level) for level in ("info", "warn", "critical")},
            "last_alarm": alarms[-1] if alarms else None,
        }

    def alarms(self, run_id: str) -> list[dict[str, Any]]:
        """All alarms of a run, in order; a line that is not an alarm is left out."""
        path = self.path(run_id)
        stamp = _stamp(path / ALARMS)
        known = self._alarms.get(run_id)
        if known is None or known[0] != stamp:
            rows = [a for a in read_alarms(path) if isinstance(a.get("id"), str) and isinstance(a.get("step"), int)]
            known = self._alarms[run_id] = (stamp, rows)
        return known[1]

    def guard(self, run_id: str) -> list[dict[str, Any]]:
        """What the guard did, in order."""
        return [row for row in read_guard(self.path(run_id)) if isinstance(row.get("step"), int)]

    def evals(self, run_id: str) -> list[dict[str, Any]]:
        """The evaluations of a run, in order."""
        return [row for row in read_evals(self.path(run_id)) if isinstance(row.get("step"), int)]

    # ------------------------------------------------------------------------------------------------------- one run

    def history(self, run_id: str, phases: bool = True) -> tuple[History, threading.Lock]:
        """The refreshed rows of a run, and the lock to hold while reading them. `phases`: go on with these as well."""
        path = self.path(run_id)
        with self._lock:
            if run_id not in self._histories:
                self._histories[run_id] = (History(path), threading.Lock())
            self._histories.move_to_end(run_id)
            while len(self._histories) > KEPT:
                self._histories.popitem(last=False)
            history, lock = self._histories[run_id]
        with lock:
            history.refresh(phases)
        return history, lock

    def prefetch(self) -> None:
        """Look through the large files of the runs that were updated last, before somebody waits for it."""
        thin.warm()
        sizes = {run_id: _stamp(self.root / run_id / METRICS) for run_id in self.ids()}
        large = {run_id: stamp[2] for run_id, stamp in sizes.items() if stamp is not None and stamp[1] > WHOLE}
        for run_id in sorted(large, key=lambda r: -large[r])[:PREFETCHED]:
            until = time.monotonic() + PREFETCH_S
            with suppress(AgentRLError, OSError, ValueError):  # whoever opens it is told
                while self.history(run_id, phases=False)[0].unseen_bytes and time.monotonic() < until:
                    time.sleep(0.05)  # a page's request comes first

    def rollouts(self, run_id: str, step: int, kind: str) -> list[dict[str, Any]]:
        """Trajectories of one step. RunError where they are not stored or damaged."""
        path = self.path(run_id)
        which: Any = "eval" if kind == "eval" else "step"
        file = path / ROLLOUTS / f"{which}-{step:06d}.jsonl.gz"
        graded = grades_file(path, step, which)
        self._check(run_id, str(file))
        self._check(run_id, str(graded))
        key, stamp = (run_id, which, step), (_stamp(file), _stamp(graded))
        with self._lock:
            known = self._rollouts.get(key)
        if known is None or known[0] != stamp:
            known = (stamp, read_rollouts(path, step, which))
            with self._lock:
                self._rollouts[key] = known
                while len(self._rollouts) > KEPT_STEPS:
                    self._rollouts.popitem(last=False)
        return known[1]

    def search(self, run_id: str, kind: str, text: str, prompt: str | None) -> dict[str, Any]:
        """Lines about the rollouts of all stored steps that hold `text` and are of `prompt`, the last steps first.

        Stops after `SEARCH_S` seconds or `HITS` of them: `looked` says how many of the steps were looked at.
        """
        path = self.path(run_id)
        steps = self.steps(run_id)["eval" if kind == "eval" else "step"]
        for step in steps:
            self._check(run_id, str(path / ROLLOUTS / f"{kind}-{step:06d}.jsonl.gz"))
            self._check(run_id, str(grades_file(path, step, kind)))
        until, rows, looked = time.monotonic() + SEARCH_S, [], 0
        for step, row in search_rollouts(path, steps[::-1], kind, text=text, prompt=prompt):
            if row is None:
                looked += 1
            else:
                rows.append(summary(row) | {"step": step})
            if time.monotonic() > until or len(rows) >= HITS:
                break
        return {"rows": rows, "steps": steps, "looked": looked}

    def steps(self, run_id: str) -> dict[str, list[int]]:
        """Steps whose rollouts are stored, by kind."""
        path = self.path(run_id)
        return {"step": rollout_steps(path, "step"), "eval": rollout_steps(path, "eval")}

    def config(self, run_id: str) -> dict[str, Any]:
        """The config as written, as flat keys, what this version does not understand of it, and meta.json."""
        path = self.path(run_id)
        file = path / CONFIG
        flat: dict[str, Any] = {}
        problems: list[str] = []
        text = ""
        try:
            text = file.read_bytes()[:CONFIG_BYTES].decode("utf-8", "replace")
            flat = flatten(yaml.safe_load(text))
        except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
            if self._imported(path):
                return {"text": "", "flat": {}, "meta": read_json(path / META), "problems": []}
            problems.append(f"{CONFIG} cannot be read: {' '.join(str(error).split())[:300]}")
        if not problems:
            try:  # not `load_config`: it follows `extends`, and a run's config must lead nowhere else
                RunConfig.model_validate(yaml.safe_load(text))
            except ValidationError as error:
                problems += [
                    f"not understood by this version: {'.'.join(map(str, e['loc'])) or 'config'}: {e['msg']}"
                    for e in error.errors(include_input=False, include_url=False)
                ]
        return {"text": text, "flat": flat, "meta": read_json(path / META), "problems": problems}

    def _imported(self, path: Path) -> bool:
        return isinstance(read_json(path / META).get("imported"), dict) and not (path / CONFIG).exists()

    def problems(self, run_id: str, history: History, running: bool) -> list[str]:
        """What of this run could not be read, in words."""
        path = self.path(run_id)
        out = []
        for name in (STATUS, META):
            if not read_json(path / name):
                out.append(f"{name} is {'damaged' if (path / name).exists() else 'missing'}")
        if not (path / CONFIG).exists() and not self._imported(path):
            out.append(f"{CONFIG} is missing")
        if history.unreadable:
            out.append(f"{history.unreadable} lines of {METRICS} are torn or no rows and are left out")
        if history.partial and not running:
            out.append(f"the last line of {METRICS} ({history.partial} bytes) was not written whole and is left out")
        if history.unseen_bytes:
            seen = history.sampled_bytes - history.unseen_bytes
            out.append(
                f"{METRICS} is large: {seen / 2**20:,.0f} of its first {history.sampled_bytes / 2**20:,.0f} MiB are "
                "looked at so far, of the rest only a sample"
            )
        return out


def info_of(path: Path) -> RunInfo:
    """`read_info`, also where a file holds NaN or infinite numbers."""
    try:
        return read_info(path)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return RunInfo(path, path.name, "unknown", 0, None, 0.0, f"its state cannot be read ({error})")


def run_state(run_id: str, info: RunInfo) -> dict[str, Any]:
    """The part of a run that status.json and the last row tell."""
    reward = info.metrics.get("reward")
    return {
        "id": run_id,
        "name": info.name,
        "status": info.status,
        "step": info.step,
        "steps": info.steps,
        "updated": info.updated,
        "message": info.message,
        "resume": how_to_go_on(info.path),
        "gpus": gpus_of(info.path),
        "reward": reward if isinstance(reward, int | float) and reward == reward else None,
    }


def gpus_of(path: Path) -> int | None:
    """How many GPUs the run says it has (meta.json); None where it does not."""
    gpus = read_json(path / META).get("gpus")
    return gpus if isinstance(gpus, int) and not isinstance(gpus, bool) and 0 < gpus < 1_000_000 else None


def flatten(value: Any, prefix: str = "", out: dict[str, Any] | None = None) -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}. ValueError above 5 000 keys."""
    out = {} if out is None else out
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            flatten(inner, f"{prefix}.{key}" if prefix else str(key), out)
    elif prefix:
        if len(out) >= 5000:
            raise ValueError("more than 5 000 keys")
        out[prefix] = value if isinstance(value, str | int | float | bool | None) else repr(value)[:500]
    return out


def _folders(path: Path) -> Iterator[Path]:
    try:
        with os.scandir(path) as entries:
            names = sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir())
    except OSError:
        return
    yield from (path / name for name in names)


def _is_run(path: Path) -> bool:
    return (path / STATUS).is_file() or (path / CONFIG).is_file()


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _spark(file: Path) -> list[float]:
    """About SPARK rewards, evenly spaced in the file."""
    try:
        with file.open("rb") as opened:
            fd, size = opened.fileno(), os.fstat(opened.fileno()).st_size
            if size <= SPARK * WINDOW:
                rows = [m for line in opened if (m := _REWARD.search(line))]
                found = [float(m[1]) for m in rows[:: max(1, len(rows) // SPARK)]]
            else:
                found = []
                for start in range(0, size - WINDOW, (size - WINDOW) // SPARK):
                    block = os.pread(fd, WINDOW, start)
                    m = _REWARD.search(block, block.find(b"\n") + 1)
                    if m:
                        found.append(float(m[1]))
    except (OSError, ValueError):
        return []
    return found

"""Others' rollouts into a run directory: read once (`import`) or again and again (`watch --rollouts`).

Streamed: of a step at most one row is in memory. A step's file appears whole, when all its rows are read. Of each step
at most `MOST` bytes are kept, since the dashboard reads a step at once; what is left out is counted and named.
"""

from __future__ import annotations

import gzip
import os
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from agentrl.errors import AgentRLError, RunError, need
from agentrl.runs.files import strict_json, writing
from agentrl.runs.others import detect
from agentrl.runs.others.base import Rollout, Words
from agentrl.runs.read import ROLLOUTS

MOST = 256 << 20  # bytes of a step, as JSON
OPEN = 8  # files that are open at once

Step = tuple[str, int]  # kind, step


@dataclass
class Means:
    """Sums of a step's rollouts, for the charts of a run without a log."""

    rollouts: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, row: dict[str, Any]) -> None:
        """One row."""
        self.rollouts += 1
        sampled = [t["action_ids"] for t in row["turns"] if "action_ids" in t]
        entropy = [v for t in row["turns"] for v in t.get("entropy") or () if v is not None]
        values = {
            "reward": row["reward"],
            "correct_rate": None if row["correct"] is None else float(row["correct"]),
            "response_length": float(sum(map(len, sampled))) if sampled else None,
        }
        for name, value in values.items():
            if value is not None:
                self._sum(name, value, 1)
        if entropy:
            self._sum("entropy", sum(entropy), len(entropy))

    def _sum(self, name: str, value: float, count: int) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + value
        self.counts[name] = self.counts.get(name, 0) + count

    def metrics(self) -> dict[str, float]:
        """Means of what was known; nothing for what was not."""
        return {name: self.sums[name] / self.counts[name] for name in self.sums}


class RolloutImport:
    """Reads `source` into the run directory `run`. `refresh` reads what is new or changed since the last time."""

    def __init__(self, source: str | Path, form: str | None = None, tokenizer: str | Path | None = None) -> None:
        """AgentRLError where the source, the format or the tokenizer is not there."""
        self.source, self.form = Path(source).expanduser(), form
        self.words = Words(load_tokenizer(tokenizer)) if tokenizer is not None else Words()
        self.problems: dict[str, int] = {}
        self.steps: dict[Step, Means] = {}
        self.formats: dict[str, int] = {}  # name -> files
        self._stamps: dict[Path, tuple[int, int]] = {}
        self._owners: dict[Step, Path] = {}  # the file, or folder of files, that a step came from

    def problem(self, what: str) -> None:
        """Count something that could not be read."""
        self.problems[what] = self.problems.get(what, 0) + 1

    def refresh(self, run: Path) -> list[Step]:
        """Write the steps whose files are new or changed; which these are. RunError where the run cannot be written."""
        self.problems, self.formats = {}, {}
        found = detect.find(self.source, self.problem, self.form)
        parts: OrderedDict[Path, list[detect.Found]] = OrderedDict()
        for one in found:
            name = one.reader.__module__.rpartition(".")[2]
            self.formats[name] = self.formats.get(name, 0) + 1
            parts.setdefault(_part(one), []).append(one)
        written: list[Step] = []
        for part, files in parts.items():
            stamps = {f.path: _stamp(f.path) for f in files}
            if any(self._stamps.get(p) != s for p, s in stamps.items()):
                self._stamps |= stamps
                written += self._part(run, part, files)
        return written

    def _part(self, run: Path, part: Path, files: list[detect.Found]) -> list[Step]:
        with StepFiles(run / ROLLOUTS, self.problem) as out:
            means: dict[Step, Means] = {}
            for file in files:
                try:
                    for rollout in file.reader(file.path, self.words, self.problem).rollouts():
                        owner = self._owners.setdefault((rollout.kind, rollout.step), part)
                        if owner != part:  # two sets of rollouts: which is meant, nobody says
                            self.problem(f"rollouts of steps that {owner} has already; import {part} by itself")
                        elif out.add(rollout):
                            means.setdefault((rollout.kind, rollout.step), Means()).add(rollout.row)
                except OSError as error:
                    self.problem(f"files that cannot be read ({error.strerror or error})")
            out.commit()
        self.steps |= means
        return list(means)

    def summary(self) -> list[str]:
        """What was read and what was not, one line each."""
        rollouts = sum(m.rollouts for m in self.steps.values())
        by_kind = {k: [s for kind, s in self.steps if kind == k] for k in ("step", "eval")}
        spans = [
            f"{_many(len(steps), 'evaluation' if kind == 'eval' else 'step')} ({min(steps)} to {max(steps)})"
            for kind, steps in by_kind.items()
            if steps
        ]
        forms = ", ".join(f"{_many(n, 'file')} of {name}" for name, n in self.formats.items())
        read = f"{_many(rollouts, 'rollout')} of {', '.join(spans)}" if spans else "no rollout"
        head = f"{self.source}: {forms or 'no file of rollouts'}; {read}"
        return [head, *(f"  not read: {count} {what}" for what, count in self.problems.items())]


class StepFiles:
    """Rollout files of several steps while they are written; a context manager that leaves none half-written."""

    def __init__(self, folder: Path, problem: Callable[[str], None]) -> None:
        self.folder, self.problem = folder, problem
        self._open: OrderedDict[Step, _Gzip] = OrderedDict()
        self._bytes: dict[Step, int] = {}

    def __enter__(self) -> StepFiles:
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._open.values():
            with suppress(OSError):
                file.close()
        for step in self._bytes:
            with suppress(OSError):
                self._temporary(step).unlink(missing_ok=True)

    def add(self, rollout: Rollout) -> bool:
        """Whether there was room for it."""
        step = (rollout.kind, rollout.step)
        data = (strict_json(rollout.row) + "\n").encode()
        size = self._bytes.get(step, 0) + len(data)
        if size > MOST:
            self.problem(f"rollouts of a step with more than {MOST >> 20} MiB of them")
            return False
        with writing(self.folder):
            self._file(step).write(data)
        self._bytes[step] = size
        return True

    def commit(self) -> None:
        """The files take their places."""
        with writing(self.folder):
            while self._open:
                self._open.popitem()[1].close()
            for step in list(self._bytes):
                os.replace(self._temporary(step), self.folder / _name(step))
                del self._bytes[step]

    def _file(self, step: Step) -> _Gzip:
        if step not in self._open:
            while len(self._open) >= OPEN:
                self._open.popitem(last=False)[1].close()
            # a second member of the gzip file where the step was opened before
            raw = self._temporary(step).open("ab" if step in self._bytes else "wb")
            self._bytes.setdefault(step, 0)
            self._open[step] = _Gzip(raw)
        self._open.move_to_end(step)
        return self._open[step]

    def _temporary(self, step: Step) -> Path:
        return self.folder / f".{_name(step)}.{os.getpid()}.tmp"


class _Gzip(gzip.GzipFile):
    """A gzip file that closes the file under it; without name and time, so that the same rows give the same bytes."""

    def __init__(self, raw: BinaryIO) -> None:
        super().__init__(filename="", mode="wb", compresslevel=3, fileobj=raw, mtime=0)
        self._raw = raw

    def close(self) -> None:
        """Both."""
        try:
            super().close()
        finally:
            self._raw.close()


def load_tokenizer(path: str | Path) -> Any:
    """The tokenizer in `tokenizer.json`, or in the folder of a model. AgentRLError where there is none."""
    need("--tokenizer", "tokenizers")
    from tokenizers import Tokenizer

    file = Path(path).expanduser()
    file = file / "tokenizer.json" if file.is_dir() else file
    if not file.is_file():
        raise AgentRLError(f"--tokenizer {path}: there is no {file}; name a model's folder or its tokenizer.json")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exceptions
        raise AgentRLError(f"--tokenizer {path}: {file} is no tokenizer ({error})") from error


def holds_rollouts(source: str | Path) -> bool:
    """Whether a format of rollouts knows a file at `source`."""
    path = Path(source).expanduser()
    try:
        return bool(detect.find(path, lambda _: None))
    except RunError:
        return False


def _many(count: int, word: str) -> str:
    return f"{count:,} {word}" + ("" if count == 1 else "s")


def _name(step: Step) -> str:
    return f"{step[0]}-{step[1]:06d}.jsonl.gz"


def _part(found: detect.Found) -> Path:
    """Files that make a step together have one; `all` and `effective` of verifiers are two subsets of one."""
    if not found.reader.folder_is_step:
        return found.path
    folder = found.path.parent
    return folder.parent if folder.name in ("all", "effective") else folder


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0)
    return found.st_size, found.st_mtime_ns

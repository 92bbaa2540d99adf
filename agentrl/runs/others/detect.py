"""Which files under a path hold rollouts, and in which format. Others' folders are full of other things."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from agentrl import plugins
from agentrl.errors import RunError
from agentrl.runs.files import parse_line
from agentrl.runs.others.base import NO, RolloutSource, Row

HEAD = 4 << 20  # bytes in which the first whole object of a JSONL file is looked for
TRIES = 20  # lines
MOST = 200_000  # files that are looked at


@dataclass(frozen=True)
class Found:
    """A file of rollouts and the format that reads it."""

    path: Path
    reader: type[RolloutSource]


def find(path: Path, problem: Callable[[str], None], form: str | None = None) -> list[Found]:
    """The files of rollouts at `path`, in natural order. `form`: this format, whatever the files look like.

    RunError where `path` does not exist, PluginError for a format that does not. What cannot be looked at is counted.
    """
    if not os.path.lexists(path):
        raise RunError(f"{path} does not exist; name the file or folder that the trainer writes its rollouts to")
    readers = [plugins.find("rollout source", n) for n in ([form] if form else names())]
    suffixes = {s for r in readers for s in r.suffixes}
    files = [path] if not path.is_dir() else sorted(_walk(path, suffixes, problem), key=_natural)
    found = []
    for file in files:
        if (reader := _surest(file, readers, problem, forced=form is not None)) is not None:
            found.append(Found(file, reader))
    return found


def names() -> list[str]:
    """All formats' names."""
    return [p.name for p in plugins.available("rollout source")]


def _walk(folder: Path, suffixes: set[str], problem: Callable[[str], None]) -> Iterator[Path]:
    """Files by suffix. Links to folders are not followed: they may lead in a circle."""
    seen = 0
    denied = "folders without the right to read them"
    for where, folders, files in os.walk(folder, onerror=lambda e: problem(denied), followlinks=False):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in files:
            if Path(name).suffix in suffixes and not name.startswith("."):
                seen += 1
                if seen > MOST:
                    problem(f"folders with more than {MOST:,} files, of which the rest is not looked at")
                    return
                yield Path(where, name)


def _surest(
    file: Path, readers: list[type[RolloutSource]], problem: Callable[[str], None], forced: bool
) -> type[RolloutSource] | None:
    try:
        mode = os.stat(file).st_mode
        if not stat.S_ISREG(mode):
            problem("names that are no files (pipes, devices), which are not opened")
            return None
        first = _first(file) if file.suffix == ".jsonl" else None
    except PermissionError:
        problem("files without the right to read them")
        return None
    except OSError as error:
        problem(f"names that lead to no file ({error.strerror})")
        return None
    if forced:
        return readers[0]
    sure = [(r.recognises(file, first), -i) for i, r in enumerate(readers) if file.suffix in r.suffixes]
    best = max(sure, default=(NO, 0))
    return readers[-best[1]] if best[0] > NO else None


def _first(file: Path) -> Row | None:
    """The first whole object; lines before it may be torn."""
    with file.open("rb") as opened:
        for _ in range(TRIES):
            line = opened.readline(HEAD)
            if not line:
                return None
            if (row := parse_line(line)) is not None:
                return row
    return None


def _natural(path: Path) -> list[tuple[int, str | int]]:
    """2.jsonl before 10.jsonl."""
    return [(0, int(p)) if p.isascii() and p.isdigit() else (1, p) for p in re.split(r"(\d+)", path.as_posix())]

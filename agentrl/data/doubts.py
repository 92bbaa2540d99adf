"""What makes held-out figures doubtful: questions that stand in training and test set, or twice in one. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from agentrl.config import DataConfig
from agentrl.types import Task


def doubts(data: DataConfig, train: Sequence[Task], test: Sequence[Task]) -> list[str]:
    """One line for each: one file under two names, questions in both sets, and questions that occur twice in one."""
    lines = same_files({"data.train": data.train, "data.test": data.test})
    return [
        *lines, *shared("data.test", train, test), *duplicates("data.train", train), *duplicates("data.test", test)
    ]  # fmt: skip


def shared(name: str, train: Sequence[Task], test: Sequence[Task]) -> list[str]:
    """A line where questions of the test set `name` are training questions."""
    known = {_text(t) for t in train}
    both = [t for t in test if _text(t) in known]
    if not both:
        return []
    return [
        f"{name}: {len(both)} of {len(test)} questions are training questions, too (first: {_short(both[0])}); "
        "held-out figures then tell what was remembered"
    ]


def duplicates(name: str, tasks: Sequence[Task]) -> list[str]:
    """A line where questions occur more than once; they count as often as they occur."""
    seen = Counter(map(_text, tasks))
    again = [t for t in tasks if seen[_text(t)] > 1]
    if not again:
        return []
    extra = len(tasks) - len(seen)
    return [f"{name}: {extra} of {len(tasks)} questions repeat an earlier one (first: {_short(again[0])})"]


def same_files(sources: Mapping[str, str | None]) -> list[str]:
    """A line for each pair of names behind which the same file stands."""
    files = [(name, Path(s).expanduser()) for name, s in sources.items() if s and Path(s).expanduser().is_file()]
    lines = []
    for i, (name, path) in enumerate(files):
        for other, earlier in files[:i]:
            if path.samefile(earlier) or _bytes(path) == _bytes(earlier):
                lines.append(f"{other} and {name} are one file under two names: {earlier} and {path}")
    return lines


def _bytes(path: Path) -> bytes:
    from hashlib import sha256

    with path.open("rb") as file:
        digest = sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()


def _text(task: Task) -> str:
    """The question without regard to case and white space."""
    return " ".join(str(task.options.get("question", task.id)).casefold().split())


def _short(task: Task) -> str:
    text = " ".join(str(task.options.get("question", task.id)).split())
    return repr(text if len(text) <= 60 else text[:59] + "…")

"""Responses of an evaluation, one line each as they end, so that a kill loses only those under way. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from agentrl.envs.scoring import f1, substring_match
from agentrl.rollouts.play import Episode
from agentrl.runs.files import RunLock, append_line, read_lines, writing
from agentrl.types import Task, Trajectory, Turn


class Journal:
    """The responses in one file, by the name of their episode. One process writes at a time.

    The last line of an episode counts. One that failed is there too, and is to be played again.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file, with what an earlier process has written. RunError where another one writes to it now."""
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._lock = RunLock(path.with_suffix(".lock"))
        self._lock.acquire(f"the evaluation in {path}")
        self.rows: dict[str, dict[str, Any]] = {str(row["id"]): row for row in read_lines(path) if "id" in row}

    def add(self, row: dict[str, Any]) -> None:
        """Keep one response. RunError where the disk refuses it."""
        append_line(self.path, row)
        self.rows[row["id"]] = row

    def left(self, episodes: Sequence[Episode]) -> list[Episode]:
        """Those without a response that did not fail."""
        return [e for e in episodes if (row := self.rows.get(e.sample_id)) is None or row["error"] is not None]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()


def key_of(what: Mapping[str, Any]) -> str:
    """Twelve characters that differ where anything in `what` does, which decides a response."""
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:12]


def response(task: Task, t: Trajectory, seconds: float) -> dict[str, Any]:
    """What is kept of one episode; `f1` and `substring` are None where the environment names no answer."""
    row: dict[str, Any] = {"id": t.sample_id, "error": t.error, "seconds": seconds, "turns": len(t.turns)}
    row["said"] = [u.action for u in t.turns]
    if t.error is not None or not t.turns:
        return row
    last = t.turns[-1].info
    answer = last.get("answer", None if last.get("kind") in (None, "answer") else "")
    golden = task.options.get("golden_answers") or []
    scores = {name: None if answer is None else score(str(answer), golden) for name, score in SCORES.items()}
    row |= {"correct": t.correct, "reward": t.reward, "answer": answer, **scores}
    return row | {"searches": sum(map(calls_in, t.turns)), "cut": any(u.stop == "length" for u in t.turns)}


SCORES: dict[str, Callable[[str, Sequence[str]], float]] = {"f1": f1, "substring": substring_match}


def calls_in(turn: Turn) -> int:
    """How many calls of tools one turn has made: searches, or whatever else the environment calls so."""
    info = turn.info
    if "calls" in info:
        return sum("problem" not in call for call in info["calls"])
    return int(info.get("kind") not in (None, "answer", "invalid") and bool(info.get("valid", True)))


def slim(t: Trajectory) -> Trajectory:
    """The episode without its tokens and texts: of tens of thousands they would fill the memory."""
    turns = (replace(u, prompt_ids=[], action_ids=[], logprobs=[], action="", observation="") for u in t.turns)
    return replace(t, turns=tuple(turns))

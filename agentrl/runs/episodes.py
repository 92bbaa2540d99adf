"""Trajectories as JSON: the rows of a step's rollout file, and the exact form a checkpoint keeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

from agentrl.types import Task, Trajectory, Turn


def trajectory_to_json(t: Trajectory) -> dict[str, Any]:
    """All fields. Nothing is copied, so that an `info` may hold what cannot be: `strict_json` makes it text."""
    row = {f.name: getattr(t, f.name) for f in dataclasses.fields(t)}
    return row | {"turns": [{f.name: getattr(u, f.name) for f in dataclasses.fields(u)} for u in t.turns]}


def trajectory_from_json(row: dict[str, Any]) -> Trajectory:
    """The inverse of `trajectory_to_json`."""
    turns = []
    for u in row["turns"]:
        span = u["answer_span"]
        turns.append(Turn(**{**u, "answer_span": None if span is None else tuple(span)}))
    return Trajectory(**{**row, "turns": tuple(turns)})


def rollout_rows(
    trajectories: Sequence[Trajectory],
    scored: Sequence[Trajectory],
    task_of: dict[str, Task],
    tokens: Callable[[list[int]], list[str]],
    *,
    groups: int,
    columns: dict[str, Tensor | None],
    also: Collection[str] = (),
) -> list[dict[str, Any]]:
    """One dictionary per trajectory of the first `groups` groups (-1: all) and of `also`, for `RunLog.write_rollouts`.

    `scored` are the trajectories of the batch, in its order; `columns` (B, S) are spread over their turns. A value that
    is NaN throughout a response was not computed for it and is left out. `task_of` maps group ids to tasks.
    """
    row_of = {t.sample_id: i for i, t in enumerate(scored)}
    order = list(dict.fromkeys(t.group_id for t in trajectories))
    kept = {*(order if groups < 0 else order[:groups]), *also}
    out = []
    for t in trajectories:
        if t.group_id not in kept:
            continue
        row = {f.name: getattr(t, f.name) for f in dataclasses.fields(t) if f.name != "turns"}
        row["task"] = task_of[t.group_id].options
        i = row_of.get(t.sample_id)
        values = {k: v[i].tolist() for k, v in columns.items() if v is not None} if i is not None else {}
        start, turns = -1, []
        for u in t.turns:
            start += len(u.prompt_ids)
            stop = start + len(u.action_ids)
            turn = {f.name: getattr(u, f.name) for f in dataclasses.fields(u)}
            turn["prompt_tokens"], turn["action_tokens"] = tokens(u.prompt_ids), tokens(u.action_ids)
            for k, v in values.items():
                part = v[start:stop]
                if part and part[0] == part[0]:  # not NaN
                    turn[k] = [round(x, 6) if isinstance(x, float) else x for x in part]
            turns.append(turn)
            start = stop
        row["turns"] = turns
        out.append(row)
    return out


def eval_rows(trajectories: Sequence[Trajectory], tasks: Sequence[Task], samples: int) -> list[dict[str, Any]]:
    """One dictionary per held-out episode, text without token ids; `trajectories` are `samples` per task, in order."""
    out = []
    for i, t in enumerate(trajectories):
        row = {f.name: getattr(t, f.name) for f in dataclasses.fields(t) if f.name != "turns"}
        row["task"] = tasks[i // samples].options
        names = ("action", "observation", "reward", "stop", "info")
        row["turns"] = [{name: getattr(u, name) for name in names} for u in t.turns]
        out.append(row)
    return out

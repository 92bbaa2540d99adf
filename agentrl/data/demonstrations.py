"""Demonstrations as a file: JSONL of a question and the turns of an episode. No torch.

A line holds the question as a data set's row does (`question`, `golden_answers`, other columns), and its turns in one
of three ways:

    "messages": [{"role": "assistant", "content": ...}, {"role": "tool", "content": ...}, ...]   what was said
    "turns":    [{"action": ..., "observation": ..., "action_ids": [...], "prompt_ids": [...]}, ...]   as a run has them
    "actions":  ["<search> ... </search>", "<answer> ... </answer>"]   the environment answers them

The first prompt is always the environment's own, as in training; a user message before the first action is read as
that prompt and must hold the question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentrl.data.tasks import SHOWN, jsonl_rows, read_task
from agentrl.errors import DataError, nearest
from agentrl.types import Task

WAYS = ("messages", "turns", "actions")
OBSERVING = ("tool", "user")  # roles of what the environment says


@dataclass(frozen=True)
class Demonstration:
    """One episode that is to be imitated."""

    where: str  # file and line, for messages
    task: Task
    actions: tuple[str, ...]
    observations: tuple[str, ...] | None = None  # after each action but the last; None: the environment answers
    action_ids: tuple[tuple[int, ...] | None, ...] = ()  # as they were sampled, where the line has them
    prompt_ids: tuple[tuple[int, ...] | None, ...] = ()  # what came before each action, likewise


def read_demonstrations(path: str | Path) -> list[Demonstration]:
    """All lines of a JSONL file. DataError names file, line and reason of those that are wrong."""
    file = Path(path).expanduser()
    if not file.is_file():
        around = [str(file.parent / p.name) for p in file.parent.iterdir()] if file.parent.is_dir() else []
        raise DataError(f"warm_start.file: {path} does not exist{nearest(str(file), around)}")
    out: list[Demonstration] = []
    problems: list[str] = []
    for n, (where, row) in enumerate(jsonl_rows(file), 1):
        try:
            out.append(demonstration(row, where, str(n)))
        except DataError as problem:
            problems.append(f"{where}: {problem}")
            if len(problems) == SHOWN:
                problems.append("the lines after these were not checked")
                break
    if problems:
        raise DataError("\n".join(problems))
    if not out:
        raise DataError(f"warm_start.file: {path} has no lines; give at least two demonstrations")
    return out


def demonstration(row: Any, where: str, number: str) -> Demonstration:
    """One line. DataError says what is wrong with it, without its place."""
    if isinstance(row, DataError):
        raise row
    if not isinstance(row, Mapping):
        raise DataError(f"a {type(row).__name__} where an object with question and {' or '.join(WAYS)} belongs")
    if isinstance(row.get("task"), Mapping):  # an episode as a run stores it
        row = {**row["task"], **{k: row[k] for k in WAYS if k in row}}
    ways = [way for way in WAYS if row.get(way) is not None]
    if len(ways) != 1:
        found = f"it has {' and '.join(ways)}" if ways else f"its columns are {', '.join(map(str, row)) or 'none'}"
        hint = "" if ways else nearest(WAYS[0], [str(k) for k in row if k not in WAYS])
        raise DataError(f"one of {', '.join(WAYS)} must hold the episode{hint}; {found}")
    rest = {k: v for k, v in row.items() if k not in WAYS}
    actions, observations, *ids = _READ[ways[0]](row[ways[0]], rest.get("question"))
    if observations is not None and not any(rest.get(k) is not None for k in ("golden_answers", "answers", "answer")):
        rest["golden_answers"] = [actions[-1]]  # nothing is graded, and an environment wants an answer
    task = read_task({**rest, "id": f"demonstration-{number}"}, number, {})
    return Demonstration(where, task, actions, observations, *ids)


Ids = tuple[tuple[int, ...] | None, ...]
Read = tuple[tuple[str, ...], tuple[str, ...] | None, Ids, Ids]


def _messages(value: Any, question: Any) -> Read:
    messages = _list(value, "messages")
    said: list[tuple[str, str]] = []
    for n, message in enumerate(messages):
        role = message.get("role") if isinstance(message, Mapping) else None
        content = message.get("content") if isinstance(message, Mapping) else None
        if not isinstance(role, str) or not isinstance(content, str):
            raise DataError(f"messages[{n}] is {message!r:.80}: give it a role and a content, both text")
        said.append((role, content))
    if said[0][0] == "user":
        if isinstance(question, str) and question.strip() not in said[0][1]:
            raise DataError("messages[0] is of the user and does not hold the question: the first prompt is the "
                            "environment's own; leave the message out")  # fmt: skip
        said = said[1:]
    for n, (role, _) in enumerate(said):
        wanted = ("assistant",) if n % 2 == 0 else OBSERVING
        if role not in wanted:
            raise DataError(f"message {n + 1} after the question is of {role!r} where {' or '.join(wanted)} belongs: "
                            "assistant and tool take turns, the assistant first and last")  # fmt: skip
    if len(said) % 2 == 0:
        raise DataError("the last message must be the assistant's")
    return tuple(_action(c, n) for n, (_, c) in enumerate(said[::2])), tuple(c for _, c in said[1::2]), (), ()


def _turns(value: Any, question: Any) -> Read:
    turns = _list(value, "turns")
    for n, turn in enumerate(turns):
        if not isinstance(turn, Mapping):
            raise DataError(
                f"turns[{n}] is a {type(turn).__name__} where an object with action and observation belongs"
            )
        if n < len(turns) - 1 and not isinstance(turn.get("observation"), str):
            raise DataError(f"turns[{n}] has no observation: what the environment answered, as text")
    actions = tuple(_action(turn.get("action"), n) for n, turn in enumerate(turns))
    ids = {key: tuple(_ids(turn, n, key) for n, turn in enumerate(turns)) for key in ("action_ids", "prompt_ids")}
    return actions, tuple(turn["observation"] for turn in turns[:-1]), ids["action_ids"], ids["prompt_ids"]


def _actions(value: Any, question: Any) -> Read:
    return tuple(_action(a, n) for n, a in enumerate(_list(value, "actions"))), None, (), ()


_READ = {"messages": _messages, "turns": _turns, "actions": _actions}


def _list(value: Any, name: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple) or not value:
        raise DataError(f"{name} is {value!r:.60}: it must be a list with at least one entry")
    return value


def _action(value: Any, n: int) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"action {n + 1} is {value!r:.60}: it must be what the model wrote, as text")
    return value


def _ids(turn: Mapping[str, Any], n: int, key: str) -> tuple[int, ...] | None:
    ids = turn.get(key)
    if ids is None:
        return None
    if not isinstance(ids, list | tuple) or not ids or not all(type(i) is int and i >= 0 for i in ids):
        raise DataError(f"turns[{n}].{key} must be a list of token ids, or left out")
    return tuple(ids)

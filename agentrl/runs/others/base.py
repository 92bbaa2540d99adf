"""What all formats share: reading files that may be broken, and turning texts, messages and tokens into turns.

A row is what `agentrl.runs.episodes.rollout_rows` makes, with what the format does not say left out: no token that was
not written, no verdict that nobody gave (`correct` is None then), no 0 in place of an unknown number.
"""

from __future__ import annotations

import hashlib
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentrl.runs.files import parse_line

NO, LIKELY, SURE = 0, 2, 3  # how sure a format is that a file is its own
LONGEST = 64 << 20  # bytes of a line that is read
_BLOCK = 1 << 20
_STEP = re.compile(r"(\d+)(?!.*\d)")  # the last number of a name
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
#: What tools write into a text that has no token data. A model can write these tags itself: nothing can tell then.
_TOOL = re.compile(r"<(information|tool_response|tool_result|observation)>.*?(?:</\1>|\Z)", re.DOTALL)
ANSWER_KEYS = ("golden_answers", "ground_truth", "answer", "solution", "label", "target", "gts")

Row = dict[str, Any]


@dataclass(frozen=True)
class Rollout:
    """One trajectory: `kind` is "step" or "eval", `row` a row of a run's rollout file."""

    kind: str
    step: int
    row: Row


@dataclass
class Words:
    """Token ids as text; without a tokenizer an id is shown as `#ID`."""

    tokenizer: Any = None

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """One text per id."""
        if self.tokenizer is None:
            return [f"#{i}" for i in ids]
        return [self.tokenizer.id_to_token(i) or f"#{i}" for i in ids]

    def text(self, ids: Sequence[int]) -> str:
        """The ids as one text, special tokens kept."""
        if self.tokenizer is None:
            return " ".join(self.tokens(ids))
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))


class RolloutSource(ABC):
    """Reads one file of a format. A format of your own is a class like this (plug-in kind "rollout source")."""

    suffixes: tuple[str, ...] = (".jsonl",)
    #: Whether the files of one folder are parts of one step, so that a change of one means reading all of them.
    folder_is_step = False

    @classmethod
    @abstractmethod
    def recognises(cls, path: Path, first: Row | None) -> int:
        """NO, LIKELY or SURE. `first`: the first object of a JSONL file, None for other files."""

    def __init__(self, path: Path, words: Words, problem: Callable[[str], None]) -> None:
        """`problem` counts what cannot be read, by its words."""
        self.path, self.words, self.problem = path, words, problem

    @abstractmethod
    def rollouts(self) -> Iterator[Rollout]:
        """All of the file's, one at a time. What cannot be read is counted and passed over."""

    def objects(self) -> Iterator[Row]:
        """The objects of the JSONL file, one at a time, however large it is."""
        yield from json_objects(self.path, self.problem)

    def number_in_name(self) -> int | None:
        """The step that the file's name says, as verl's `12.jsonl`."""
        m = _STEP.search(self.path.stem)
        return int(m[1]) if m and len(m[1]) < 13 else None


def json_objects(path: Path, problem: Callable[[str], None]) -> Iterator[Row]:
    """Objects of a JSONL file. A line that is torn, no object, or longer than 64 MiB is counted."""
    with path.open("rb") as file:
        while line := file.readline(LONGEST):
            if len(line) == LONGEST and not line.endswith(b"\n"):
                problem("rows longer than 64 MiB")
                while (rest := file.readline(_BLOCK)) and not rest.endswith(b"\n"):
                    pass
                continue
            row = parse_line(line)
            if row is not None:
                yield row
            elif line.strip():
                problem("rows that are torn or no JSON objects")


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool):
        return float(value)
    if not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def whole(value: Any) -> int | None:
    """A step: a whole number from 0 on that a file's name can hold, or None."""
    found = number(value)
    return int(found) if found is not None and found == int(found) and 0 <= found < 1e9 else None


def numbers(values: Any, size: int) -> list[float | None] | None:
    """`size` numbers, or None where the list is another one or has no number at all."""
    if not isinstance(values, list) or len(values) != size:
        return None
    found = [number(v) for v in values]
    return found if any(v is not None for v in found) else None


def ints(values: Any) -> list[int] | None:
    """Token ids, or None where that is not what they are."""
    ok = isinstance(values, list) and all(isinstance(v, int) and not isinstance(v, bool) for v in values)
    return list(values) if ok else None


def key_of(text: str) -> str:
    """A short name of a prompt: the same prompt has the same one at every step."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def answer_in(text: str) -> str | None:
    """The last `<answer>`, or what a `\\boxed{}` holds, or the end of the text."""
    if found := _ANSWER.findall(text):
        return str(found[-1]).strip()
    if boxed := _boxed(text):
        return boxed
    return text.strip()[-200:] or None


def _boxed(text: str) -> str | None:
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 0, start + len("\\boxed{")
    for at in range(begin - 1, len(text)):
        depth += (text[at] == "{") - (text[at] == "}")
        if depth == 0:
            return text[begin:at].strip()
    return None


def answers(row: Mapping[str, Any]) -> list[str] | None:
    """The expected answers that a row names, as texts."""
    for name in ANSWER_KEYS:
        value = row.get(name)
        if isinstance(value, Mapping):
            value = value.get("target", value.get("ground_truth"))
        if isinstance(value, list):
            return [str(v) for v in value][:20] or None
        if value is not None and value != "":
            return [str(value)]
    return None


def question_of(prompt: str) -> tuple[str, str | None]:
    """Question and system prompt of a prompt that was decoded without its special tokens: roles stand on lines."""
    head, found, tail = prompt.rpartition("\nuser\n")
    if not found and prompt.startswith("user\n"):
        head, tail = "", prompt.removeprefix("user\n")
    elif not found:
        return prompt.strip(), None
    system = head.removeprefix("system\n").strip() if head.startswith("system\n") else head.strip()
    return tail.removesuffix("\n").removesuffix("assistant").strip(), system or None


def turn(action: str, observation: str = "", **more: Any) -> Row:
    """One turn; `more` are token columns and what else is known."""
    return {"action": action, "observation": observation, "reward": None, "stop": "stop", "info": {}, **more}


def turns_of_text(text: str) -> list[Row]:
    """A response that is one text, cut where a tool's tags are."""
    out, at = [], 0
    for found in _TOOL.finditer(text):
        out.append(turn(text[at : found.start()], found[0]))
        at = found.end()
    if text[at:].strip() or not out:
        out.append(turn(text[at:]))
    return out


def message_text(message: Any) -> str:
    """What a chat message says: reasoning, content (its text parts), tool calls."""
    if not isinstance(message, Mapping):
        return str(message or "")
    content = message.get("content")
    if isinstance(content, list):
        parts = [p.get("text") or f"<{p.get('type', 'part')}>" for p in content if isinstance(p, Mapping)]
        content = "\n".join(map(str, parts))
    thought = message.get("reasoning_content")
    said = [f"<think>{thought}</think>" if thought else "", str(content or "")]
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        if isinstance(call, Mapping):
            what = call.get("function") if isinstance(call.get("function"), Mapping) else call
            said.append(f"<tool_call>{(what or {}).get('name')}({(what or {}).get('arguments')})</tool_call>")
    return "\n".join(s for s in said if s)


def turns_of_messages(messages: Sequence[Any]) -> list[Row]:
    """A completion that is a conversation: each assistant message is a turn, what follows it its observation."""
    out: list[Row] = []
    for message in messages:
        role = message.get("role") if isinstance(message, Mapping) else None
        if role == "assistant" or not out:
            out.append(turn(message_text(message)))
        else:
            before = out[-1]["observation"]
            out[-1]["observation"] = f"{before}\n{message_text(message)}" if before else message_text(message)
    return out


def prompt_of_messages(messages: Sequence[Any]) -> tuple[str, str | None, str]:
    """Question (the last user message), system prompt and the whole as one text."""
    texts = [(m.get("role") if isinstance(m, Mapping) else None, message_text(m)) for m in messages]
    users = [t for role, t in texts if role not in ("system", "developer")]
    system = [t for role, t in texts if role in ("system", "developer")]
    return (users[-1] if users else ""), "\n".join(system) or None, "\n".join(f"{r}: {t}" for r, t in texts)


def turns_of_tokens(
    ids: Sequence[int], sampled: Sequence[Any], columns: Mapping[str, list[float | None] | None], words: Words
) -> list[Row]:
    """Turns of a sequence of (T,) ids: each stretch of `sampled` tokens is an action, what is before it its prompt.

    `columns`: name -> (T,) values, kept on the action tokens. Tokens after the last action are its observation.
    """
    out: list[Row] = []
    at = 0
    while at < len(ids):
        begin = next((i for i in range(at, len(ids)) if sampled[i]), len(ids))
        stop = next((i for i in range(begin, len(ids)) if not sampled[i]), len(ids))
        if out and begin > at:
            out[-1]["observation"] = words.text(ids[at:begin])
        if begin < stop:
            one = turn(words.text(ids[begin:stop]))
            one |= {"prompt_ids": list(ids[at:begin]), "action_ids": list(ids[begin:stop])}
            one |= {"prompt_tokens": words.tokens(ids[at:begin]), "action_tokens": words.tokens(ids[begin:stop])}
            for name, values in columns.items():
                if values is not None and any(v is not None for v in values[begin:stop]):
                    one[name] = values[begin:stop]
            out.append(one)
        at = stop
    return out


def row_of(
    sample_id: str,
    group_id: str,
    turns: list[Row],
    *,
    reward: float | None = None,
    correct: bool | None = None,
    question: str = "",
    system: str | None = None,
    expected: list[str] | None = None,
    prompt: str = "",
    answer: str | None = None,
    **more: Any,
) -> Row:
    """A row. `prompt`: the whole prompt, by which rollouts of one prompt are found at other steps."""
    task: Row = {"id": key_of(prompt or question), "question": question}
    if system:
        task["system"] = system
    if expected is not None:
        task["golden_answers"] = expected
    if turns and not more.get("error"):
        said = turns[-1]["action"] or ""
        turns[-1]["info"] = {"answer": answer if answer is not None else answer_in(said), **turns[-1]["info"]}
    row: Row = {"sample_id": sample_id, "group_id": group_id, "env_id": "", "policy_version": None, "reward": reward}
    row |= {"correct": correct, "terminated": True, "truncated": False, "error": None, "task": task, "turns": turns}
    return row | more

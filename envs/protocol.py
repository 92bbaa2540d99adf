"""The text of Search-R1's protocol (arXiv 2503.09516): prompt, messages, parsing an action, showing passages."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

PROMPT = (
    "Answer the question below. Think first, inside <think> and </think>, whenever you learn something new. If you "
    "lack knowledge, write <search> your query </search>: the best passages are then shown between <information> and "
    "</information>. Search as often as you want. When you know enough, write only the answer inside <answer> and "
    "</answer>, without explanation, for example <answer> Lisbon </answer>. Question: {question}"
)
INVALID = (
    "\nThat action was not valid. To search, put the query between <search> and </search>. "
    "To answer, put the answer between <answer> and </answer>. Try again.\n"
)
PASSAGE = "Doc {rank}(Title: {title}) {text}\n"
MAX_BODY_CHARACTERS = 200_000  # of one observation; what the model may see of it is cut in tokens, later
_TAGS = re.compile(r"<(\s*/?\s*)(think|search|information|answer)(\s*)>", re.IGNORECASE)
_FIELD_NAMES = ("rank", "title", "text")
_FIELDS = re.compile(r"\{(rank|title|text)\}")


class ParsedAction(NamedTuple):
    """What an action asks for. `span` holds the character offsets of `content`."""

    kind: str  # search | answer | invalid
    content: str
    span: tuple[int, int]


NOTHING = ParsedAction("invalid", "", (0, 0))


def parse_action(action: str) -> ParsedAction:
    """The first complete search or answer of a turn; any text gives a result, none an exception. Linear in its length.

    The content runs from the opening tag to the first closing tag of its kind; where another opening tag of the same
    kind stands between, from the last one of those. White space around it is left out; an empty one is invalid.
    """
    search, answer = action.find("<search>"), action.find("<answer>")
    kind, start, end = "", -1, -1
    if search >= 0 and (answer < 0 or search < answer):
        kind, start, end = "search", search, action.find("</search>", search)
    if end < 0 <= answer:
        kind, start, end = "answer", answer, action.find("</answer>", answer)
    if end < 0 <= search:
        kind, start, end = "search", search, action.find("</search>", search)
    if end < 0:
        return NOTHING
    start += 8  # both opening tags have eight characters
    content = action[start:end]
    if "<" in content and (again := content.rfind(f"<{kind}>")) >= 0:
        start += again + 8
        content = content[again + 8 :]
    content = content.strip()
    if not content:
        return NOTHING
    start = action.find(content, start)
    return ParsedAction(kind, content, (start, start + len(content)))


def without_thoughts(action: str) -> str:
    """The action with closed think blocks blank, so that tags named there ask for nothing; offsets stay. Linear."""
    parts, at = [], 0
    while (start := action.find("<think>", at)) >= 0 and (end := action.find("</think>", start)) >= 0:
        end += len("</think>")
        parts += [action[at:start], " " * (end - start)]
        at = end
    return "".join([*parts, action[at:]])


def defuse(text: str) -> str:
    """The text with protocol tags in it written with round brackets, which nothing reads as a tag."""
    return _TAGS.sub(r"(\1\2\3)", text) if "<" in text else text


def passage_format(template: str) -> Callable[[int, str, str], str]:
    """A function of (rank, title, text) that fills `{rank}`, `{title}`, `{text}`; passages are not read for fields."""
    parts = _FIELDS.split(template)  # literal, field, literal, ..., literal
    if parts[1::2] == ["rank", "title", "text"]:  # as most are: twice as fast
        a, _, b, _, c, _, d = parts
        return lambda rank, title, text: f"{a}{rank}{b}{title}{c}{text}{d}"
    literals = [p.replace("{", "{{").replace("}", "}}") for p in parts]
    fields = [f"{{{_FIELD_NAMES.index(p)}}}" if i % 2 else "" for i, p in enumerate(parts)]
    return "".join(f or literal for f, literal in zip(fields, literals)).format

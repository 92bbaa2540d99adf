"""The text of Search-R1's protocol (METHODS §7): prompt, messages, parsing an action, showing passages."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

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
MAX_PASSAGE_CHARACTERS = 20_000
_CACHED_CHARACTERS = 4_000  # a longer passage is shown anew each time, to bound the cache's memory
_TAGS = re.compile(r"<(\s*/?\s*)(think|search|information|answer)(\s*)>", re.IGNORECASE)
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
    search_end = action.find("</search>", search) if search >= 0 else -1
    answer_end = action.find("</answer>", answer) if answer >= 0 else -1
    if search_end >= 0 and (answer_end < 0 or search < answer):
        kind, start, end = "search", search, search_end
    elif answer_end >= 0:
        kind, start, end = "answer", answer, answer_end
    else:
        return NOTHING
    start = action.rfind(f"<{kind}>", start, end) + 8  # both opening tags have eight characters
    raw = action[start:end]
    content = raw.lstrip()
    start += len(raw) - len(content)
    content = content.rstrip()
    if not content:
        return NOTHING
    return ParsedAction(kind, content, (start, start + len(content)))


def defuse(text: str) -> str:
    """The text with protocol tags in it written with round brackets, which nothing reads as a tag."""
    return _TAGS.sub(r"(\1\2\3)", text) if "<" in text else text


@lru_cache(maxsize=32)  # so that all environments of one template share its cache
def passage_writer(template: str) -> Callable[[int, Any], str]:
    """A function of (rank, passage) that fills `{rank}`, `{title}` and `{text}`; passages are never read for fields."""
    parts = _FIELDS.split(template)  # literal, field, literal, field, ..., literal

    def write(rank: int, title: str, text: str) -> str:
        values = {"rank": str(rank), "title": title, "text": text}
        return "".join([values[p] if i % 2 else p for i, p in enumerate(parts)])

    cached = lru_cache(maxsize=4096)(write)

    def shown(rank: int, passage: Any) -> str:
        title, text = passage.title, passage.text
        if len(title) + len(text) <= _CACHED_CHARACTERS:
            return cached(rank, title, text)
        return write(rank, title[:MAX_PASSAGE_CHARACTERS], text[:MAX_PASSAGE_CHARACTERS])

    return shown

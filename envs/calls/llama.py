"""`{"name": …, "parameters": …}`, perhaps after `<|python_tag|>`, several apart by `;`: Llama 3.1 to 3.3.

Left out: the built-in tools of Llama 3.1, which it calls in Python's syntax.
"""

from __future__ import annotations

import json
from typing import Any

from agentrl.envs.calls.base import MAX_CALLS, Read, call_in, calls_in, compact, json_of, within_limit, without_thinking

TAG = "<|python_tag|>"


class Llama:
    """The turn's JSON objects. The tag is a control token, which engines may leave out of a turn's text."""

    name = "llama"
    end = ""

    def read(self, text: str) -> Read:
        """The calls of a turn."""
        before, tag, after = without_thinking(text).partition(TAG)
        text = (after if tag else before).strip()
        if not text or (text[0] not in "{[" and not tag):
            return []
        return within_limit([call_in(v) for v in values]) if (values := several(text)) else calls_in(json_of(text))

    def write(self, name: str, arguments: dict[str, Any]) -> str:
        """One call."""
        return compact(name, arguments, "parameters")


def several(text: str) -> list[Any]:
    """The objects of `{…}; {…}`, [] where the text is anything else. A `;` inside a string is none between objects."""
    found: list[Any] = []
    at = 0
    while text[at : at + 1] == "{" and len(found) <= MAX_CALLS:
        try:
            value, end = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            return []
        found.append(value)
        rest = text[end : end + 100].lstrip()
        if not rest:
            return found if len(found) > 1 else []
        if rest[0] != ";":
            return []
        at = text.index(";", end) + 1
        at += len(text[at : at + 100]) - len(text[at : at + 100].lstrip())
    return found if len(found) > MAX_CALLS else []


def _no_number(name: str) -> Any:
    raise ValueError(name)


_DECODER = json.JSONDecoder(parse_constant=_no_number)

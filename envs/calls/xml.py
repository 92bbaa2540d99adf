"""`<tool_call><function=NAME><parameter=KEY>value</parameter></function></tool_call>`: Qwen3.5 and later, Nemotron 3.

Values are text. One that begins as a JSON list or object is read as such; numbers and truth values stay text, which
the types of a tool convert.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

from agentrl.envs.calls.base import MAX_CALL_CHARACTERS, BadCall, Call, Read, spans, within_limit, without_thinking

_FUNCTION = re.compile(r"\s*<function=([^>\s]+)>")
_PARAMETER = re.compile(r"\s*<parameter=([^>\s]+)>")
_END, _CLOSE = "</parameter>", "</function>"


class Xml:
    """Tags for the function and for each of its parameters."""

    name = "xml"
    end = "</tool_call>"

    def read(self, text: str) -> Read:
        """The calls of a turn."""
        found = spans(without_thinking(text), "<tool_call>", self.end)
        return within_limit([_call(inner) if isinstance(inner, str) else inner for inner in found])

    def write(self, name: str, arguments: dict[str, Any]) -> str:
        """One call."""
        given = "".join(f"<parameter={key}>\n{_text(value)}\n{_END}\n" for key, value in arguments.items())
        return f"<tool_call>\n<function={name}>\n{given}{_CLOSE}\n{self.end}"


def _call(text: str) -> Call | BadCall:
    if len(text) > MAX_CALL_CHARACTERS:
        return BadCall("shape", f"The call is longer than {MAX_CALL_CHARACTERS} characters.")
    opening = _FUNCTION.match(text)
    if opening is None:
        return BadCall("shape", "A call begins with <function=NAME>.")
    arguments: dict[str, Any] = {}
    at = opening.end()
    while (key := _PARAMETER.match(text, at)) is not None:
        end = text.find(_END, key.end())
        if end < 0:
            return BadCall("shape", f"The parameter {key[1][:80]} was not closed; write {_END}.")
        arguments[key[1]] = _value(text[key.end() : end])
        at = end + len(_END)
    if text[at:].strip() != _CLOSE:
        return BadCall("shape", f"After its parameters a call ends with {_CLOSE}.")
    return Call(opening[1], arguments)


def _value(text: str) -> Any:
    """Without the line breaks that are written around it."""
    text = text.removeprefix("\n").removesuffix("\n")
    if text[:1] in ("[", "{"):
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError:
            return text
    return text


def _text(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()

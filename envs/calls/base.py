"""What a call format is: how a model writes the calls of a turn, and how they are read.

Reading never raises and is linear in the text's length. What looks like a call and is none comes back as a `BadCall`
whose text explains it to the model. Nothing here knows which tools there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import orjson

MAX_CALLS = 64  # of one turn; more are read as one bad call
MAX_CALL_CHARACTERS = 2_000_000
NAME, ARGUMENTS = ("name",), ("arguments", "parameters")  # the keys that models use


@dataclass(frozen=True)
class Call:
    """One call as the model wrote it; whether the tool exists and takes these arguments is not known yet."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class BadCall:
    """What was meant as a call. `kind` is counted (json, shape, unclosed, many), `why` is for the model."""

    kind: str
    why: str


Read = list[Call | BadCall]


class CallFormat(Protocol):
    """One format. A turn without any call reads as []."""

    name: str
    end: str  # a string that ends a call, where the format has one: "" where only the end of the turn does

    def read(self, text: str) -> Read:
        """The calls of a turn, in order."""
        ...

    def write(self, name: str, arguments: dict[str, Any]) -> str:
        """One call as a model would write it."""
        ...


def call_of(text: str) -> Call | BadCall:
    """The call that a JSON object with name and arguments makes."""
    found = json_of(text)
    return found if isinstance(found, BadCall) else call_in(found)


def json_of(text: str) -> Any:
    """The JSON value of a text, or a BadCall. NaN, numbers without end and lone surrogates are no JSON."""
    if len(text) > MAX_CALL_CHARACTERS:
        return BadCall("json", f"The call is longer than {MAX_CALL_CHARACTERS} characters.")
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        return BadCall("json", f"The call is not valid JSON: {str(error)[:120]}.")


def call_in(value: Any) -> Call | BadCall:
    """The call that a JSON value makes."""
    if not isinstance(value, dict):
        return BadCall("shape", 'A call is a JSON object with "name" and "arguments".')
    if isinstance(value.get("function"), dict):  # as OpenAI's interface writes it
        value = value["function"]
    name = value.get("name")
    if not isinstance(name, str) or not name:
        return BadCall("shape", 'The call has no "name".')
    arguments: Any = next((value[key] for key in ARGUMENTS if key in value), {})
    if isinstance(arguments, str):  # some models write the object as text
        arguments = json_of(arguments or "{}")
    if not isinstance(arguments, dict):
        return BadCall("shape", f'The "arguments" of {name[:80]} are not a JSON object.')
    return Call(name, arguments)


def calls_in(value: Any) -> Read:
    """The calls of a JSON object, or of a list of such."""
    if isinstance(value, BadCall):
        return [value]
    return within_limit([call_in(v) for v in value[: MAX_CALLS + 1]]) if isinstance(value, list) else [call_in(value)]


def within_limit(calls: Read) -> Read:
    """The calls, or one bad one where there are more than `MAX_CALLS`."""
    return calls if len(calls) <= MAX_CALLS else [BadCall("many", f"A turn may have at most {MAX_CALLS} calls.")]


def between(text: str, opening: str, closing: str) -> Read:
    """One call in JSON for each `opening … closing`, as `spans` has them."""
    return within_limit([call_of(s) if isinstance(s, str) else s for s in spans(text, opening, closing)])


def spans(text: str, opening: str, closing: str) -> list[str | BadCall]:
    """What stands in each `opening … closing`; where another opening stands between, from the last one of those."""
    found: list[str | BadCall] = []
    at = text.find(opening)
    while at >= 0 and len(found) <= MAX_CALLS:
        start = at + len(opening)
        end = text.find(closing, start)
        if end < 0:
            found.append(BadCall("unclosed", "The call was not closed; write its end, too."))
            break
        inner = text.rfind(opening, start, end)
        found.append(text[inner + len(opening) if inner >= 0 else start : end].strip())
        at = text.find(opening, end)
    return found


def compact(name: str, arguments: dict[str, Any], key: str = "arguments") -> str:
    """The call as JSON on one line."""
    return orjson.dumps({"name": name, key: arguments}).decode()


def without_thinking(text: str) -> str:
    """What follows the last closed block of thoughts: a call inside one was thought of, and not made."""
    return text[end + 8 :] if (end := text.rfind("</think>")) >= 0 else text

"""`[TOOL_CALLS][{"name": …, "arguments": …}]` of Mistral, and `[TOOL_CALLS]name[ARGS]{…}` of its newer tokenizers."""

from __future__ import annotations

from typing import Any

from agentrl.envs.calls.base import (
    MAX_CALLS,
    BadCall,
    Call,
    Read,
    calls_in,
    compact,
    json_of,
    within_limit,
    without_thinking,
)

TAG, ARGS = "[TOOL_CALLS]", "[ARGS]"


class Mistral:
    """Calls after the tag. It is a control token, which engines may leave out of a turn's text."""

    name = "mistral"
    end = ""

    def read(self, text: str) -> Read:
        """The calls of a turn."""
        before, *calls = without_thinking(text).split(TAG)
        if not calls:
            return calls_in(json_of(before.strip())) if before.lstrip().startswith("[{") else []
        found: Read = []
        for part in map(str.strip, calls):
            name, args, arguments = part.partition(ARGS)
            found += [_named(name.strip(), arguments)] if args else calls_in(json_of(part))
            if len(found) > MAX_CALLS:
                break
        return within_limit(found)

    def write(self, name: str, arguments: dict[str, Any]) -> str:
        """One call."""
        return f"{TAG}[{compact(name, arguments)}]"


def _named(name: str, arguments: str) -> Call | BadCall:
    value = json_of(arguments)
    if isinstance(value, BadCall):
        return value
    if not isinstance(value, dict) or not name:
        return BadCall("shape", "A call is a name and a JSON object of arguments.")
    return Call(name, value)

"""A call format of one's own: `name(JSON)`, on a line that begins with an exclamation mark."""

from __future__ import annotations

from typing import Any

import orjson

from agentrl.envs.calls.base import BadCall, Call, Read, json_of


class Shouted:
    """`!name({"argument": "value"})`."""

    name = "shouted"
    end = ""

    def read(self, text: str) -> Read:
        """Every line with an exclamation mark."""
        found: Read = []
        for line in text.splitlines():
            if line.startswith("!"):
                name, _, arguments = line[1:].rstrip().removesuffix(")").partition("(")
                value = json_of(arguments)
                found.append(Call(name, value) if isinstance(value, dict) else BadCall("json", "Write !name({...})."))
        return found

    def write(self, name: str, arguments: dict[str, Any]) -> str:
        """One call."""
        return f"!{name}({orjson.dumps(arguments).decode()})"

"""`<tool_call>{"name": …, "arguments": …}</tool_call>`: Hermes, Qwen2.5, Qwen3 and many more."""

from __future__ import annotations

from typing import Any

from agentrl.envs.calls.base import Read, between, compact, without_thinking


class Hermes:
    """JSON between two tags, as many times as wanted."""

    name = "hermes"
    end = "</tool_call>"

    def read(self, text: str) -> Read:
        """The calls of a turn."""
        return between(without_thinking(text), "<tool_call>", self.end)

    def write(self, name: str, arguments: dict[str, Any]) -> str:
        """One call."""
        return f"<tool_call>\n{compact(name, arguments)}\n</tool_call>"

"""The whole turn is JSON: one call, or a list of calls, perhaps between Markdown fences."""

from __future__ import annotations

from typing import Any

from agentrl.envs.calls.base import Read, calls_in, compact, json_of, without_thinking


class PlainJson:
    """A turn that begins with `{` or `[` is calls; any other is text."""

    name = "json"
    end = ""

    def read(self, text: str) -> Read:
        """The calls of a turn."""
        text = without_thinking(text).strip()
        if text.startswith("```") and text.endswith("```") and "\n" in text:
            text = text[text.index("\n") : -3].strip()
        return calls_in(json_of(text)) if text[:1] in ("{", "[") and text else []

    def write(self, name: str, arguments: dict[str, Any]) -> str:
        """One call."""
        return compact(name, arguments)

"""The made-up encyclopedia of `agentrl.envs.worlds.search`, searched with native tool calls.

Same questions, names, passages and demonstrator, from the same seed; another vocabulary, a chat template with tools,
and `agentrl/SearchTools-v0` as the environment. It is for `rollout: {style: chat, tools: native}`.
"""

from __future__ import annotations

from typing import Any

from agentrl.envs.worlds.forms import Form, ToolCalls
from agentrl.envs.worlds.search import SearchWorld


class SearchToolsWorld(SearchWorld):
    """See the module docstring."""

    env_id = "agentrl/SearchTools-v0"
    form: Form = ToolCalls()

    def words_of_environment(self) -> dict[str, Any]:
        """A turn ends with its first call, as it does with the first tag."""
        return {"passage_template": "doc {text} ", "nothing_found": "nothing", "one_call": True}

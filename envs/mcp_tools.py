"""The tools of an MCP server for `ToolEnv`, under their own names and schemas (extra: mcp).

    env:
      id: agentrl/ToolCalls-v0
      kwargs: {tools: [calculator, {mcp: [npx, some-server], env: {API_KEY: "${MY_KEY}"}}]}

An entry of `tools` that is a mapping is a server: `mcp`, the command that starts one or the URL of one; `tools`, names
of those to offer (default: all); `env` or `headers`, keys from environment variables alone; `timeout_s` of one call.
All environments of a process share one session with a server (`agentrl.envs.mcp_servers`). The server checks the
arguments itself, and its complaint is what the model reads; a server that is gone or late is a ToolFailure.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agentrl.envs.functions import Tool
from agentrl.envs.mcp_servers import Server, secrets_of, server_of
from agentrl.errors import nearest

KEYS = ("mcp", "tools", "env", "headers", "timeout_s")
TIMEOUT_S = 30.0


def with_servers(tools: Sequence[Any]) -> Sequence[Any]:
    """`tools`, each mapping replaced by the tools of the MCP server that it names."""
    if isinstance(tools, str) or not any(isinstance(t, Mapping) for t in tools):
        return tools
    return [list(tools_of(t)) if isinstance(t, Mapping) else t for t in tools]


def tools_of(entry: Mapping[str, Any]) -> Iterator[Tool]:
    """The tools of one server. ValueError for a wrong entry, ToolFailure where the server cannot be reached."""
    for key in entry:
        if key not in KEYS:
            raise ValueError(f"tools: a server has no {key!r}{nearest(str(key), KEYS)}; it has {', '.join(KEYS)}")
    if "mcp" not in entry:
        raise ValueError("tools: a mapping names an MCP server: {mcp: [command, ...]} or {mcp: URL}")
    timeout_s, env, headers = float(entry.get("timeout_s", TIMEOUT_S)), entry.get("env", ()), entry.get("headers")
    server = server_of(entry["mcp"], *secrets_of(entry["mcp"], env, headers))
    listed = server.tools(timeout_s)
    for name in entry.get("tools") or listed:
        if name not in listed:
            known = ", ".join(listed) or "none"
            raise ValueError(f"tools: the server has no tool {name!r}{nearest(name, list(listed))}; it has {known}")
        yield _tool(server, listed[name], timeout_s)


def _tool(server: Server, listed: Mapping[str, Any], timeout_s: float) -> Tool:
    name = listed["name"]

    async def call(**arguments: Any) -> str:
        return await asyncio.wrap_future(server.call(name, arguments, timeout_s))

    schema = {"type": "object", "properties": {}} | dict(listed["arguments"] or {})
    return Tool(name, listed["description"] or name, schema, call, waits=True)

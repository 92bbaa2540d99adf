"""Sessions with MCP servers, shared by all environments of a process (extra: mcp).

One thread holds an event loop for all of them. A session is opened when it is first needed and again after it broke: by
one attempt that all callers share, with a pause before the next where it failed. A server that was started here ends
with its session, with this process, and where an attempt to start it runs out of time.

Left out: prompts, sampling and elicitation, which a server may ask of its client.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from agentrl.envs.errors import ToolFailure
from agentrl.errors import need

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0  # between attempts to reach a server, doubled each time
CLOSING_S = 8.0  # for servers that do not end by themselves; the mcp package kills them within 6
MAX_TOOLS = 10_000  # of one server: a list without end is not read to the end
_VARIABLE = re.compile(r"\$\{(\w+)\}")
# The kernel ends the server with the thread that started it, which lives as long as this process.
_LEASH = """import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
"""

T = TypeVar("T")


class Server:
    """One MCP server. `call` never blocks; `tools` waits for the first session alone."""

    def __init__(self, target: str | tuple[str, ...], env: Mapping[str, str], headers: Mapping[str, str]) -> None:
        self._target, self._env, self._headers = target, dict(env), dict(headers)  # their values are never printed
        self._listed: dict[str, dict[str, Any]] | None = None
        self._attempt: asyncio.Task[Any] | None = None  # opens the session; done once it is open or has failed
        self._client: Any = None  # of the newest session
        self._scope: Any = None  # of the session; cancelling it ends the server
        self._serving: asyncio.Task[None] | None = None
        self._failures = 0
        self._not_before, self._reason = 0.0, ""

    def tools(self, timeout_s: float) -> dict[str, dict[str, Any]]:
        """name -> {"name", "description", "arguments": JSON schema}, as listed last. ToolFailure without any."""
        if self._listed is None:
            _submit(self._open(timeout_s)).result()
        assert self._listed is not None
        return self._listed

    def call(self, tool: str, arguments: dict[str, Any], timeout_s: float) -> Future[str]:
        """The tool's result as text, or its error's. The future raises ToolFailure where the server is gone or late."""
        return _submit(self._call(tool, arguments, timeout_s))

    def close(self) -> Future[None]:
        """End the session, and the server where it was started here."""
        return _submit(self._end())

    # ------------------------------------------------------------------------------------- on the loop of the thread

    async def _call(self, tool: str, arguments: dict[str, Any], timeout_s: float) -> str:
        from mcp.shared.exceptions import MCPError
        from mcp.types import CONNECTION_CLOSED

        began = time.monotonic()
        client = await self._open(timeout_s)
        try:
            left = max(0.0, timeout_s - (time.monotonic() - began))
            result = await asyncio.wait_for(client.call_tool(tool, arguments), left)
        except TimeoutError as e:
            raise ToolFailure(f"the MCP tool {tool} did not answer within {timeout_s} s") from e
        except MCPError as e:
            if e.code != CONNECTION_CLOSED:  # an answer to this call: the server has no such tool any more, for example
                return f"error: {e.message}"
            self._break(client)
            raise ToolFailure(f"the MCP server {self._name} ended in a call of {tool}") from e
        except Exception as e:
            self._break(client)
            raise ToolFailure(f"the MCP server {self._name} failed in {tool}: {reason(e)}") from e
        return text_of(result)

    async def _open(self, timeout_s: float) -> Any:
        """The client of a session; one attempt for all who wait, which has a deadline of its own."""
        if self._attempt is None:
            if (pause := self._not_before - time.monotonic()) > 0:
                raise ToolFailure(f"{self._reason}; the next attempt may begin in {pause:.1f} s")
            self._attempt = asyncio.ensure_future(self._start(timeout_s))
            self._attempt.add_done_callback(lambda task: task.cancelled() or task.exception())  # who waits reads it
        return await asyncio.shield(self._attempt)

    async def _start(self, timeout_s: float) -> Any:
        if self._serving is not None:  # the session before: its server must have ended
            with suppress(Exception):
                await self._serving
        ready: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._serving = asyncio.ensure_future(self._serve(ready, timeout_s))
        try:
            client = await ready
        except Exception as e:
            pause = min(FIRST_PAUSE_S * 2**self._failures, LONGEST_PAUSE_S)
            self._failures += 1
            self._not_before, self._attempt = time.monotonic() + pause, None
            self._reason = f"the MCP server {self._name} cannot be reached: {reason(e)}"
            raise ToolFailure(self._reason) from e
        self._failures = 0
        return client

    async def _serve(self, ready: asyncio.Future[Any], timeout_s: float) -> None:
        """Hold a session open until it is broken or closed; `ready` gets its client, or why there is none."""
        import anyio
        from mcp import Client

        with anyio.CancelScope(deadline=anyio.current_time() + timeout_s) as scope:
            self._scope = scope
            try:
                async with self._transport() as transport, Client(transport) as client:
                    self._listed = await _list(client)
                    self._client, scope.deadline = client, float("inf")
                    ready.set_result(client)
                    await anyio.sleep_forever()
            except anyio.get_cancelled_exc_class():
                if not ready.done():  # before the server is ended, which takes its time
                    ready.set_exception(TimeoutError(f"it did not answer within {timeout_s} s"))
                raise
            except BaseException as e:
                if not ready.done():
                    ready.set_exception(e if isinstance(e, Exception) else ConnectionError(reason(e)))
                self._break()
        if not ready.done():
            ready.set_exception(TimeoutError(f"it did not answer within {timeout_s} s"))

    @asynccontextmanager
    async def _transport(self) -> AsyncIterator[Any]:
        from mcp import StdioServerParameters
        from mcp.client.streamable_http import streamable_http_client
        from mcp.shared._httpx_utils import create_mcp_http_client

        if isinstance(self._target, str):
            async with create_mcp_http_client(headers=self._headers) as http:
                yield streamable_http_client(self._target, http_client=http)
        else:
            command, *arguments = leashed(self._target)
            yield StdioServerParameters(command=command, args=arguments, env=self._env)

    def _break(self, client: Any = None) -> None:
        """The session is of no more use; the next call begins another. A call of an older session breaks nothing."""
        if client is not None and client is not self._client:
            return
        self._attempt = None
        if self._scope is not None:
            self._scope.cancel()

    async def _end(self) -> None:
        self._break()
        if self._serving is not None:
            with suppress(Exception):
                await self._serving

    @property
    def _name(self) -> str:
        return repr(self._target if isinstance(self._target, str) else list(self._target))


async def _list(client: Any) -> dict[str, dict[str, Any]]:
    """All pages of the server's list; a page that points at one that was read ends it."""
    found: dict[str, dict[str, Any]] = {}
    cursor, seen = None, set[str | None]()
    while cursor not in seen and len(found) <= MAX_TOOLS:
        seen.add(cursor)
        page = await client.list_tools(cursor=cursor)
        for t in page.tools:
            found[t.name] = {"name": t.name, "description": t.description or "", "arguments": t.input_schema}
        cursor = page.next_cursor
        if not cursor:
            break
    return found


def leashed(command: Sequence[str]) -> list[str]:
    """The command, on Linux such that it ends with this process, however that ends. ToolFailure if it is no program."""
    if shutil.which(command[0]) is None:
        raise ToolFailure(f"{command[0]!r} is no program that can be run")
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _LEASH, str(os.getpid()), *command]


# ---------------------------------------------------------------------------------------------------- results as text


def text_of(result: Any) -> str:
    """A `CallToolResult` as text: text as it is, structured content as JSON, a placeholder for what is not text."""
    parts = [_part(p) for p in result.content]
    if not any(kind == "text" for kind, _ in parts) and result.structured_content is not None:
        parts.insert(0, ("text", json.dumps(result.structured_content, ensure_ascii=False)))
    text = "\n".join(t for _, t in parts) or "(the result is empty)"
    return f"error: {text}" if result.is_error else text


def _part(part: Any) -> tuple[str, str]:
    """("text", a text) or ("named", what stands for content that is no text)."""
    kind = getattr(part, "type", "unknown")
    if kind == "text":
        return "text", part.text
    if kind == "resource":
        resource = part.resource
        if getattr(resource, "text", None) is not None:
            return "text", resource.text
        return "named", f"[resource {resource.uri}, {resource.mime_type or 'binary'}: not shown]"
    if kind == "resource_link":
        about = f": {part.description}" if part.description else ""
        return "named", f"[link {part.name} {part.uri}{about}]"
    return "named", f"[{kind} {getattr(part, 'mime_type', '')}: not shown]".replace(" :", ":")


def reason(error: BaseException) -> str:
    """What went wrong, without the groups that task groups wrap it in."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, ToolFailure):
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


# -------------------------------------------------------------------------------------------------- keys for a server


def from_environment(values: Mapping[str, str] | Sequence[str], key: str) -> dict[str, str]:
    """`values` with each `${NAME}` replaced by that environment variable; a list of names passes them on.

    ValueError where one is unset, or a value names no variable: what stands in a config is stored with the run.
    """
    named = values if isinstance(values, Mapping) else {name: f"${{{name}}}" for name in values}
    found = {}
    for name, value in named.items():
        variables = _VARIABLE.findall(str(value))
        if not variables:
            raise ValueError(
                f"{key}.{name} is written out; a config is stored with every run, so name an environment variable "
                f"that holds it: {key}: {{{name}: ${{SOME_VARIABLE}}}}"
            )
        unset = [v for v in variables if v not in os.environ]
        if unset:
            raise ValueError(f"{key}.{name} needs the environment variable {unset[0]}, which is not set; export it")
        found[name] = _VARIABLE.sub(lambda m: os.environ[m[1]], str(value))
    return found


def secrets_of(
    server: Sequence[str] | str, env: Mapping[str, str] | Sequence[str], headers: Mapping[str, str] | None
) -> tuple[dict[str, str], dict[str, str]]:
    """The values of the variables and headers that a server is given. ValueError where it takes no such thing."""
    if isinstance(env, str):
        raise ValueError(f"env is {env!r}; give a list of environment variables, or {{NAME: ${{VARIABLE}}}}")
    if env and isinstance(server, str):
        raise ValueError(f"env is for a server behind a command; {server} is a URL: use headers")
    if headers and not isinstance(server, str):
        raise ValueError("headers are for a server behind a URL; this one is a command: use env")
    return from_environment(env, "env"), from_environment(headers or {}, "headers")


# ------------------------------------------------------------------------------------------------ the process's servers

_SERVERS: dict[Any, Server] = {}
_LOCK = threading.Lock()


def server_of(
    server: Sequence[str] | str, env: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None
) -> Server:
    """The process's server at a URL or behind a command, with the values (not names) of its variables or headers."""
    need("agentrl/Mcp-v0", "mcp")
    import mcp.client  # noqa: F401  (takes a second, which the loop of the thread must not stand still)

    target = server if isinstance(server, str) else tuple(server)
    key = target, tuple(sorted((env or {}).items())), tuple(sorted((headers or {}).items()))
    with _LOCK:
        if key not in _SERVERS:
            _SERVERS[key] = Server(target, env or {}, headers or {})
        return _SERVERS[key]


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="mcp", daemon=True).start()
    atexit.register(_close_all)
    return loop


def _submit(work: Awaitable[T]) -> Future[T]:
    async def awaited() -> T:
        return await work

    with _LOCK:
        loop = _loop()
    return asyncio.run_coroutine_threadsafe(awaited(), loop)


def _close_all() -> None:
    ends = [server.close() for server in _SERVERS.values()]
    until = time.monotonic() + CLOSING_S
    for end in ends:
        with suppress(Exception):
            end.result(max(0.0, until - time.monotonic()))

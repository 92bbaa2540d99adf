"""The tools of any MCP server as an environment: `agentrl/Mcp-v0` (extra: mcp).

The model writes <tool>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool> and reads <result>…</result>; it ends with
<answer>…</answer>. All environments of a process share one connection to a server. A failing *tool* answers with its
error text, which the model may learn from; a server that is gone or too late is a ToolFailure.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import gymnasium

from agentrl.envs.errors import ToolFailure
from agentrl.envs.scoring import answer_key
from agentrl.envs.spaces import AnyText
from agentrl.envs.tasks import choose_task, read_task
from agentrl.errors import need

PROMPT = (
    'Solve the task below. To use a tool, write <tool>{"name": "...", "arguments": {...}}</tool>; its result is then '
    "shown between <result> and </result>. When you know enough, write <answer> your answer </answer>.\n"
    "Tools:\n{tools}\nTask: {question}"
)
INVALID = "\nWrite one call between <tool> and </tool> as JSON, or the answer between <answer> and </answer>.\n"
EXAMPLE = {"question": "Which tools are there?", "golden_answers": ["see the list"]}
MAX_RESULT_CHARACTERS = 20_000
Step = tuple[str, float, bool, bool, dict[str, Any]]
_ACTION = re.compile(r"<(tool|answer)>(.*?)</\1>", re.DOTALL)
_TAGS = re.compile(r"<(\s*/?\s*(?:tool|result|answer|think)\s*)>", re.IGNORECASE)


class McpEnv(gymnasium.Env[str, str]):
    """Tools of an MCP server, an answer scored by exact match: `agentrl/Mcp-v0`.

    server: the command that starts one (a list of words, spoken to over its stdin and stdout), or the URL of one.
    tools: names of the tools to offer; None offers all. Raises ToolFailure where the server cannot be reached.
    """

    stop_strings = ("</tool>", "</answer>")
    example_actions = ('<tool>{"name": "none", "arguments": {}}</tool>', "<answer> see the list </answer>")

    def __init__(
        self,
        server: Sequence[str] | str,
        *,
        tools: Sequence[str] | None = None,
        tasks: Sequence[dict[str, Any]] = (),
        max_turns: int = 4,
        timeout_s: float = 30.0,
        prompt_template: str = PROMPT,
    ) -> None:
        need("agentrl/Mcp-v0", "mcp")
        if max_turns < 1:
            raise ValueError(f"max_turns is {max_turns}; an episode needs at least 1")
        self.observation_space, self.action_space = AnyText(), AnyText()
        self._tasks = list(tasks) or [EXAMPLE]
        self._max_turns, self._timeout_s = max_turns, timeout_s
        self._server = server
        offered = {t["name"]: t for t in connection(server, timeout_s).tools}
        unknown = sorted(set(tools or ()) - set(offered))
        if unknown:
            raise ValueError(f"the server has no tool {', '.join(unknown)}; it has {', '.join(offered) or 'none'}")
        self.tools = offered if tools is None else {name: offered[name] for name in tools}
        listed = "\n".join(json.dumps(t, ensure_ascii=False) for t in self.tools.values())
        before, _, self._close = prompt_template.partition("{question}")
        self._open = before.replace("{tools}", defuse(listed))
        self._golden: frozenset[str] | None = None
        self._turn = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Begin a task {"question", "golden_answers"}."""
        super().reset(seed=seed)
        question, golden = read_task(choose_task(options, self._tasks, self.np_random))
        self._golden, self._turn = frozenset(map(answer_key, golden)), 0
        parts = {"open": self._open, "body": defuse(question), "close": self._close}
        return "".join(parts.values()), {"observation_parts": parts}

    def step(self, action: str) -> Step:
        """Call a tool, or end. Raises ToolFailure where the server fails; the turn then has not happened."""
        call, outcome = self._read(action)
        if call is None:
            return self._count(outcome)
        began = time.perf_counter()
        text = connection(self._server, self._timeout_s).call(*call, self._timeout_s).result()
        return self._count(self._result(call[0], text, time.perf_counter() - began))

    async def areset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """`reset` for an event loop."""
        return self.reset(seed=seed, options=options)

    async def astep(self, action: str) -> Step:
        """`step` that leaves the event loop free while the tool works."""
        call, outcome = self._read(action)
        if call is None:
            return self._count(outcome)
        began = time.perf_counter()
        opened = await asyncio.to_thread(connection, self._server, self._timeout_s)  # starting one takes a while
        text = await asyncio.wrap_future(opened.call(*call, self._timeout_s))
        return self._count(self._result(call[0], text, time.perf_counter() - began))

    # ------------------------------------------------------------------------------------------------------- internal

    def _read(self, action: str) -> tuple[tuple[str, dict[str, Any]] | None, Step]:
        """A call to make, or else what comes of the action."""
        if self._golden is None:
            raise gymnasium.error.ResetNeeded("step() was called before reset(), or after the episode ended")
        found = _ACTION.search(action)
        if found is not None and found[1] == "answer" and found[2].strip():
            text = found[2].strip()
            start = action.index(text, found.start(2))
            correct = answer_key(text) in self._golden
            info = {"kind": "answer", "valid": True, "answer": text, "correct": correct}
            return None, ("", float(correct), True, False, info | {"answer_span": (start, start + len(text))})
        if self._turn >= self._max_turns:  # the final turn: no tool is called any more
            return None, ("", 0.0, False, True, {"kind": "invalid", "valid": False, "correct": False})
        call = _call_of(found[2]) if found is not None and found[1] == "tool" else None
        if call is not None and call[0] in self.tools:
            return call, ("", 0.0, False, False, {})
        parts = {"open": INVALID, "body": "", "close": ""}
        return None, (INVALID, 0.0, False, False, {"kind": "invalid", "valid": False, "observation_parts": parts})

    def _result(self, tool: str, text: str, latency_s: float) -> Step:
        parts = {"open": "\n<result>", "body": defuse(text[:MAX_RESULT_CHARACTERS]), "close": "</result>\n"}
        info = {"kind": "tool", "valid": True, "query": tool, "latency_s": latency_s, "observation_parts": parts}
        return "".join(parts.values()), 0.0, False, False, info

    def _count(self, outcome: Step) -> Step:
        self._turn += 1
        if outcome[2] or outcome[3]:
            self._golden = None
        return outcome


def defuse(text: str) -> str:
    """The text with the protocol's tags written with round brackets, which nothing reads as a tag."""
    return _TAGS.sub(r"(\1)", text)


def _call_of(text: str) -> tuple[str, dict[str, Any]] | None:
    """Tool and arguments of a call, None where it is not one."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        return None
    arguments = row.get("arguments", {}) if isinstance(row, dict) else None
    name = row.get("name") if isinstance(row, dict) else None
    return (name, arguments) if isinstance(name, str) and isinstance(arguments, dict) else None


# ------------------------------------------------------------------------------------------------------- the connection


class Connection:
    """One MCP session, kept open on a thread of its own; calls of many episodes share it."""

    def __init__(self, server: Sequence[str] | str, timeout_s: float) -> None:
        self._loop = asyncio.new_event_loop()
        self._ready: Future[list[dict[str, Any]]] = Future()
        self._client: Any = None
        self._server = server
        self._closed = asyncio.Event()
        self._calls = 0  # in flight
        self._lock, self._ended = threading.Lock(), False
        self.broken = False
        threading.Thread(target=self._run, name="mcp", daemon=True).start()
        try:
            self.tools = self._ready.result(timeout_s)
        except Exception as e:
            self.close()
            raise ToolFailure(f"the MCP server {server!r} cannot be reached: {_cause(e)}") from e

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as e:
            self.broken = True
            if not self._ready.done():
                self._ready.set_exception(e)
        finally:
            self.broken = True
            with self._lock:
                self._ended = True
            self._loop.run_until_complete(self._give_up())
            self._loop.close()

    async def _give_up(self) -> None:
        """Calls that came while the session ended fail, and do not wait for ever."""
        await asyncio.sleep(0)  # one that has not begun would be cancelled, and not fail
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in others:
                task.cancel()
            await asyncio.wait(others)

    async def _serve(self) -> None:
        from mcp import Client, StdioServerParameters

        target: Any = self._server
        if not isinstance(target, str):
            target = StdioServerParameters(command=target[0], args=list(target[1:]))
        async with Client(target) as client:
            self._client = client
            listed = (await client.list_tools()).tools
            self._ready.set_result(
                [{"name": t.name, "description": t.description or "", "arguments": t.input_schema} for t in listed]
            )
            await self._closed.wait()

    def call(self, tool: str, arguments: dict[str, Any], timeout_s: float) -> Future[str]:
        """The tool's text, or its error's. It, or the future, raises ToolFailure: the server is gone or too late."""
        with self._lock:
            if self._ended:
                raise ToolFailure(f"the MCP server {self._server!r} is gone")
            return asyncio.run_coroutine_threadsafe(self._call(tool, arguments, timeout_s), self._loop)

    async def _call(self, tool: str, arguments: dict[str, Any], timeout_s: float) -> str:
        self._calls += 1
        try:
            result = await asyncio.wait_for(self._client.call_tool(tool, arguments), timeout_s)
        except TimeoutError as e:
            raise ToolFailure(f"the MCP tool {tool} did not answer within {timeout_s} s") from e
        except asyncio.CancelledError as e:
            raise ToolFailure(f"the MCP server {self._server!r} is gone") from e
        except Exception as e:
            self.broken = True
            raise ToolFailure(f"the MCP server failed in {tool}: {_cause(e)}") from e
        finally:
            self._calls -= 1
            if self.broken and not self._calls:  # nobody uses it again: its thread and its server end
                self._closed.set()
        text = "\n".join(part.text for part in result.content if getattr(part, "type", "") == "text")
        return f"error: {text}" if result.is_error else text

    def close(self) -> None:
        """End the session, and the server where it was started here."""
        self.broken = True
        with suppress(RuntimeError):  # it has ended
            self._loop.call_soon_threadsafe(self._closed.set)


def _cause(error: BaseException) -> str:
    """The error in words; of several in one (task groups make them) the first."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


_CONNECTIONS: dict[tuple[str, ...], Connection] = {}
_FAILED: dict[tuple[str, ...], tuple[float, ToolFailure]] = {}  # the newest attempt that failed: when, and how
_LOCK = threading.Lock()


def connection(server: Sequence[str] | str, timeout_s: float) -> Connection:
    """The process's connection to a server, opened when first needed and again after it broke.

    Whoever waits while somebody else tries has the same result: a server that is away is tried once, and not once for
    each episode. Raises ToolFailure where it cannot be reached.
    """
    key = (server,) if isinstance(server, str) else tuple(server)
    if (known := _open(key)) is not None:
        return known
    asked = time.monotonic()
    with _LOCK:
        if (known := _open(key)) is not None:
            return known
        when, failure = _FAILED.get(key, (asked, None))
        if failure is not None and when > asked:
            raise ToolFailure(str(failure))
        try:
            _CONNECTIONS[key] = Connection(server, timeout_s)
        except ToolFailure as e:
            _FAILED[key] = (time.monotonic(), e)
            raise
        return _CONNECTIONS[key]


def _open(key: tuple[str, ...]) -> Connection | None:
    found = _CONNECTIONS.get(key)
    return None if found is None or found.broken else found

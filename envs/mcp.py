"""The tools of any MCP server as an environment: `agentrl/Mcp-v0` (extra: mcp).

The model writes <tool>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool> and reads <result>…</result>; it ends with
<answer>…</answer>. All environments of a process share one session with a server (`agentrl.envs.mcp_servers`). A
failing *tool* answers with its error text, which the model may learn from, and a call that is wrong is explained to it;
a server that is gone or too late is a ToolFailure.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import gymnasium

from agentrl.envs.errors import ToolFailure
from agentrl.envs.mcp_servers import secrets_of, server_of
from agentrl.envs.scoring import answer_key
from agentrl.envs.spaces import AnyText
from agentrl.envs.tasks import choose_task, read_task
from agentrl.errors import nearest

PROMPT = (
    'Solve the task below. To use a tool, write <tool>{"name": "...", "arguments": {...}}</tool>; its result is then '
    "shown between <result> and </result>. When you know enough, write <answer> your answer </answer>.\n"
    "Tools:\n{tools}\nTask: {question}"
)
INVALID = "\nWrite one call between <tool> and </tool> as JSON, or the answer between <answer> and </answer>.\n"
EXAMPLE = {"question": "Which tools are there?", "golden_answers": ["see the list"]}
MAX_RESULT_CHARACTERS, MAX_REASON_CHARACTERS = 20_000, 400
Step = tuple[str, float, bool, bool, dict[str, Any]]
_ACTION = re.compile(r"<(tool|answer)>(.*?)</\1>", re.DOTALL)
_TAGS = re.compile(r"<(\s*/?\s*(?:tool|result|answer|think)\s*)>", re.IGNORECASE)


class McpEnv(gymnasium.Env[str, str]):
    """Tools of an MCP server, an answer scored by exact match: `agentrl/Mcp-v0`.

    server: the command that starts one (a list of words, spoken to over its stdin and stdout), or the URL of one.
    tools: names of the tools to offer; None offers all. Raises ToolFailure where the server cannot be reached.
    env, headers: keys for a server behind a command, for one behind a URL: {"API_KEY": "${MY_KEY}"}, with values from
    environment variables alone; `env` may be a list of variables to pass on.
    """

    stop_strings = ("</tool>", "</answer>")
    example_actions = ('<tool>{"name": "none", "arguments": {}}</tool>', "<answer> see the list </answer>")

    def __init__(
        self,
        server: Sequence[str] | str,
        *,
        tools: Sequence[str] | None = None,
        env: Mapping[str, str] | Sequence[str] = (),
        headers: Mapping[str, str] | None = None,
        tasks: Sequence[dict[str, Any]] = (),
        max_turns: int = 4,
        timeout_s: float = 30.0,
        prompt_template: str = PROMPT,
    ) -> None:
        if max_turns < 1:
            raise ValueError(f"max_turns is {max_turns}; an episode needs at least 1")
        self.observation_space, self.action_space = AnyText(), AnyText()
        self._tasks = list(tasks) or [EXAMPLE]
        self._max_turns, self._timeout_s = max_turns, timeout_s
        self._server = server_of(server, *secrets_of(server, env, headers))
        self._wanted = None if tools is None else tuple(tools)
        self._prompt = prompt_template.partition("{question}")
        self._listed: dict[str, Any] | None = None
        self._look()
        self._golden: frozenset[str] | None = None
        self._turn = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Begin a task {"question", "golden_answers"}."""
        super().reset(seed=seed)
        try:
            self._look()
        except ValueError as e:  # it was started again, without a tool that is wanted
            raise ToolFailure(str(e)) from e
        question, golden = read_task(choose_task(options, self._tasks, self.np_random))
        self._golden, self._turn = frozenset(map(answer_key, golden)), 0
        parts = {"open": self._open, "body": defuse(question), "close": self._prompt[2]}
        return "".join(parts.values()), {"observation_parts": parts}

    def step(self, action: str) -> Step:
        """Call a tool, or end. Raises ToolFailure where the server fails; the turn then has not happened."""
        call, outcome = self._read(action)
        if call is None:
            return self._count(outcome)
        began = time.perf_counter()
        text = self._call(call).result()
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
        text = await asyncio.wrap_future(self._call(call))
        return self._count(self._result(call[0], text, time.perf_counter() - began))

    # ------------------------------------------------------------------------------------------------------- internal

    def _look(self) -> None:
        """Offer the tools that the server listed last; it may have others after it was started again."""
        listed = self._server.tools(self._timeout_s)
        if listed is self._listed:
            return
        wanted = listed if self._wanted is None else self._wanted
        for name in wanted:
            if name not in listed:
                raise ValueError(f"tools: the server has no tool {name!r}{nearest(name, list(listed))}; {_has(listed)}")
        self._listed, self.tools = listed, {name: listed[name] for name in wanted}
        shown = "\n".join(json.dumps(t, ensure_ascii=False) for t in self.tools.values())
        self._open = self._prompt[0].replace("{tools}", defuse(shown))

    def _call(self, call: tuple[str, dict[str, Any]]) -> Future[str]:
        return self._server.call(*call, self._timeout_s)

    def _read(self, action: str) -> tuple[tuple[str, dict[str, Any]] | None, Step]:
        """A call to make, or else what comes of the action."""
        if self._golden is None:
            raise gymnasium.error.ResetNeeded("step() was called before reset(), or after the episode ended")
        found = _ACTION.search(action)
        if found is not None and found[1] == "answer" and found[2].strip():
            return None, self._answered(action, found[2].strip(), found.start(2))
        if self._turn >= self._max_turns:  # the final turn: no tool is called any more
            return None, ("", 0.0, False, True, {"kind": "invalid", "valid": False, "correct": False})
        if found is None or found[1] != "tool":
            return None, _invalid("")
        call = _call_of(found[2])
        if isinstance(call, str):
            return None, _invalid(call)
        if call[0] not in self.tools:
            return None, _invalid(f"There is no tool {call[0]!r}; {_has(self.tools)}.")
        return call, ("", 0.0, False, False, {})

    def _answered(self, action: str, text: str, start: int) -> Step:
        assert self._golden is not None
        start = action.index(text, start)
        correct = answer_key(text) in self._golden
        info = {"kind": "answer", "valid": True, "answer": text, "correct": correct}
        return "", float(correct), True, False, info | {"answer_span": (start, start + len(text))}

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


def _call_of(text: str) -> tuple[str, dict[str, Any]] | str:
    """Tool and arguments of a call, or what is wrong with it."""
    try:
        row = json.loads(text)
    except RecursionError:
        return "The call is nested too deeply."
    except ValueError as e:
        return f"The call is not JSON: {e}."
    if not isinstance(row, dict) or not isinstance(row.get("name"), str):
        return 'The call has no "name".'
    arguments = row.get("arguments", {})
    return (row["name"], arguments) if isinstance(arguments, dict) else 'The "arguments" are not an object.'


def _invalid(why: str) -> Step:
    """What the model reads after a turn that did nothing; `why` may repeat what it wrote, and is data."""
    parts = {"open": "\n" if why else "", "body": defuse(why[:MAX_REASON_CHARACTERS]), "close": INVALID}
    info = {"kind": "invalid", "valid": False, "observation_parts": parts}
    return "".join(parts.values()), 0.0, False, False, info


def _has(tools: Mapping[str, Any]) -> str:
    return f"there are {', '.join(tools)}" if tools else "there is none"

"""Questions answered with functions as tools: `agentrl/ToolCalls-v0`. `from agentrl.envs.tools import ToolEnv, tool`.

The model calls tools in a format of models' own (`agentrl.envs.calls`), several in one turn where it wants; a turn
without a call is the answer. With `rollout.tools: native` the tools' schemas stand in the prompt by the model's own
chat template and results come back as tool messages; otherwise both are text here.

A call that is wrong, and a tool that fails, is a message to the model. ToolFailure alone is a failed rollout.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple

import gymnasium
import orjson

from agentrl import plugins
from agentrl.envs.calls.base import BadCall, Call, CallFormat
from agentrl.envs.errors import ToolFailure
from agentrl.envs.evidence import Evidence
from agentrl.envs.functions import Bound, Tool, as_text, tool
from agentrl.envs.mcp_tools import with_servers
from agentrl.envs.protocol import MAX_BODY_CHARACTERS
from agentrl.envs.returns import on_thread
from agentrl.envs.scoring import Parts, Rewards, exact_match, weighted
from agentrl.envs.spaces import AnyText
from agentrl.envs.tasks import choose_task, read_task
from agentrl.errors import nearest

__all__ = ["Tool", "ToolEnv", "tool"]

Step = tuple[str, float, bool, bool, dict[str, Any]]
TASK = {"question": "17 boxes of 23 pens, and 5 pens more: how many pens?", "golden_answers": ["396"]}
PROMPT = (
    "Answer the question. You may call these tools first:\n{tools}\nA call looks like this:\n{example}\n"
    "Question: {question}"
)
NATIVE_PROMPT = "{question}"
NOTHING = "Call a tool, or answer."
_TAGS = re.compile(r"<(\s*/?\s*(?:tool_response|tool_call|answer|think)\s*)>", re.IGNORECASE)
THREADS = 512  # of all tools of a process that are plain functions with a deadline


class Outcome(NamedTuple):
    """What came of one call: the text for the model, and how it went."""

    text: str
    tool: str
    problem: str  # "" or why it was not called: json, shape, unclosed, many, unknown, missing, extra, wrong
    failed: bool  # it was called, and raised or was late
    latency_s: float


class ToolEnv(gymnasium.Env[str, str]):
    """Questions answered with functions as tools: `agentrl/ToolCalls-v0`.

    tools: functions (see `tool`), objects or classes whose methods are tools, names of plug-ins, and MCP servers as
    mappings (`agentrl.envs.mcp_tools`).
    reward: the score of an answer by name, as a function, or several with weights: {"exact_match": 1, "f1": 0.5}.
    call_format: how calls are written; with native tools the model's own replaces it.
    tool: a function of one text that stands in for all tools, for the checker.
    one_call: sampling ends with the first call, where the format has an end that can be seen.
    After `max_turns` turns there is one more, in which no tool is called.
    """

    searches = False  # whether rewards may read evidence

    def __init__(
        self,
        *,
        tools: Sequence[Any] = ("calculator",),
        tool: Callable[[str], str] | None = None,
        reward: Rewards = "exact_match",
        tasks: Sequence[dict[str, Any]] = (),
        call_format: str | CallFormat = "hermes",
        one_call: bool = False,
        max_turns: int = 4,
        prompt_template: str | None = None,
    ) -> None:
        if max_turns < 1:
            raise ValueError(f"max_turns is {max_turns}; it must be 1 or more")
        self.observation_space, self.action_space = AnyText(), AnyText()
        self._bound = Bound(with_servers(tools))
        self._tools = self._bound.tools
        if tool is not None:
            self._tools = {n: replace(t, call=partial(_stand_in, tool), waits=False) for n, t in self._tools.items()}
        self._score = weighted(reward, searches=self.searches)
        self._tasks, self._max_turns, self._one_call = list(tasks) or [TASK], max_turns, one_call
        self._template = prompt_template
        self._golden: list[str] | None = None
        self._scored: Parts | None = None  # of the turn's answer, where that was waited for
        self._turn = 0
        self.native = False
        self._write(plugins.find("call format", call_format)() if isinstance(call_format, str) else call_format)

    @property
    def schemas(self) -> list[dict[str, Any]]:
        """The tools as chat templates take them."""
        return [t.schema for t in self._tools.values()]

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The end of a call where one a turn is asked for; else only the model's end of turn."""
        return (self._format.end,) if self._one_call and self._format.end else ()

    @property
    def example_actions(self) -> tuple[str, ...]:
        """A call of the first tool, then the answer of the built-in task."""
        first = next(iter(self._tools.values()))
        return self._format.write(first.name, example_of(first.parameters)), "396"

    def use_native(self, call_format: CallFormat) -> None:
        """Calls are written in the model's own format, and its template shows the tools: leave them out here."""
        self.native = True
        self._write(call_format)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Begin a task {"question", "golden_answers"}."""
        super().reset(seed=seed)
        task = choose_task(options, self._tasks, self.np_random)
        question, self._golden = read_task(task)
        self.begun(task)
        self._question, self._scored, self._turn = question, None, 0
        self._bound.reset()
        parts = {"open": self._open, "body": question, "close": self._close}
        return "".join(parts.values()), {"observation_parts": parts}

    def step(self, action: str) -> Step:
        """One turn: call the tools that it names, or end with the answer's score."""
        read = self._read(action)
        if all(self._at_once(call) for call in read):
            return self.answered(action, read, [self._run(call) for call in read])
        return asyncio.run(self.astep(action))

    async def areset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """`reset` for an event loop."""
        return self.reset(seed=seed, options=options)

    async def astep(self, action: str) -> Step:
        """`step` for an event loop: calls of a turn run at the same time, their results keep the order."""
        read = self._read(action)
        if not read and self._score.waits and (text := answer_in(action)[0]):
            self._scored = await self._score.later(text, self._golden or [], self.evidence(), self._question)
        if all(self._at_once(call) for call in read):
            return self.answered(action, read, [self._run(call) for call in read])
        if len(read) == 1:  # most turns: no task of its own
            return self.answered(action, read, [await self._arun(read[0])])
        return self.answered(action, read, await asyncio.gather(*map(self._arun, read)))

    def waits(self, name: str) -> bool:
        """Whether `use` of this tool gives an awaitable."""
        return not self._at_once(Call(name, {}))

    def use(self, name: str, arguments: dict[str, Any]) -> Outcome | Awaitable[Outcome]:
        """One call, for those who read calls themselves; it is no turn. ToolFailure as in `step`."""
        call = Call(name, arguments)
        return self._run(call) if self._at_once(call) else self._arun(call)

    def finish(self, text: str) -> Step:
        """End the episode with a turn that makes no call, whatever the number of turns was."""
        if self._golden is None:
            raise gymnasium.error.ResetNeeded("finish() was called before reset(), or after the episode ended")
        found = answer_in(text)
        if found[0]:
            return self._ended(*found)
        self._golden = None
        return "", 0.0, False, True, {"kind": "invalid", "valid": False, "correct": False}

    # ------------------------------------------------------------------------------------------------------- internal

    def _write(self, call_format: CallFormat) -> None:
        self._format = call_format
        template = self._template or (NATIVE_PROMPT if self.native else PROMPT)
        shown = "\n".join(orjson.dumps(t.schema["function"]).decode() for t in self._tools.values())
        example = call_format.write("tool_name", {"argument": "value"})
        opening, question, self._close = template.partition("{question}")
        if not question:
            raise ValueError("prompt_template has no {question}; say where the question goes")
        self._open = opening.replace("{tools}", shown).replace("{example}", example)

    def _read(self, action: str) -> list[Call | BadCall]:
        if self._golden is None:
            raise gymnasium.error.ResetNeeded("step() was called before reset(), or after the episode ended")
        read = self._format.read(action)
        return read if self._turn < self._max_turns else [BadCall("late", "") for _ in read[:1]]  # no tool is called

    def _at_once(self, call: Call | BadCall) -> bool:
        known = self._tools.get(call.name) if isinstance(call, Call) else None
        return known is None or not (known.waits or known.deadline_s)

    def _checked(self, call: Call | BadCall) -> tuple[Tool, dict[str, Any]] | Outcome:
        """The tool and its arguments, or what is wrong with the call."""
        if isinstance(call, BadCall):
            return Outcome(call.why, "", call.kind, False, 0.0)
        known = self._tools.get(call.name)
        if known is None:
            names = list(self._tools)
            hint = nearest(call.name[:80], names) or f"; there are {', '.join(names)}"
            return Outcome(f"There is no tool {call.name[:80]!r}{hint}.", call.name[:80], "unknown", False, 0.0)
        arguments = known.arguments(call.arguments)
        if isinstance(arguments, tuple):
            return Outcome(arguments[1], known.name, arguments[0], False, 0.0)
        return known, arguments

    def _run(self, call: Call | BadCall) -> Outcome:
        checked = self._checked(call)
        if isinstance(checked, Outcome):
            return checked
        known, arguments = checked
        began = time.perf_counter()
        try:
            text, failed = as_text(known.call(**arguments)), False
        except ToolFailure:
            raise
        except Exception as error:
            text, failed = _fault(error), True
        return Outcome(text, known.name, "", failed, time.perf_counter() - began)

    async def _arun(self, call: Call | BadCall) -> Outcome:
        checked = self._checked(call)
        if isinstance(checked, Outcome):
            return checked
        known, arguments = checked
        began = time.perf_counter()
        try:
            if known.deadline_s is None:
                text, failed = as_text(await _called(known, arguments)), False
            else:
                async with asyncio.timeout(known.deadline_s) as limit:
                    text, failed = as_text(await _called(known, arguments)), False
        except ToolFailure:
            raise
        except Exception as error:
            late = known.deadline_s is not None and isinstance(error, TimeoutError) and limit.expired()
            text = f"error: it took longer than {known.deadline_s:g} s" if late else _fault(error)
            failed = True
        return Outcome(text, known.name, "", failed, time.perf_counter() - began)

    def answered(self, action: str, read: list[Call | BadCall], outcomes: Sequence[Outcome]) -> Step:
        """What the turn comes to, after its calls."""
        self._turn += 1
        if not read and (text := answer_in(action))[0]:
            return self._ended(*text)
        if self._turn > self._max_turns:
            return self.finish("")
        texts = [defused(o.text[:MAX_BODY_CHARACTERS]) for o in outcomes] or [NOTHING]
        valid = bool(outcomes) and not any(o.problem for o in outcomes)
        parts = self._parts(texts)
        info: dict[str, Any] = {
            "kind": "tool" if outcomes else "invalid",
            "valid": valid,
            "calls": [_told(o) for o in outcomes],
            "latency_s": max((o.latency_s for o in outcomes), default=0.0),
            "messages": texts,
            "observation_parts": parts,
        }
        return "".join(parts.values()), 0.0, False, False, info

    def begun(self, task: Mapping[str, Any]) -> None:
        """An episode of this task has begun; for environments that read more of it than question and answers."""

    def evidence(self) -> Evidence | None:
        """What the searches of this episode found, in environments that search."""
        return None

    def _parts(self, texts: list[str]) -> dict[str, str]:
        """All results as one text, for models without tool messages."""
        body = "\n</tool_response>\n<tool_response>\n".join(texts)
        return {"open": "\n<tool_response>\n", "body": body, "close": "\n</tool_response>\n"}

    def _ended(self, answer: str, span: tuple[int, int]) -> Step:
        assert self._golden is not None
        total, each = self._scored or self._score(answer, self._golden, self.evidence(), self._question)
        correct = (each["exact_match"] if "exact_match" in each else exact_match(answer, self._golden)) == 1.0
        self._golden = None
        info = {"kind": "answer", "valid": True, "answer": answer, "answer_span": span, "correct": correct}
        return "", total, True, False, info | ({"rewards": each} if self._score.named else {})


def example_of(parameters: dict[str, Any]) -> dict[str, Any]:
    """Some arguments of the right types, for the required ones of a JSON schema."""
    kinds = {"string": "17*23+5", "integer": 17, "number": 1.5, "boolean": True, "array": [], "object": {}}
    known = parameters.get("properties", {})
    return {name: kinds.get(known.get(name, {}).get("type"), "x") for name in parameters.get("required", ())}


def _stand_in(tool: Callable[[str], str], **arguments: Any) -> str:
    return tool(str(next(iter(arguments.values()), "")))


def answer_in(action: str) -> tuple[str, tuple[int, int]]:
    """The answer of a turn without calls, and its characters: inside `<answer>`, else all that follows the thoughts."""
    start = end + 8 if (end := action.rfind("</think>")) >= 0 else 0
    stop = len(action)
    if (opening := action.rfind("<answer>", start)) >= 0:
        start = opening + 8
        stop = end if (end := action.find("</answer>", start)) >= 0 else start  # one that is not closed is none
    text = action[start:stop].strip()
    at = action.find(text, start) if text else start
    return text, (at, at + len(text))


def defused(text: str) -> str:
    """Tool output in which nothing looks like the end of a tool's response, a call, an answer or a thought."""
    return _TAGS.sub(r"(\1)", text) if "<" in text else text


def _fault(error: Exception) -> str:
    return f"error: {type(error).__name__}: {str(error)[:400]}"


def _told(o: Outcome) -> dict[str, Any]:
    told: dict[str, Any] = {"tool": o.tool}
    return told | ({"problem": o.problem} if o.problem else {}) | ({"failed": True} if o.failed else {})


@cache
def threads() -> ThreadPoolExecutor:
    """For calls that block, of all environments of the process."""
    return ThreadPoolExecutor(THREADS, thread_name_prefix="tool")


def _called(known: Tool, arguments: dict[str, Any]) -> Awaitable[Any]:
    if known.waits:
        return known.call(**arguments)  # type: ignore[no-any-return]
    if known.deadline_s is None:
        return _done(known.call(**arguments))
    return on_thread(threads(), partial(known.call, **arguments))


async def _done(result: Any) -> Any:
    return result

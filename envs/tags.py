"""An environment for any tools that take text and give text: `<NAME> input </NAME>` calls one, `<answer>` ends.

Copy this file to begin a tool environment of your own, then run `agentrl.envs.checker` on it. What makes it trainable:
(1) text in and out, (2) stop strings, (3) the observation's parts, of which `body` is data and must spell no tag, (4) a
reward that reads the action alone, (5) the tool as a parameter, which may raise ToolFailure, so that the checker can
put a hostile one in its place. Left out: tools that wait (they want `areset`, `astep`), several calls in one turn.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium

from agentrl import plugins
from agentrl.envs.protocol import MAX_BODY_CHARACTERS
from agentrl.envs.scoring import Rewards, weighted
from agentrl.envs.spaces import AnyText
from agentrl.envs.tasks import choose_task, read_task

Tool = Callable[[str], str]
TASK = {"question": "17 boxes of 23 pens, and 5 pens more: how many pens?", "golden_answers": ["396"]}
_TAG = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


class TagEnv(gymnasium.Env[str, str]):
    """Questions answered with the tools that `tools` names: `agentrl/Tools-v0`.

    `tools` are names of tools (`calculator`, a plug-in's, `module:attribute`, whose tag is the attribute), or a mapping
    from tags to names or functions. A tool takes the text of its tag and returns text; ToolFailure is a failed rollout.
    `reward` is the score of an answer by name, by default 1 for a golden answer, character by character. `correct` in
    the infos is that equality, whatever the reward. `tool` stands in for all tools. After `max_turns` turns it ends.
    """

    def __init__(
        self,
        *,
        tools: Sequence[str] | Mapping[str, str | Tool] = ("calculator",),
        tool: Tool | None = None,
        reward: Rewards = "equal",
        tasks: Sequence[dict[str, Any]] = (),
        prompt_template: str | None = None,
        max_turns: int = 4,
    ) -> None:
        self.observation_space, self.action_space = AnyText(), AnyText()  # (1)
        found = _tools(tools)
        opening, question, self._close = (prompt_template or _prompt(found)).partition("{question}")
        if not question:
            raise ValueError("prompt_template has no {question}; say where the question goes")
        if max_turns < 1:
            raise ValueError(f"max_turns is {max_turns}; it must be 1 or more")
        self._open, self._tasks, self._max_turns = opening, list(tasks) or [TASK], max_turns
        self._tools = dict.fromkeys(found, tool) if tool is not None else found  # (5)
        self._score = weighted(reward)
        self._action = re.compile(rf"<({'|'.join([*found, 'answer'])})>([^<]*)</\1>")
        self._help = "write " + ", ".join(f"<{tag}>" for tag in found) + " or <answer>, and close it"

    @property
    def stop_strings(self) -> tuple[str, ...]:  # (2)
        """The closing tags."""
        return tuple(f"</{tag}>" for tag in (*self._tools, "answer"))

    @property
    def example_actions(self) -> tuple[str, ...]:
        """A call of the first tool, then the answer of the built-in task."""
        tag = next(iter(self._tools))
        return f"<{tag}> 17*23 </{tag}>", "<answer> 396 </answer>"

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Begin a task {"question", "golden_answers"}."""
        super().reset(seed=seed)
        self._question, self._golden = read_task(choose_task(options, self._tasks, self.np_random))
        self._turn = 0
        parts = {"open": self._open, "body": self._question, "close": self._close}
        return "".join(parts.values()), {"observation_parts": parts}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Use a tool, or end with the answer's score. Whatever the tool raises is raised."""
        self._turn += 1
        found = self._action.search(action)
        kind, text = (found[1], found[2].strip()) if found else ("invalid", "")
        if found and kind == "answer":
            return self._answered(action, text, found.start(2))
        body = str(self._tools[kind](text))[:MAX_BODY_CHARACTERS].replace("<", "(") if found else ""
        parts = {"open": "\n<result>" + ("" if found else self._help), "body": body, "close": "</result>\n"}  # (3)
        info = {"kind": kind, "valid": found is not None, "observation_parts": parts}
        return "".join(parts.values()), 0.0, False, self._turn >= self._max_turns, info

    def _answered(self, action: str, text: str, start: int) -> tuple[str, float, bool, bool, dict[str, Any]]:
        at = action.index(text, start)
        correct = text in self._golden
        total, each = self._score(text, self._golden, None, self._question)  # (4)
        info = {
            "kind": "answer",
            "valid": True,
            "answer": text,
            "answer_span": (at, at + len(text)),
            "correct": correct,
        }
        return "", total, True, False, info | ({"rewards": each} if self._score.named else {})


def _tools(tools: Sequence[str] | Mapping[str, str | Tool]) -> dict[str, Tool]:
    """Tag -> tool."""
    if isinstance(tools, str):
        raise ValueError(f"tools is {tools!r}; give a list: [{tools}]")
    named = dict(tools) if isinstance(tools, Mapping) else {name.rpartition(":")[2]: name for name in tools}
    if len(named) < len(tools) or not named:
        raise ValueError(f"tools is {list(tools)}; give one or more names with a tag of their own each")
    bad = [tag for tag in named if not _TAG.fullmatch(tag) or tag in ("answer", "result")]
    if bad:
        raise ValueError(f"{bad[0]!r} cannot be a tool's tag; take letters, not answer or result: {{TAG: {bad[0]!r}}}")
    return {tag: plugins.find("tool", tool) if isinstance(tool, str) else tool for tag, tool in named.items()}


def _prompt(tools: Mapping[str, Tool]) -> str:
    """How each tool is called, with the first line of what it says of itself."""
    lines = [f"<{tag}> ... </{tag}>: {(inspect.getdoc(tool) or tag).splitlines()[0]}" for tag, tool in tools.items()]
    return "Tools:\n" + "\n".join(lines) + "\nWrite <answer> ... </answer> to answer. Problem: {question}"

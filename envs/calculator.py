"""A tool environment of one's own, complete: copy this file to begin another, then run `agentrl.envs.checker` on it.

What makes it trainable: (1) text in and out, (2) stop strings, (3) the observation's parts, of which `body` is data
and must spell no tag, (4) a reward that reads the action alone, (5) the tool as a parameter, which may raise
ToolFailure, so that the checker can put a hostile one in its place. A tool that waits also wants `areset`, `astep`.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import gymnasium

from agentrl.envs.spaces import AnyText
from agentrl.envs.tasks import choose_task, read_task

PROMPT = "Write <calc> 12*(3+4) </calc> to see a value, and <answer> 84 </answer> to answer. Problem: "
TASK = {"question": "17 boxes of 23 pens, and 5 pens more: how many pens?", "golden_answers": ["396"]}
OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def calculate(expression: str) -> str:
    """The exact value of whole numbers, + - * / and brackets, or what is wrong with the expression."""
    try:
        if not re.fullmatch(r"[0-9+\-*/()\s]{1,200}", expression):
            raise ValueError
        return str(_value(ast.parse(expression.strip(), mode="eval").body))
    except ZeroDivisionError:
        return "division by zero"
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return "not an expression of whole numbers, + - * / and brackets"


def _value(node: ast.expr) -> Fraction:
    match node:
        case ast.BinOp(left, operation, right) if type(operation) in OPERATIONS:
            return OPERATIONS[type(operation)](_value(left), _value(right))
        case ast.UnaryOp(ast.USub(), operand):
            return -_value(operand)
        case ast.Constant(int(number)):
            return Fraction(number)
    raise ValueError


class CalculatorEnv(gymnasium.Env[str, str]):
    """Arithmetic with a calculator, the example of a tool environment of one's own: `agentrl/Calculator-v0`."""

    stop_strings = ("</calc>", "</answer>")  # (2)
    example_actions = ("<calc> 17*23 </calc>", "<answer> 396 </answer>")

    def __init__(self, *, tool: Callable[[str], str] = calculate, max_turns: int = 4) -> None:
        self.observation_space, self.action_space = AnyText(), AnyText()  # (1)
        self._tool, self._max_turns = tool, max_turns  # (5)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Begin a task {"question", "golden_answers"}."""
        super().reset(seed=seed)
        question, self._golden = read_task(choose_task(options, [TASK], self.np_random))
        self._turn = 0
        return PROMPT + question, {"observation_parts": {"open": PROMPT, "body": question, "close": ""}}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Calculate, or end with a reward of 1 or 0. Whatever the tool raises is raised."""
        self._turn += 1
        found = re.search(r"<(calc|answer)>([^<]*)</\1>", action)
        kind, text = (found[1], found[2].strip()) if found else ("invalid", "")
        if found and kind == "answer":
            at, correct = action.index(text, found.start(2)), text in self._golden  # (4)
            end = {"kind": kind, "valid": True, "answer": text, "answer_span": (at, at + len(text)), "correct": correct}
            return "", float(correct), True, False, end
        said = self._tool(text) if found else "write <calc> or <answer>, and close it"
        parts = {"open": "\n<result>", "body": said.replace("<", "("), "close": "</result>\n"}  # (3)
        info = {"kind": kind, "valid": found is not None, "observation_parts": parts}
        return "".join(parts.values()), 0.0, False, self._turn >= self._max_turns, info

"""The calculator: a tool by name (`tools: [calculator]`), and an environment with nothing else, the smallest of all."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from fractions import Fraction

from agentrl.envs.scoring import Rewards
from agentrl.envs.tags import TagEnv

PROMPT = "Write <calc> 12*(3+4) </calc> to see a value, and <answer> 84 </answer> to answer. Problem: "
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


class CalculatorEnv(TagEnv):
    """Arithmetic with a calculator, the example of a tool environment: `agentrl/Calculator-v0`."""

    def __init__(
        self, *, tool: Callable[[str], str] = calculate, reward: Rewards = "equal", max_turns: int = 4
    ) -> None:
        super().__init__(
            tools={"calc": tool}, reward=reward, prompt_template=PROMPT + "{question}", max_turns=max_turns
        )

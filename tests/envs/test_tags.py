"""The example of a tool environment."""

import ast
from fractions import Fraction

import gymnasium
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.config import RolloutConfig
from agentrl.envs.calculator import PROMPT, CalculatorEnv, calculate
from agentrl.envs.errors import ToolFailure
from agentrl.rollouts.chat import ChatFormat
from agentrl.rollouts.play import EnvPool, Player
from agentrl.types import Task
from tests.fakes import ScriptedSampler, tiny_tokenizer

WRONG = "not an expression of whole numbers, + - * / and brackets"
TASK = {"question": "2 + 2?", "golden_answers": ["4"]}
expressions = st.recursive(
    st.integers(0, 99).map(str),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        inner.map(lambda e: f"-{e}"),
    ),
    max_leaves=8,
)


@given(expressions)
def test_values_are_pythons_own(expression):
    assert calculate(expression) == str(eval(compile(ast.parse(expression, mode="eval"), "", "eval")))


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        (" 12*(3+4) ", "84"),
        ("1/3 + 1/6", "1/2"),
        ("1/(2-2)", "division by zero"),
        ("", WRONG),
        ("2**9", WRONG),
        ("9//2", WRONG),
        ("(1", WRONG),
        ("1 2", WRONG),
        ("__import__('os')", WRONG),
        ("(" * 150 + "1" + ")" * 49, WRONG),
        ("9" * 201, WRONG),
        ("1\x00", WRONG),
        ("\ud800", WRONG),
        ("-" * 199 + "1", "-1"),
    ],
)
def test_values(expression, value):
    assert calculate(expression) == value


@given(st.text(max_size=30))
def test_any_text_has_a_value_or_a_reason(text):
    value = calculate(text)
    assert value in (WRONG, "division by zero") or Fraction(value) is not None


def test_an_episode():
    env = CalculatorEnv()
    observation, info = env.reset(options=TASK)
    assert observation == PROMPT + "2 + 2?" == "".join(info["observation_parts"].values())
    assert env.step("no tag")[0] == "\n<result>write <calc> or <answer>, and close it</result>\n"
    assert env.step("<calc> 2 + 2 </calc>")[0] == "\n<result>4</result>\n"
    observation, reward, terminated, truncated, info = env.step("so <answer> 4 </answer>")
    assert (observation, reward, terminated, truncated, info["correct"]) == ("", 1.0, True, False, True)
    assert info["answer_span"] == (12, 13)


def test_it_is_truncated_after_max_turns():
    env = CalculatorEnv(max_turns=2)
    env.reset(options=TASK)
    assert env.step("hm")[2:4] == (False, False)
    assert env.step("<calc> 1 </calc>")[2:4] == (False, True)


def test_the_tool_is_a_parameter_and_its_failure_is_raised():
    def broken(expression):
        raise ToolFailure("no power")

    env = CalculatorEnv(tool=broken)
    env.reset(options=TASK)
    with pytest.raises(ToolFailure, match="no power"):
        env.step("<calc> 1 </calc>")


def test_it_is_played_by_rollouts_as_it_is():
    tokenizer = tiny_tokenizer()
    config = RolloutConfig(style="tag", prompt="raw", max_context=1000, max_tokens_per_turn=60)
    sampler = ScriptedSampler(tokenizer, ["<calc> 2 + 2 </calc>", "so <answer> 4 </answer>"])
    with EnvPool(lambda: gymnasium.make("agentrl/Calculator-v0")) as pool:
        [t] = Player(sampler, pool, ChatFormat(tokenizer, config), config).collect([Task("t", TASK)], 1)
    assert (t.env_id, t.reward, t.correct, t.error) == ("agentrl/Calculator-v0", 1.0, True, None)
    assert [u.observation for u in t.turns] == ["\n<result>4</result>\n", ""]
    a, b = t.turns[1].answer_span
    assert tokenizer.decode(t.turns[1].action_ids[a:b]).strip() == "4"

"""Answers and questions as people store them: lists as text, numbers from float columns, verl's rows."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.config import DataConfig
from agentrl.data.answers import answers_of, question_of, texts
from agentrl.data.tasks import load_tasks
from agentrl.errors import DataError


@pytest.mark.parametrize(
    ("value", "answers"),
    [
        ('["Paris", "City of Paris"]', ["Paris", "City of Paris"]),
        ("['Paris', 'City of Paris']", ["Paris", "City of Paris"]),
        ("['Paris' 'City of Paris']", ["Paris", "City of Paris"]),
        ("['Paris'\n 'City of Paris']", ["Paris", "City of Paris"]),
        ("""["Côte d'Ivoire" 'Ivory "C" Coast']""", ["Côte d'Ivoire", 'Ivory "C" Coast']),
        ("['it\\'s']", ["it's"]),
        ("array(['a', 'b'], dtype=object)", ["a", "b"]),
        ('["one"]', ["one"]),
        ("[0, 1]", ["[0, 1]"]),  # an interval
        ("[1945 1946]", ["[1945 1946]"]),
        ("[x", ["[x"]),
        ("['a', 'b'] or so", ["['a', 'b'] or so"]),
        ("[]", ["[]"]),
        (1945.0, ["1945"]),
        (2.5, ["2.5"]),
        ([1945.0, float("nan"), None], ["1945"]),
        (0, ["0"]),
        (1e300, ["1e+300"]),
    ],
)
def test_forms_of_answers(value, answers):
    assert answers_of({"golden_answers": value}) == answers


@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\\\r\n\x85\u2028\u2029"), min_size=1), min_size=1)
)
def test_lists_as_json_python_and_numpy_print_them(answers):
    assert texts(json.dumps(answers)) == answers
    plain = [a for a in answers if a.isprintable()]
    if plain:
        assert texts(repr(plain)) == plain
        with np.printoptions(threshold=10**6, linewidth=10**6):
            assert texts(str(np.array(plain, dtype=object))) == plain


@given(st.text())
def test_any_text_is_a_text_or_its_list(text):
    try:
        found = texts(text)
    except DataError:
        return
    assert found == text or (isinstance(found, list) and all(isinstance(f, str) for f in found))


def test_a_shortened_print_has_lost_answers():
    shortened = str(np.array([f"a{i}" for i in range(2000)], dtype=object))
    with pytest.raises(DataError, match="shortened print"):
        answers_of({"golden_answers": shortened})


GSM8K = {
    "data_source": "openai/gsm8k",
    "prompt": [{"role": "user", "content": "Natalia sold clips. How many? Let's think step by step and output the final "  # noqa: E501
                                           'answer after "####".'}],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "72"},
    "extra_info": {"split": "train", "index": 0, "answer": "... #### 72", "question": "Natalia sold clips. How many?"},
}  # fmt: skip
DAPO = {
    "data_source": "math_dapo",
    "prompt": [{"role": "user", "content": "Solve the following math problem step by step. The last line of your response "  # noqa: E501
                "should be of the form Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n"
                "Find x.\n\nRemember to put your answer on its own line after \"Answer:\"."}],
    "ability": "MATH",
    "reward_model": {"ground_truth": "34", "style": "rule-lighteval/MATH_v2"},
    "extra_info": {"index": "9a9b6eb4"},
}  # fmt: skip
MATH = {
    "data_source": "DigitalLearningGmbH/MATH-lighteval",
    "prompt": [
        {"role": "user", "content": "Add. Let's think step by step and output the final answer within \\boxed{}."}
    ],
    "reward_model": {"style": "rule", "ground_truth": "\\frac{1}{2}"},
    "extra_info": {"split": "test", "index": 7},
}


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize(
    ("row", "question", "answers"),
    [
        (GSM8K, "Natalia sold clips. How many?", ["72"]),
        (DAPO, "Find x.", ["34"]),
        (MATH, "Add.", ["\\frac{1}{2}"]),
        (
            GSM8K | {"reward_model": {"ground_truth": {"target": ["a", "b"]}}},
            "Natalia sold clips. How many?",
            ["a", "b"],
        ),
        (GSM8K | {"reward_model": {"ground_truth": '{"target": ["a"]}'}}, "Natalia sold clips. How many?", ["a"]),
        (GSM8K | {"reward_model": {"ground_truth": '["a", "b"]'}}, "Natalia sold clips. How many?", ["a", "b"]),
        (GSM8K | {"answer": "a long solution #### 72"}, "Natalia sold clips. How many?", ["72"]),
        (GSM8K | {"reward_model": {"ground_truth": 72.0}}, "Natalia sold clips. How many?", ["72"]),
    ],
)
def test_rows_as_verl_writes_them(row, question, answers, as_text):
    if as_text:
        row = {k: json.dumps(v) if isinstance(v, dict | list) else v for k, v in row.items()}
    assert (question_of(row), answers_of(row)) == (question, answers)


def test_a_parquet_file_of_pandas_with_floats_and_holes(tmp_path):
    pd.DataFrame(
        {"question": ["when?", "and then?"], "answer": [1945.0, 1946.0], "id": [1.0, None], "hops": [None, 2.0]}
    ).to_parquet(tmp_path / "q.parquet")
    tasks = load_tasks(DataConfig(train=str(tmp_path / "q.parquet")), "train")
    assert [t.options["golden_answers"] for t in tasks] == [["1945"], ["1946"]]
    assert "hops" not in tasks[0].options


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"question": "q", "golden_answers": None}, "golden_answers has no value in this row"),
        ({"question": "q", "golden_answers": float("nan")}, "golden_answers has no value in this row"),
        ({"question": None, "golden_answers": "a"}, "question has no value in this row"),
        ({"question": float("nan"), "answer": "a"}, "question has no value in this row"),
        ({"question": "q", "answer": None}, "answer has no value in this row"),
        (
            {"question": "q", "reward_model": {"style": "rule", "ground_truth": None}},
            "reward_model.ground_truth has no value",
        ),
        ({"question": "q", "golden_answer": "a"}, "no column golden_answers; did you mean 'golden_answer'"),
        ({"question": "q", "golden_answers": float("inf")}, "golden_answers is inf"),
        ({"question": "q", "golden_answers": [None]}, "golden_answers is empty"),
    ],
)
def test_a_column_that_is_there_and_empty_is_not_proposed(tmp_path, row, reason):
    with pytest.raises(DataError, match=reason) as error:
        question_of(row)
        answers_of(row)
    assert reason.startswith("no column") or "did you mean" not in str(error.value)

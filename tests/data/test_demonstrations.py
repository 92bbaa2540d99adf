"""A file of demonstrations: three ways to write an episode, and what is told of a bad line."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.data.demonstrations import demonstration, read_demonstrations
from agentrl.errors import DataError

Q = {"question": "who?", "golden_answers": ["Ada"]}
A, O, B = "<search> x </search>", "<information> y </information>", "<answer> Ada </answer>"


def says(role, content):
    return {"role": role, "content": content}


def write(path, *rows):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


@pytest.mark.parametrize(
    "way",
    [
        {"messages": [says("assistant", A), says("tool", O), says("assistant", B)]},
        {"messages": [says("user", "Look it up. who?"), says("assistant", A), says("user", O), says("assistant", B)]},
        {"turns": [{"action": A, "observation": O}, {"action": B, "observation": ""}]},
        {"turns": [{"action": A, "observation": O}, {"action": B}]},
    ],
)
def test_what_was_said_in_messages_and_turns(way):
    demo = demonstration(Q | way, "f:1", "1")
    assert demo.actions == (A, B) and demo.observations == (O,)
    assert demo.task.options["question"] == "who?" and demo.task.options["golden_answers"] == ["Ada"]
    assert not set(way) & set(demo.task.options)


def test_actions_are_answered_by_the_environment():
    demo = demonstration(Q | {"actions": [A, B]}, "f:1", "1")
    assert (demo.actions, demo.observations, demo.action_ids) == ((A, B), None, ())


def test_an_episode_as_a_run_stores_it():
    row = {"sample_id": "0.0/q-1", "group_id": "0.0/q", "reward": 1.0, "task": Q | {"id": "q", "hops": 2},
           "turns": [{"action": A, "observation": O, "action_ids": [4, 5], "logprobs": [-1.0, -1.0]},
                     {"action": B, "observation": "", "action_ids": [6]}]}  # fmt: skip
    demo = demonstration(row, "f:3", "3")
    assert demo.action_ids == ((4, 5), (6,)) and demo.task.options["hops"] == 2 and demo.task.id == "demonstration-3"


def test_answers_may_be_left_out_where_nothing_is_graded():
    row = {"question": "who?", "messages": [says("assistant", B)]}
    assert demonstration(row, "f:1", "1").task.options["golden_answers"] == [B]
    with pytest.raises(DataError, match="golden_answers"):
        demonstration({"question": "who?", "actions": [B]}, "f:1", "1")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([1], "a list where an object"),
        (Q, "one of messages, turns, actions must hold the episode; its columns are question, golden_answers"),
        (Q | {"message": []}, "did you mean 'message'"),
        (Q | {"messages": [says("assistant", B)], "actions": [B]}, "it has messages and actions"),
        ({"messages": [says("assistant", B)]}, "no column question"),
        (Q | {"messages": []}, "messages is []: it must be a list with at least one entry"),
        (Q | {"messages": [{"role": "assistant"}]}, r"messages\[0\] is"),
        (Q | {"messages": [says("user", "another"), says("assistant", B)]}, "does not hold the question"),
        (Q | {"messages": [says("system", "be good"), says("assistant", B)]}, "of 'system' where assistant belongs"),
        (Q | {"messages": [says("assistant", A), says("assistant", B)]}, "of 'assistant' where tool or user belongs"),
        (Q | {"messages": [says("assistant", A), says("tool", O)]}, "the last message must be the assistant's"),
        (Q | {"turns": [{"action": A}, {"action": B}]}, r"turns\[0\] has no observation"),
        (Q | {"turns": ["x"]}, r"turns\[0\] is a str"),
        (Q | {"turns": [{"action": B, "action_ids": [1.5]}]}, "must be a list of token ids"),
        (Q | {"actions": ["  "]}, "action 1 is '  '"),
        (Q | {"actions": "x"}, "actions is 'x'"),
    ],
)
def test_a_bad_line_is_named_with_file_line_and_reason(tmp_path, row, reason):
    path = write(tmp_path / "d.jsonl", Q | {"actions": [B]}, row)
    with pytest.raises(DataError, match=reason.replace("[]", r"\[\]")) as error:
        read_demonstrations(path)
    assert str(error.value).startswith(f"{path}:2: ")


def test_several_bad_lines_are_told_at_once_and_then_no_more(tmp_path):
    path = write(tmp_path / "d.jsonl", *["{", "[]", *[Q] * 9])
    with pytest.raises(DataError) as error:
        read_demonstrations(path)
    lines = str(error.value).splitlines()
    assert [line.split(": ")[0] for line in lines[:5]] == [f"{path}:{n}" for n in range(1, 6)]
    assert lines[5:] == ["the lines after these were not checked"]


def test_no_file_and_no_lines(tmp_path):
    write(tmp_path / "demos.jsonl")
    with pytest.raises(DataError, match=r"does not exist; did you mean '.*demos.jsonl'"):
        read_demonstrations(tmp_path / "demo.jsonl")
    with pytest.raises(DataError, match="has no lines"):
        read_demonstrations(tmp_path / "demos.jsonl")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["question", "golden_answers", "messages", "turns", "actions", "task", "role", "content"])


@pytest.mark.slow
@given(JSON | st.dictionaries(KEYS, JSON | st.lists(st.dictionaries(KEYS, JSON))))
def test_whatever_a_line_holds_it_is_a_demonstration_or_a_data_error(row):
    try:
        demo = demonstration(row, "f:1", "1")
    except DataError:
        return
    assert demo.actions and all(a.strip() for a in demo.actions)

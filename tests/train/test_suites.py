"""Scores over question sets: what is counted, averages, differences, and their forms."""

import csv
import io
import math

import pytest

from agentrl.train.journal import Journal, calls_in, key_of, response, slim
from agentrl.train.statistics import interval
from agentrl.train.suites import differences_of, render, table_of, to_json
from agentrl.types import Task, Trajectory, Turn


def row(correct, f1=None, substring=None, searches=1, seconds=1.0, error=None):
    f1 = float(correct) if f1 is None else f1
    return {"correct": correct, "f1": f1, "substring": f1 if substring is None else substring, "searches": searches,
            "seconds": seconds, "error": error}  # fmt: skip


LOST = {"error": "server: away", "seconds": 9.0}
A = {
    "s": {"1": [row(True, searches=3)], "2": [row(False, 0.5, 1.0, seconds=3.0)], "3": [LOST]},
    "t": {"1": [row(True)]},
}
B = {"s": {"1": [row(False)], "2": [row(True)], "3": [row(True)]}, "t": {"1": [row(True)]}}


def test_scores_are_over_questions_that_every_row_has():
    table = table_of({"a": A, "b": B}, [("average", ("s", "t"))])
    s = table["a"]["s"]
    assert (s.questions, s.failed, s.searches, s.seconds, s.seconds_p95) == (2, 1, 2.0, 2.0, 3.0)
    assert s.em == interval([1.0, 0.0]) and s.f1.value == 0.75 and s.substring.value == 1.0
    assert table["b"]["s"].questions == 2 and table["b"]["s"].em.value == 0.5  # the third is not counted
    assert table_of({"b": B}, [])["b"]["s"].em.value == pytest.approx(2 / 3)
    mean = table["a"]["average"]
    assert mean.em.value == 0.75 and mean.searches == 1.5 and mean.questions == 3 and mean.failed == 1


def test_an_average_needs_all_its_sets_and_a_metric_all_its_questions():
    groups = [("in-domain", ("s",)), ("all", ("s", "t", "u"))]
    unscored = {"s": {"1": [row(True) | {"f1": None}]}, "t": {"1": [row(True)]}}
    table = table_of({"a": unscored}, groups)
    assert set(table["a"]) == {"s", "t", "in-domain"} and table["a"]["s"].f1 is None
    assert table["a"]["in-domain"].f1 is None and table["a"]["in-domain"].em.value == 1.0
    with pytest.raises(ValueError, match="s: there is no question"):
        table_of({"a": {"s": {"1": [LOST]}}}, [])


def test_differences_are_of_the_same_questions():
    [(name, cells)] = differences_of({"a": A, "b": B}, [("average", ("s", "t"))]).items()
    assert name == "b − a" and cells["s"].em.value == 0.0 and cells["s"].f1.value == -0.25 and cells["s"].questions == 2
    assert cells["average"].f1.value == -0.125 and cells["s"].searches is None
    same = {"s": {str(i): [row(i % 2 == 0)] for i in range(50)}}
    [cells] = differences_of({"a": same, "b": same}, []).values()
    assert cells["s"].em.value == 0 and 0 < cells["s"].em.high < 0.1


def test_several_responses_a_question():
    sampled = {"s": {"1": [row(True), row(False)], "2": [row(True), LOST]}}
    s = table_of({"a": sampled}, [])["a"]["s"]
    assert s.em.value == 0.75 and s.questions == 2 and s.failed == 1


def test_forms():
    table = table_of({"a": A, "b|c": B}, [("average", ("s", "t"))])
    text = render(table, {"s": "Set S"}, "text")
    assert text.splitlines()[0].split() == ["a", "questions", "EM", "F1", "substring", "EM", "searches", "seconds"]
    assert "Set S" in text and "2 (1 failed)" in text and "50.0 [" in text and len(text.splitlines()) == 9
    markdown = render(table, {}, "markdown").splitlines()
    assert markdown[1] == "|" + "---|" * 7 and markdown[6].startswith("| b\\|c |")
    rows = list(csv.DictReader(io.StringIO(render(table, {}, "csv"))))
    assert [r["model"] for r in rows] == ["a"] * 3 + ["b|c"] * 3 and rows[0]["em"] == "0.5" and rows[0]["failed"] == "1"
    assert float(rows[0]["em_low"]) < 0.5 < float(rows[0]["em_high"]) and rows[2]["seconds_median"] == ""
    assert to_json(table)["a"]["s"]["f1"]["value"] == 0.75


def turn(**info):
    return Turn([1], [2], [0.0], "say", "see", 0.0, "stop", info)


def trajectory(*turns, correct=True, error=None):
    return Trajectory("e", "g", "env", 0, turns, 1.0, correct, True, False, error)


TASK = Task("1", {"question": "q", "golden_answers": ["Edda Marn", "Marn"]})


def test_a_response_is_what_the_environment_says_of_it():
    t = trajectory(turn(kind="search", valid=True), turn(kind="answer", valid=True, answer="it was Edda Marn"))
    kept = response(TASK, t, 2.5)
    assert (
        kept["searches"] == 1 and kept["seconds"] == 2.5 and kept["turns"] == 2 and kept["answer"] == "it was Edda Marn"
    )
    assert kept["substring"] == 1.0 and kept["f1"] == pytest.approx(2 * 2 / (2 + 4)) and kept["correct"] is True
    silent = response(TASK, trajectory(turn(kind="invalid", valid=False), correct=False), 1.0)
    assert (silent["f1"], silent["substring"], silent["searches"]) == (0.0, 0.0, 0)
    unnamed = response(TASK, trajectory(turn()), 1.0)
    assert unnamed["f1"] is None and unnamed["correct"]
    assert kept["said"] == ["say", "say"]
    lost = response(TASK, trajectory(error="server: away"), 1.0)
    assert lost["error"] == "server: away" and "correct" not in lost


def test_calls_of_a_turn():
    assert calls_in(turn(kind="tool", calls=[{"tool": "a"}, {"tool": "", "problem": "json"}, {"tool": "b"}])) == 2
    assert calls_in(turn(kind="search", valid=False)) == 0 and calls_in(turn(kind="answer", valid=True)) == 0


def test_what_is_kept_in_memory_has_no_tokens():
    [u] = slim(trajectory(turn(kind="search"))).turns
    assert (u.prompt_ids, u.action_ids, u.logprobs, u.action, u.observation) == ([], [], [], "", "")
    assert u.info == {"kind": "search"}


def test_a_journal_goes_on_after_a_torn_line(tmp_path):
    from agentrl.errors import RunError
    from agentrl.rollouts.play import Episode

    path = tmp_path / "new" / "a.jsonl"
    episodes = [Episode(TASK, "g", name) for name in ("1", "2", "3", "4")]
    with Journal(path) as journal:
        journal.add({"id": "1", "error": None, "x": math.nan})
        journal.add({"id": "2", "error": "server: away"})
        with pytest.raises(RunError, match="in use"):
            Journal(path)
    with path.open("a") as file:
        file.write('{"id": "3", "err')
    with Journal(path) as journal:
        assert [e.sample_id for e in journal.left(episodes)] == ["2", "3", "4"]
        journal.add({"id": "2", "error": None})
    with Journal(path) as journal:
        assert [e.sample_id for e in journal.left(episodes)] == ["3", "4"]


def test_keys_differ_where_anything_does():
    assert key_of({"a": 1, "b": [2]}) == key_of({"b": [2], "a": 1}) != key_of({"a": 1, "b": [3]})

"""Grading of mathematical answers; the worker processes are real."""

import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs import grading
from envs.grading import grade, last_boxed, normalize


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{42}", "42"),
        (r"\boxed{1} no, \boxed{\frac{1}{2}} it is", r"\frac{1}{2}"),
        (r"\boxed{unclosed", None),
        (r"\boxed{a} and \boxed{unclosed {", "a"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        ("nothing", None),
        (r"\boxed{}", ""),
    ],
)
def test_the_last_complete_box(text, content):
    span = last_boxed(text)
    assert (None if span is None else text[slice(*span)]) == content


@given(st.text(alphabet="\\boxed{}a1 ", max_size=200))
def test_a_box_is_balanced_and_inside_the_text(text):
    span = last_boxed(text)
    if span is not None:
        inner = text[slice(*span)]
        assert text[span[0] - 7 : span[0]] == "\\boxed{" and text[span[1]] == "}"
        assert inner.count("{") == inner.count("}")


def test_a_megabyte_of_openers_is_quick():
    assert last_boxed("\\boxed{" * 150_000) is None  # work that grows with the square would not end in hours


@pytest.mark.parametrize(
    ("answer", "golden", "correct", "method"),
    [
        ("42", ["42"], True, "string"),
        (" $42$. ", ["42"], True, "string"),
        ("042", ["42"], True, "integer"),
        ("41", ["42"], False, "integer"),
        ("7", ["6", "7"], True, "string"),
        (r"\frac{1}{2}", ["0.5"], True, "math-verify"),
        (r"\dfrac{2}{4}", [r"\frac{1}{2}"], True, "math-verify"),
        ("x+1", ["1+x"], True, "math-verify"),
        ("x+2", ["1+x"], False, "math-verify"),
        (r"\frac{1}{", [r"\frac{1}{2}"], False, "math-verify"),
        ("", ["42"], False, "none"),
        (None, ["42"], False, "none"),
    ],
)
def test_grades(answer, golden, correct, method):
    result = grade(answer, golden)
    assert (result.correct, result.method) == (correct, method)


def test_a_hundred_kilobytes_of_latex_are_wrong_at_once():
    assert grade(r"\frac{1}{" * 10_000, ["1"]).method == "too long"  # so no worker has seen it


def test_a_computation_without_end_misses_the_deadline_and_the_next_answer_is_graded():
    slow = grade("9^{9^{9^{9}}}-9^{9^{9^{9}}}+1", ["10^{10^{10^{10}}}"], deadline_s=2.0)
    assert (slow.correct, slow.method) == (False, "deadline")
    assert grade(r"\frac{3}{6}", ["0.5"]).correct


def test_a_hung_worker_is_replaced():
    pool = grading._pool()
    with pytest.raises(grading.DeadlineError):
        pool.schedule(time.sleep, args=[60], timeout=0.5).result()
    assert pool.schedule(abs, args=[-3], timeout=20).result() == 3


def test_workers_that_cannot_start_are_a_tool_failure_and_no_wrong_answer(tmp_path):
    script = tmp_path / "unguarded.py"  # each worker runs it again, and cannot start workers of its own
    script.write_text("from envs.grading import grade\nprint(grade('1/2', ['0.5']))\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "Grade(" not in done.stdout
    assert "ToolFailure: answers cannot be graded" in done.stderr and '`if __name__ == "__main__":`' in done.stderr


def test_normalize_removes_only_layout():
    assert normalize(r" \left( 1 , 2 \right) . ") == "(1,2)"
    assert normalize(r"\text{ cm}") == "{cm}"

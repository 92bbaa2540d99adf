"""Grading of mathematical answers; the worker processes are real."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.envs import grading
from agentrl.envs.grading import grade, grade_response, last_boxed, normalize


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
        (r"\boxed{7} and { { { {" + "{" * 99, "7"),  # braces that stay open elsewhere do not spoil a box
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),  # an escaped brace is a character
        (r"\boxed{1 \\{2}}", r"1 \\{2}"),  # after a line break it is a brace
        (r"\boxed{a \boxed{b} c}", "b"),
        (r"} } \boxed {3} }", "3"),
        (r"\\boxed{4}", "4"),
    ],
)
def test_the_last_complete_box(text, content):
    span = last_boxed(text)
    assert (None if span is None else text[slice(*span)]) == content


def boxes(text):
    """(start, end) of every complete box, by walking from each marker on its own: slow, and independent."""
    for start in (m.end() for m in re.finditer(r"\\boxed ?\{", text)):
        depth, i = 1, start
        while i < len(text) and depth:
            if text[i] == "\\" and text[i + 1 : i + 2] in ("{", "}"):
                i += 1
            else:
                depth += {"{": 1, "}": -1}.get(text[i], 0)
            i += 1
        if not depth:
            yield start, i - 1


@given(st.lists(st.sampled_from(["\\boxed{", "\\boxed {", "{", "}", "\\{", "\\}", "a", " "]), max_size=25).map("".join))
def test_the_last_box_is_the_last_of_all_that_are_complete(text):
    assert last_boxed(text) == max(boxes(text), default=None)


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


BOMBS = {
    "fractions": "\\frac{1}{" * 180 + "2" + "}" * 180,
    "numerators": "\\frac{" * 150 + "1" + "}{2}" * 150,
    "roots": "\\sqrt{" * 200 + "2" + "}" * 200,
    "braces": "{" * 900 + "1" + "}" * 900,
    "brackets": "(" * 900 + "1" + ")" * 900,
    "Python powers": "9**9**9",
    "powers": "9^{9^{9^{9}}}",
    "decimal exponent": "1e1000000000",
    "factorial": "(10^8)!",
    "binomial": "\\binom{10^9}{10^8}",
    "sum": "\\sum_{n=1}^{10^9} n^{-3}",
    "openers": "{" * 1500,
    "closers": "}" * 1500,
    "division by zero": "\\frac{1}{0}",
    "code": "__import__('os')._exit(3)",
}


@pytest.mark.parametrize("answer", BOMBS.values(), ids=BOMBS)
def test_bombs_are_wrong_within_the_deadline(answer):
    assert len(answer) <= grading.MAX_ANSWER_CHARACTERS  # so a worker sees it
    grading._pool()
    start = time.perf_counter()
    result = grade(answer, ["3"], deadline_s=1.0)
    assert not result.correct and result.method in ("math-verify", "deadline", "error")
    assert time.perf_counter() - start < 30  # the deadline, the end of a worker that does not listen, a loaded machine


def dies(answer, golden_answers):
    os.kill(os.getpid(), signal.SIGKILL)


def dies_once(answer, golden_answers):
    """`answer` is a file that says whether it has happened."""
    if not os.path.exists(answer):
        open(answer, "w").close()
        dies(answer, golden_answers)
    return True


def test_a_worker_killed_from_outside_costs_no_answer_and_one_that_the_answer_kills_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr(grading, "_verify", dies_once)
    assert grade(str(tmp_path / "killed"), ["x"]) == grading.Grade(True, "math-verify")
    monkeypatch.setattr(grading, "_verify", dies)
    assert grade("1/2", ["0.5"]) == grading.Grade(False, "error")
    monkeypatch.undo()
    assert grade("1/2", ["0.5"]).correct


def test_a_pool_that_has_broken_is_made_anew():
    grading._pool().stop()
    assert grade("1/2", ["0.5"]) == grading.Grade(True, "math-verify")


def test_a_whole_response_is_graded_by_its_last_box():
    assert grade_response(r"\boxed{1}? No: \boxed{\frac{2}{4}}.", ["0.5"]).correct
    assert grade_response("it is 0.5", ["0.5"]) == grading.Grade(False, "none")


def test_workers_that_cannot_start_are_a_tool_failure_and_no_wrong_answer(tmp_path):
    script = tmp_path / "unguarded.py"  # each worker runs it again, and cannot start workers of its own
    script.write_text("from agentrl.envs.grading import grade\nprint(grade('1/2', ['0.5']))\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "Grade(" not in done.stdout
    assert "ToolFailure: answers cannot be graded" in done.stderr and '`if __name__ == "__main__":`' in done.stderr


def test_normalize_removes_only_layout():
    assert normalize(r" \left( 1 , 2 \right) . ") == "(1,2)"
    assert normalize(r"\text{ cm}") == "{cm}"

"""Grading of mathematical answers; the worker processes are real."""

import asyncio
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
from agentrl.envs.answers import worker
from agentrl.envs.answers.corpus import attacks, pairs
from agentrl.envs.grading import agrade, grade, grade_response, last_boxed


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{42}", "42"),
        (r"\boxed{1} no, \boxed{\frac{1}{2}} it is", r"\frac{1}{2}"),
        (r"\boxed{unclosed", None),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        ("nothing", None),
        (r"\boxed{}", ""),
        (r"{ { { { \boxed{7} and { { { {" + "{" * 99, "7"),  # braces that stay open elsewhere do not spoil a box
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),  # an escaped brace is a character
        (r"\boxed{1 \\{2}}", r"1 \\{2}"),  # after a line break it is a brace
        (r"\boxed{a \boxed{b} c}", "b"),
        (r"} } \boxed {3} }", "3"),
        (r"\\boxed{4}", "4"),
        (r"\fbox{5}", "5"),
        (r"\boxed{4} that is \fbox{5}", "5"),
        (r"so \boxed 5.", "5"),
        (r"$x = \boxed 17$, as wanted", "17"),
        (r"\boxed5", "5"),
        (r"\boxed \frac{1}{2} holds", r"\frac{1}{2}"),
        (r"{\boxed 5}", "5"),
        (r"\[\boxed -3\]", "-3"),
        (r"\boxedanswer{5} \fboxrule", None),  # other commands
        (r"\boxed", None),
        (r"\boxed . ", None),
    ],
)
def test_the_last_box(text, content):
    span = last_boxed(text)
    assert (None if span is None else text[slice(*span)]) == content


@pytest.mark.parametrize("end", [r"\boxed{4", r"\boxed{", r"\boxed{unclosed {", r"\fbox{\frac{1}{2}", r"\boxed "])
def test_a_last_box_that_is_cut_off_is_no_answer_whatever_stood_before(end):
    assert last_boxed(r"\boxed{a} is not the end: " + end) is None
    assert grade_response(r"\boxed{42}, or rather " + end, ["42"]) == grading.Grade(False, "none")


def box(text):
    """Content of the box that begins last, by walking from its marker character by character: independent."""
    starts = [m.end() for m in re.finditer(r"\\f?box(ed)? ?\{", text)]
    if not starts:
        return None
    i, depth = starts[-1], 1
    while i < len(text):
        if text[i] == "\\" and text[i + 1 : i + 2] in ("{", "}"):
            i += 1
        else:
            depth += {"{": 1, "}": -1}.get(text[i], 0)
        if not depth:
            return starts[-1], i
        i += 1
    return None


PIECES = ["\\boxed{", "\\boxed {", "\\fbox{", "{", "}", "\\{", "\\}", "a", " "]


@given(st.lists(st.sampled_from(PIECES), max_size=25).map("".join))
def test_the_box_that_begins_last_counts_if_it_is_complete(text):
    assert last_boxed(text) == box(text)


LONG = ["\\boxed{" * 150_000, "\\boxed " * 150_000, "\\boxed" + "{" * 10**6, "\\boxed " + "1" * 10**6]


@pytest.mark.parametrize("text", LONG, ids=range(4))
def test_a_megabyte_of_boxes_is_quick(text):
    began = time.process_time()
    last_boxed(text)
    assert time.process_time() - began < 5  # work that grows with the square would not end in hours


@pytest.mark.parametrize(
    ("answer", "golden", "correct", "method"),
    [
        ("42", ["42"], True, "string"),
        (" $42$. ", ["42"], True, "string"),
        ("042", ["42"], True, "number"),
        ("41", ["42"], False, "number"),
        ("7", ["6", "7"], True, "string"),
        ("8", ["6", "7"], False, "number"),
        (r"\frac{1}{2}", ["0.5"], True, "number"),
        (r"\geq 42", ["42"], False, "form"),
        (r"\frac{\sqrt{4}}{4}", [r"\frac{1}{2}"], True, "math-verify"),
        ("x+1", ["1+x"], True, "math-verify"),
        ("x+2", ["1+x"], False, "math-verify"),
        ("x+1", ["7", "1+x"], True, "math-verify"),
        (r"\frac{1}{", [r"\frac{1}{2}"], False, "math-verify"),
        ("", ["42"], False, "none"),
        (None, ["42"], False, "none"),
    ],
)
def test_grades(answer, golden, correct, method):
    result = grade(answer, golden)
    assert (result.correct, result.method) == (correct, method)
    assert asyncio.run(agrade(answer, golden)) == result


@pytest.mark.parametrize("pair", [p for p in pairs() if p.equal], ids=lambda p: f"{p.gold} = {p.answer}"[:60])
def test_equal_answers_are_accepted(pair):
    assert grade(pair.answer, [pair.gold]).correct


@pytest.mark.parametrize("pair", [p for p in pairs() if not p.equal], ids=lambda p: f"{p.gold} != {p.answer}"[:60])
def test_unequal_answers_are_refused(pair):
    assert not grade(pair.answer, [pair.gold]).correct


@pytest.mark.parametrize("attack", [a for a in attacks() if a.kind != "time"], ids=lambda a: ascii(a.response)[:60])
def test_attacks_earn_nothing(attack):
    assert not grade_response(attack.response, [attack.gold]).correct


def test_attacks_on_time_are_wrong_and_soon_over():
    """All at once, as a batch brings them: what a worker must compute ends at the deadline."""
    time_attacks = [a for a in attacks() if a.kind == "time"]
    assert len(time_attacks) >= 20

    async def all_of_them():
        boxes = [a.response[slice(*last_boxed(a.response))] for a in time_attacks]
        return await asyncio.gather(*(agrade(b, [a.gold], deadline_s=0.5) for a, b in zip(time_attacks, boxes)))

    began = time.perf_counter()
    grades = asyncio.run(all_of_them())
    assert not any(g.correct for g in grades)
    assert time.perf_counter() - began < 120


def test_a_hundred_kilobytes_of_latex_are_wrong_at_once():
    assert grade(r"\frac{1}{" * 10_000, ["1"]).method == "too long"  # so no worker has seen it


SLOW = r"\binom{10^9-1}{10^8}"  # no rule about size sees it


def test_a_computation_without_end_misses_the_deadline_and_the_next_answer_is_graded():
    slow = grade(SLOW, ["x"], deadline_s=1.0)
    assert (slow.correct, slow.method) == (False, "deadline")
    assert grade("x+y", ["y+x"]) == grading.Grade(True, "math-verify")


def spin(deadline_s):
    """A long computation in Python, under the worker's own deadline."""
    algebra, worker.algebra = worker.algebra, lambda *_: [None for _ in iter(int, 1)]
    try:
        return worker.judge("x+1", ["1+x"], None, deadline_s)
    finally:
        worker.algebra = algebra  # this process goes on


@pytest.mark.slow
def test_the_deadline_is_cpu_time_and_a_worker_that_hears_it_goes_on(monkeypatch):
    pool = grading._pool()
    began = time.perf_counter()
    assert pool.schedule(spin, args=[0.3], timeout=60).result() is None
    assert time.perf_counter() - began >= 0.3
    assert pool.schedule(abs, args=[-3], timeout=20).result() == 3
    monkeypatch.setattr(grading, "_verify", rests)
    assert grade("x+1", ["1+x+0"], deadline_s=2.0).correct  # 2.2 s and more, but not of CPU


def rests(answer, golden_answers, tolerance, deadline_s):
    time.sleep(2.2)
    return worker.judge(answer, golden_answers, tolerance, deadline_s)


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
    assert not result.correct and result.method in ("math-verify", "deadline", "error", "form")
    assert time.perf_counter() - start < 30  # the deadline, the end of a worker that does not listen, a loaded machine


def dies(answer, golden_answers, tolerance, deadline_s):
    os.kill(os.getpid(), signal.SIGKILL)


def dies_once(answer, golden_answers, tolerance, deadline_s):
    """`answer` is a file that says whether it has happened."""
    if not os.path.exists(answer):
        open(answer, "w").close()
        dies(answer, golden_answers, tolerance, deadline_s)
    return True


@pytest.mark.slow
def test_a_worker_killed_from_outside_costs_no_answer_and_one_that_the_answer_kills_is_wrong(tmp_path, monkeypatch):
    grading._pool()  # what it tries first is not to be killed
    monkeypatch.setattr(grading, "_verify", dies_once)
    assert grade(str(tmp_path / "killed"), ["x"]) == grading.Grade(True, "math-verify")
    monkeypatch.setattr(grading, "_verify", dies)
    assert grade("x+a", ["a+x"]) == grading.Grade(False, "error")
    monkeypatch.undo()
    assert grade("x+a", ["a+x"]).correct  # a killed worker is no verdict to remember


def test_a_pool_that_has_broken_is_made_anew():
    grading._pool().stop()
    assert grade("x+b", ["b+x"]) == grading.Grade(True, "math-verify")


def test_equal_pairs_are_graded_once(monkeypatch):
    """The second of two equal pairs waits for the first one's verdict, and later ones have it at once."""
    pool, jobs = grading._pool(), []
    schedule = pool.schedule
    monkeypatch.setattr(pool, "schedule", lambda *a, **k: jobs.append(k["args"]) or schedule(*a, **k))

    async def twenty():
        return await asyncio.gather(*(agrade("c+d+e", ["e+d+c"]) for _ in range(20)))

    assert {g.correct for g in asyncio.run(twenty())} == {True}
    assert grade("c+d+e", ["e+d+c"]).correct and len(jobs) == 1
    assert not grade("c+d+e", ["e+d+f"]).correct and len(jobs) == 2
    assert grade("c+d+e", ["e+d+c"], deadline_s=4.0).correct and len(jobs) == 3  # with more time it may end otherwise


def test_who_gives_up_waiting_does_not_take_the_verdict_from_others():
    async def both():
        first = asyncio.create_task(agrade("p+q+r", ["r+q+p"]))
        await asyncio.sleep(0.05)
        second = asyncio.create_task(agrade("p+q+r", ["r+q+p"]))
        await asyncio.sleep(0.05)
        first.cancel()
        return await second

    assert asyncio.run(both()).correct


def test_a_whole_response_is_graded_by_its_last_box():
    assert grade_response(r"\boxed{1}? No: \boxed{\frac{2}{4}}.", ["0.5"]).correct
    assert grade_response("it is 0.5", ["0.5"]) == grading.Grade(False, "none")


def test_workers_that_cannot_start_are_a_tool_failure_and_no_wrong_answer(tmp_path):
    script = tmp_path / "unguarded.py"  # each worker runs it again, and cannot start workers of its own
    script.write_text("from agentrl.envs.grading import grade\nprint(grade('x+1', ['1+x']))\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "Grade(" not in done.stdout
    assert "ToolFailure: answers cannot be graded" in done.stderr and '`if __name__ == "__main__":`' in done.stderr

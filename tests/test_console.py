"""What a terminal shows, and what a file or a pipe gets instead."""

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl import console
from agentrl.console import Progress, color, duration, print_json, printable, table
from agentrl.types import StepRecord


class Terminal(io.StringIO):
    def isatty(self):
        return True


RECORD = StepRecord(4, {"reward": 0.5, "logprob_correct": -0.25, "tokens_per_s": 12345.6, "t_step_s": 2.0})


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")


def test_colours_only_on_a_terminal_that_wants_them(monkeypatch):
    assert color("x", "red", Terminal()) == "\x1b[31mx\x1b[0m"
    assert color("x", "red", io.StringIO()) == "x"
    monkeypatch.setenv("TERM", "dumb")
    assert color("x", "red", Terminal()) == "x"
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert color("x", "red", Terminal()) == "x"


@given(st.text())
def test_rollout_text_cannot_drive_the_terminal(text):
    shown = printable(text)
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert shown == text or not all(c.isprintable() or c == "\n" for c in text)


def test_control_characters_are_shown():
    assert printable("a\x1b[2Jb\r\u202e\ud800\n") == "a\\x1b[2Jb\\r\\u202e\\ud800\n"


def test_table():
    text = table([["name", "em", "what"], ["one", "0.5", "a"], ["three", "12.25", "bcd"]])
    assert text.splitlines() == ["name      em  what", "─" * 18, "one      0.5  a", "three  12.25  bcd"]
    assert table([]) == "" and table([["a"], ["b", "c"]]).splitlines()[-1] == "b  c"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1:00"), (61, "1:01"), (3599.7, "1:00:00"), (7383, "2:03:03")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_the_line_on_a_terminal_is_overwritten_and_ended():
    stream = Terminal()
    progress = Progress(stream=stream)
    progress.step(RECORD, 10)
    progress.note("next")
    progress.say("stays")
    progress.close()
    empty, first, second = stream.getvalue().split("\r\x1b[2K")
    assert first.startswith("step 5/10  ██████████░░░░░░░░░░  reward 0.50  log π⁺ -0.250  12,346 tok/s  ETA 10 s")
    assert (empty, second) == ("", "next\nstays\n")


def test_elsewhere_lines_come_now_and_then_and_at_the_end(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    progress = Progress(stream=stream)
    for step in range(30):
        progress.step(StepRecord(step, {"t_step_s": 1.0}), 30)
        now[0] += 1.0
    progress.close()
    lines = stream.getvalue().splitlines()
    assert lines == ["step 1/30  ETA 29 s", "step 11/30  ETA 19 s", "step 21/30  ETA 9 s", "step 30/30  ETA 0 s"]
    assert "\x1b" not in stream.getvalue() and "\r" not in stream.getvalue()


def test_what_was_not_measured_is_not_shown():
    stream = io.StringIO()
    Progress(stream=stream).step(StepRecord(0, {"t_step_s": 1.0, "entropy": 0.5}), 1)
    assert stream.getvalue() == "step 1/1  entropy 0.50  ETA 0 s\n"


def test_quiet_says_nothing():
    stream = Terminal()
    progress = Progress(quiet=True, stream=stream)
    progress.step(RECORD, 5)
    progress.note("a")
    progress.say("b")
    progress.close()
    assert stream.getvalue() == ""


def test_json_is_one_strict_line(capsys):
    print_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": "x\ny"})
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert json.loads(out, parse_constant=pytest.fail) == {"a": None, "b": [None, 1.5], "c": "x\ny"}

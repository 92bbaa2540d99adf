"""The command itself in a process of its own, with a receiver on this machine: who is told what, and the exit codes."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from agentrl.runs.log import RunLog
from tests.monitors.test_follow import ROWS, by_rename, expected, rows_of, write_lines
from tests.small import small_config

QUICK = ("--every", "0.05", "--settle", "0.3")


class Process:
    """`agentrl watch ...`, its lines as they come."""

    def __init__(self, *arguments, **environment):
        command = [sys.executable, "-m", "agentrl", "watch", *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment
        )
        self.out, self.err = [], []
        self.threads = []
        for stream, lines in ((self.process.stdout, self.out), (self.process.stderr, self.err)):
            thread = threading.Thread(target=lambda s=stream, n=lines: n.extend(s), daemon=True)
            thread.start()
            self.threads.append(thread)

    def until(self, condition, seconds=30):
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, "".join(self.err)
            assert time.monotonic() < end, ("".join(self.out), "".join(self.err))
            time.sleep(0.02)

    def followed(self):
        """Until what was there is read."""
        self.until(lambda: any("following it" in line for line in self.err))

    def end(self):
        """Ctrl-C; the exit code."""
        self.process.terminate()
        return self.finish()

    def finish(self):
        code = self.process.wait(40)
        for thread in self.threads:
            thread.join(5)
        return code

    def rules(self):
        return [json.loads(line)["id"] for line in list(self.out)]


@contextlib.contextmanager
def watching(*arguments, **environment):
    process = Process(*arguments, **environment)
    try:
        yield process
    finally:
        process.process.kill()
        process.finish()


@pytest.mark.slow
def test_rewrites_resumes_and_restarts_post_each_alarm_once(tmp_path, receiver):
    """60 rewrites, 5 resumes, 3 restarts of the command; the receiver fails in half of its calls."""
    receiver.answer = lambda n, body: (503 if n % 2 == 0 else 200, {}, "")
    path = tmp_path / "m.jsonl"
    write_lines(path, ROWS[:1])
    arguments = (path, "--json", "--webhook", receiver.url, *QUICK)
    at = 1
    for session in range(4):
        with watching(*arguments) as process:
            process.followed()
            for _ in range(15):
                at += 1
                by_rename(path, ROWS[:at])
                time.sleep(0.06)
            for _ in range(2 if session else 0):  # cut back, and made again
                by_rename(path, ROWS[: at - 3])
                time.sleep(0.06)
                by_rename(path, ROWS[:at])
                time.sleep(0.06)
            wanted = [a for a in expected(ROWS[: at - 1], tmp_path)]
            process.until(lambda w=wanted: len(receiver.got) >= len(w))
            assert process.end() == 0, process.err
            assert len(process.rules()) == len(set(process.rules()))
    assert sorted(b["id"] for b in receiver.got) == sorted(expected(ROWS, tmp_path))
    assert {b["source"] for b in receiver.got} == {str(path)}


def test_the_past_of_a_first_watch_is_shown_and_not_posted(tmp_path, receiver):
    path = tmp_path / "m.jsonl"
    write_lines(path, ROWS[:46])  # the last step has an alarm of its own, and is complete when the next one comes
    with watching(path, "--json", "--webhook", receiver.url, *QUICK) as process:
        process.followed()
        write_lines(path, ROWS[46:50], "a")
        process.until(lambda: receiver.got)
        assert process.end() == 0
    assert receiver.got[0]["rule"] == "non_finite" and receiver.got[0]["level"] == "critical"
    assert "non_finite-000045-warn" in process.rules()


def test_once_posts_what_nobody_was_told(tmp_path, receiver):
    path = tmp_path / "m.jsonl"
    write_lines(path, ROWS)
    for _ in range(2):
        with watching(path, "--once", "--json", "--webhook", receiver.url) as process:
            assert process.finish() == 0
        assert process.rules() == expected(ROWS, tmp_path) == [b["id"] for b in receiver.got]


@pytest.mark.slow
@pytest.mark.parametrize("status", [400, 0])
def test_what_is_not_delivered_is_counted_and_changes_the_exit_code(tmp_path, receiver, status):
    receiver.answer = lambda n, body: (status if body["rule"] == "non_finite" else 200, {}, "no_text")
    path = tmp_path / "m.jsonl"
    write_lines(path, ROWS)
    with watching(path, "--once", "--json", "--webhook", receiver.url) as process:
        assert process.finish() == 1
    wanted = expected(ROWS, tmp_path)
    missing = sum(i.startswith("non_finite") for i in wanted)
    said = "".join(process.err)
    assert f"webhook: {missing} of {len(wanted)} alarms not delivered" in said
    assert ("it answered 400: no_text" if status else "RemoteProtocolError") in said
    receiver.answer = lambda n, body: (200, {}, "")
    with watching(path, "--once", "--json", "--webhook", receiver.url) as process:
        assert process.finish() == 0
    assert sorted(b["id"] for b in receiver.got) == sorted(wanted)  # the rest, and nothing twice


def test_a_log_that_is_gone_or_stalls_is_told(tmp_path, receiver):
    path = tmp_path / "m.jsonl"
    write_lines(path, ROWS[:8])
    with watching(path, "--json", "--webhook", receiver.url, "--stall", "0.6", *QUICK) as process:
        process.until(lambda: receiver.got)
        write_lines(path, ROWS[8:9], "a")
        process.until(lambda: any("grows again" in line for line in process.err))
        path.unlink()
        process.until(lambda: len(receiver.got) == 2)
        assert process.end() == 1
    assert [b["rule"] for b in receiver.got] == ["stalled", "log_gone"]
    assert any("is gone: what came after step 8 was not read" in line for line in process.err)


@pytest.mark.slow
def test_a_run_directory_whose_run_has_failed(tmp_path, receiver):
    with RunLog.create(tmp_path, "mine", small_config(tmp_path)) as log:
        write_lines(log.path / "metrics.jsonl", rows_of(5))
        with watching(log.path, "--json", "--webhook", receiver.url, *QUICK) as process:
            process.followed()
            log.set_status("failed", message="OutOfMemoryError: 80 GiB")
            process.until(lambda: receiver.got)
            assert process.end() == 0
    [got] = receiver.got
    assert (got["rule"], got["run"]) == ("run_failed", "mine") and "OutOfMemoryError" in got["message"]


@pytest.mark.parametrize("value", ["-1", "nan", "0", "inf", "soon", "1e99"])
def test_times_that_are_none(tmp_path, value):
    with watching(tmp_path, "--every", value) as process:
        assert process.finish() == 2
    assert "--every" in "".join(process.err) and "Traceback" not in "".join(process.err)


def test_a_full_standard_output_is_an_error(tmp_path):
    path = tmp_path / "m.jsonl"
    write_lines(path, ROWS)
    for flags in ([], ["--json"]):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [sys.executable, "-m", "agentrl", "watch", str(path), "--once", *flags],
                stdout=full, stderr=subprocess.PIPE, text=True, timeout=60,
            )  # fmt: skip
        assert done.returncode == 2 and "Traceback" not in done.stderr and "No space left" in done.stderr


def test_colours_are_off_where_nobody_wants_them(tmp_path):
    import pty

    path = tmp_path / "m.jsonl"
    write_lines(path, ROWS)

    def seen(**environment):
        leader, follower = pty.openpty()
        command = [sys.executable, "-m", "agentrl", "watch", str(path), "--once"]
        subprocess.run(command, stdout=follower, stderr=subprocess.DEVNULL, env=os.environ | environment, timeout=60)
        os.close(follower)
        data = b""
        with contextlib.suppress(OSError):
            while part := os.read(leader, 4096):
                data += part
        os.close(leader)
        return data

    assert b"\x1b[" in seen(TERM="xterm", NO_COLOR="")
    assert b"\x1b[" not in seen(TERM="xterm", NO_COLOR="1") and b"\x1b[" not in seen(TERM="dumb", NO_COLOR="")


def test_a_pipe_a_circle_and_what_may_not_be_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for name, word in (("pipe", "is a pipe"), ("a", "leads to nothing, or in a circle"), ("none", "does not exist")):
        with watching(tmp_path / name, "--once") as process:
            assert process.finish() == 2
        said = "".join(process.err)
        assert word in said and "Traceback" not in said


def test_a_folder_without_a_right_to_read(tmp_path, monkeypatch):
    from pathlib import Path

    from agentrl.errors import RunError
    from agentrl.monitors.watcher import watch

    def refused(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refused)  # the tests may run as root, whom nothing refuses
    with pytest.raises(RunError, match="cannot be read: Permission denied"):
        watch(str(tmp_path), columns=[], once=True)

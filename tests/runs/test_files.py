"""Files are whole or as they were: after a kill, on a full disk, with two writers."""

import datetime
import decimal
import errno
import json
import math
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agentrl.errors import RunError
from agentrl.runs import files as storage
from agentrl.runs.files import (
    Holder,
    RunLock,
    append_line,
    atomic_write,
    finite,
    lock_holder,
    parse_line,
    read_json,
    read_last_lines,
    read_lines,
    strict_json,
    writing,
)

# ------------------------------------------------------------------------------------------------------------- writing


def test_atomic_write_replaces_and_leaves_nothing_behind(tmp_path):
    atomic_write(tmp_path / "a", "one")
    atomic_write(tmp_path / "a", b"two")
    assert (tmp_path / "a").read_bytes() == b"two" and [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_content(tmp_path, monkeypatch, fails):
    atomic_write(tmp_path / "a", "old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, fails, full)
    with pytest.raises(RunError, match=r"a: the disk is full \([\d,]+ MiB free\).*before is intact: free some space"):
        atomic_write(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_line_that_does_not_fit_is_taken_back(tmp_path, monkeypatch):
    file = tmp_path / "m.jsonl"
    append_line(file, {"step": 0})
    write = os.write
    written = []

    def nearly_full(fd, data):
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(write(fd, data[:7]))  # the disk takes seven bytes
        return written[0]

    monkeypatch.setattr(os, "write", nearly_full)
    with pytest.raises(RunError, match="the disk is full"):
        append_line(file, {"step": 1, "text": "x" * 100})
    monkeypatch.undo()
    assert written == [7] and file.read_text() == '{"step": 0}\n'
    append_line(file, {"step": 1})
    assert read_lines(file) == [{"step": 0}, {"step": 1}]


def test_after_a_torn_line_the_next_begins_a_new_one(tmp_path):
    file = tmp_path / "m.jsonl"
    file.write_bytes(b'{"step": 0}\n{"step": 1, "rew')
    append_line(file, {"step": 2})
    assert read_lines(file) == [{"step": 0}, {"step": 2}]


def test_appends_of_several_threads_do_not_mix(tmp_path):
    file = tmp_path / "m.jsonl"

    def work(k):
        for i in range(50):
            append_line(file, {"k": k, "i": i, "pad": "x" * 500})

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    rows = read_lines(file)
    assert len(rows) == 200
    assert all([r["i"] for r in rows if r["k"] == k] == list(range(50)) for k in range(4))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk is full for this user: the quota is used up"),
        (OSError(errno.EFBIG, "File too large"), "larger than is allowed here .*ulimit -f.*before is intact"),
        (OSError(errno.ENOSPC, "Auf dem Gerät ist kein Speicherplatz mehr"), "the disk is full"),
        (RuntimeError("I/O error: Pas assez d'espace (os error 28)"), "the disk is full"),  # safetensors
        (ValueError("IoError: quota (os error 122)"), "the quota is used up"),  # tantivy
        (OSError(errno.EROFS, "Read-only file system"), "Choose a folder you may write to"),
        (PermissionError(errno.EACCES, "Permission denied"), "--set log.runs_dir"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
    ],
)
def test_what_the_file_system_refuses_has_a_remedy(tmp_path, error, message):
    with pytest.raises(RunError, match=message), writing(tmp_path / "not" / "there"):
        raise error


def test_a_bug_is_not_taken_for_a_full_disk(tmp_path):
    with pytest.raises(KeyError), writing(tmp_path):
        raise KeyError("x")
    with pytest.raises(RuntimeError, match="shape mismatch"), writing(tmp_path):
        raise RuntimeError("shape mismatch")  # the disk is asked, and takes what is written


def test_the_cause_tells_the_kind_too(tmp_path):
    with pytest.raises(RunError, match="the quota is used up"), writing(tmp_path):
        try:
            raise OSError(errno.EDQUOT, "x")
        except OSError as error:
            raise ValueError("the tokenizer cannot be saved") from error


FILL = """
import resource, signal, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from agentrl.errors import RunError
from agentrl.runs.files import append_line, atomic_write, writing
out, many = Path(sys.argv[1]), int(sys.argv[2])
if many:
    resource.setrlimit(resource.RLIMIT_FSIZE, (many, many))
big = torch.zeros(1 << 20)
def save():
    with writing(out): save_file({"a": big}, str(out / "a.safetensors"))
def old():
    with writing(out): torch.save(big, str(out / "a.pt"))
def whole():
    atomic_write(out / "b", bytes(4 << 20))
def line():
    append_line(out / "c", {"x": "x" * (4 << 20)})
for act in (save, old, whole, line):
    try:
        act()
        print("no error")
    except RunError as error:
        print(error)
"""


def fill(folder, limit):
    done = subprocess.run([sys.executable, "-c", FILL, folder, str(limit)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_a_file_that_is_too_large_really(tmp_path):
    """The kernel refuses files of more than 100 kB: what Python, safetensors and torch make of that is one kind."""
    lines = fill(tmp_path, 100_000)
    assert len(lines) == 4 and all("larger than is allowed here" in line for line in lines), lines


@pytest.mark.slow
def test_a_disk_that_is_really_full(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk]).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        lines = fill(disk, 0)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
    assert len(lines) == 4 and all("the disk is full (" in line for line in lines), lines


# ---------------------------------------------------------------------------------------------------------------- JSON

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(JSON)
def test_strict_json_is_read_by_any_parser(value):
    text = strict_json(value)
    assert "\n" not in text
    back = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert back == finite(value)


def test_numbers_of_other_libraries():
    value = {"a": np.float32(0.5), "b": torch.tensor([1, 2]), "c": {3, 1}, "d": Path("x"), "e": (np.nan, np.int64(2))}
    assert json.loads(strict_json(value)) == {"a": 0.5, "b": [1, 2], "c": [1, 3], "d": "x", "e": [None, 2]}
    assert json.loads(strict_json({"a": torch.tensor(math.inf), "b": math.inf})) == {"a": None, "b": None}


class Odd:
    """Its repr would hold a memory address, and its tolist is somebody else's."""

    def tolist(self):
        raise ValueError("no")


class Silent:
    def __str__(self):
        raise ValueError("no")


def test_what_json_has_no_form_for_becomes_text():
    """Columns of Parquet files and an environment's info hold such things; a row is never refused for them."""
    when = datetime.datetime(2024, 5, 6, 7, 8, tzinfo=datetime.UTC)
    value = {
        "when": when, "day": when.date(), "time": datetime.time(7, 8), "took": datetime.timedelta(seconds=90),
        "price": decimal.Decimal("1.10"), "image": b"\x89PNG", "odd": Odd(), "silent": Silent(), "object": object(),
        "mixed": {1, "a", None}, "complex": 1j, "stamp": np.datetime64("2024-05-06"), "call": len,
        "wide": np.array([when.date()], dtype=object),
    }  # fmt: skip
    assert json.loads(strict_json(value)) == {
        "when": "2024-05-06T07:08:00+00:00", "day": "2024-05-06", "time": "07:08:00", "took": "0:01:30",
        "price": "1.10", "image": "<4 bytes>", "odd": "<tests.runs.test_files.Odd object>", "silent": "<Silent>",
        "object": "<object object>", "mixed": ["1", "None", "a"], "complex": "1j", "stamp": "2024-05-06",
        "call": "<built-in function len>", "wide": ["2024-05-06"],
    }  # fmt: skip


def test_keys_circles_and_huge_numbers_are_no_reason_to_refuse():
    circle = {"a": 1}
    circle["self"] = circle
    row = json.loads(strict_json({(1, 2): "x", "c": circle, "n": 10**5000, None: 0}))
    assert (
        row["(1, 2)"] == "x" and row["c"]["self"]["self"]["a"] == 1 and row["n"].startswith("0x") and row["None"] == 0
    )
    assert strict_json(circle).count('"a": 1') < 100


ODD = (
    st.datetimes()
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.decimals()
    | st.binary(max_size=4)
    | st.complex_numbers()
)
KEYS = st.text(max_size=3) | st.integers() | st.none() | st.tuples(st.integers()) | st.dates() | st.floats()


@given(
    st.recursive(
        ODD | st.floats() | st.frozensets(st.integers() | st.text(max_size=2), max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3) | st.tuples(inner, inner),
        max_leaves=8,
    )
)
def test_anything_becomes_one_line_of_strict_json(value):
    text = strict_json({"info": value})
    assert "\n" not in text
    json.loads(text, parse_constant=lambda name: pytest.fail(name))


LINES = st.lists(st.dictionaries(st.sampled_from("abc"), st.text(max_size=300), max_size=2), max_size=30)


@given(LINES, st.integers(0, 40), st.binary(max_size=20))
def test_the_last_lines_are_the_last_of_all_lines(tmp_path_factory, rows, n, torn):
    file = tmp_path_factory.getbasetemp() / "lines.jsonl"
    file.write_bytes(b"".join(json.dumps(r).encode() + b"\n" for r in rows) + torn)
    whole = read_lines(file)
    assert whole[: len(rows)] == rows
    assert read_last_lines(file, n) == (whole[-n:] if n else [])


def test_the_last_lines_of_a_long_file(tmp_path):
    rows = [{"i": i, "pad": "x" * (i % 700)} for i in range(500)]
    (tmp_path / "f").write_text("".join(json.dumps(r) + "\n" for r in rows))
    for n in (1, 3, 40, 499, 500, 1000):
        assert read_last_lines(tmp_path / "f", n) == rows[-n:]
    assert read_last_lines(tmp_path / "none", 3) == read_lines(tmp_path / "none") == []


def test_lines_that_are_no_objects_are_passed_over(tmp_path):
    (tmp_path / "f").write_bytes(b'{"a": 1}\n\n[1]\nnull\n{"b"\n\xff\n{"c": 2}')
    assert read_lines(tmp_path / "f") == [{"a": 1}, {"c": 2}]
    assert parse_line(b"[" * 100_000) is None
    (tmp_path / "j").write_text("[1]")
    assert read_json(tmp_path / "j") == read_json(tmp_path / "none") == {}


# ---------------------------------------------------------------------------------------------------------------- lock


def test_one_writer_at_a_time(tmp_path):
    first, second = RunLock(tmp_path / "run.lock"), RunLock(tmp_path / "run.lock")
    first.acquire("runs/a")
    with pytest.raises(RunError, match=f"runs/a is in use by process {os.getpid()} on .*delete .*run.lock"):
        second.acquire("runs/a")
    second.release()  # does not hold it, so the other keeps it
    assert lock_holder(first.path) == Holder.this_process()
    first.release()
    assert lock_holder(first.path) is None
    second.acquire("runs/a")
    assert second.held


def test_a_killed_process_leaves_no_lock(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from agentrl.runs.files import RunLock\n"
        "RunLock(Path(sys.argv[1])).acquire('x'); print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run.lock")], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(RunError, match=f"in use by process {process.pid}"):
            RunLock(tmp_path / "run.lock").acquire("x")
    finally:
        process.kill()
        process.communicate()
    RunLock(tmp_path / "run.lock").acquire("x")


def test_who_counts_as_alive(tmp_path):
    me = Holder.this_process()
    assert me.alive()
    assert not Holder(me.pid, me.host, "1").alive()  # another process had this id before
    assert Holder(me.pid, me.host, None).alive()
    assert Holder(2**22 + 1, "another-" + socket.gethostname(), None).alive()  # nobody here can tell
    assert not Holder(2**22 + 1, me.host, None).alive()  # beyond the largest process id
    for text in ("", "{}", "[]", '{"pid": "x", "host": "h", "started": null}', "\x00"):
        (tmp_path / "lock").write_text(text)
        assert lock_holder(tmp_path / "lock") is None


def test_two_that_start_at_once_are_told_apart(tmp_path):
    results = []

    def start():
        try:
            storage.RunLock(tmp_path / "run.lock").acquire("x")
            results.append("got it")
        except RunError:
            results.append("in use")

    threads = [threading.Thread(target=start) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(results) == ["got it"] + ["in use"] * 7


def test_only_a_missing_fsync_is_forgiven(tmp_path, monkeypatch):
    numbers = []

    def refuse(fd):
        raise OSError(numbers[0], "refused")

    monkeypatch.setattr(os, "fsync", refuse)
    numbers[:] = [errno.EINVAL]
    storage.fsync_path(tmp_path)
    numbers[:] = [errno.EIO]
    with pytest.raises(OSError, match="refused"):
        storage.fsync_path(tmp_path)

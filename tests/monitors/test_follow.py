"""A log that is written anew, cut, resumed, replaced, moved or deleted: each alarm is raised and posted once."""

import csv
import functools
import json
import math
import os
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.monitors import Monitor, follow
from agentrl.monitors.follow import Following
from agentrl.monitors.sources import open_source
from agentrl.monitors.told import Memory, Teller
from agentrl.monitors.watcher import Watcher, _other
from tests.monitors.runs import records


def stagnant(step, metrics):
    """Raises `collapse` at step 9 (the first judged), and `non_finite` at 45 and later."""
    metrics["clip_fraction"] = 0.07
    metrics["loss"] = math.nan if 45 <= step < 50 else 0.1
    metrics["reward"] = 0.5 + 0.01 * (step % 3)


def rows_of(n, seed=0, change=stagnant, start=0):
    return [{"step": r.step, **r.metrics} for r in records(n, change, seed, start)]


def write_lines(path, rows, mode="w"):
    with open(path, mode) as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)


def write_csv(path, rows, mode="w"):
    with open(path, mode, newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def by_rename(path, rows, write=write_lines):
    temporary = path.with_suffix(".tmp")
    write(temporary, rows)
    os.replace(temporary, path)


class Watch:
    """`agentrl watch` without the clock: `look` is one look at the file."""

    def __init__(self, path, memory=None):
        self.shown, self.posted, self.begun = [], [], 0
        self.log = Following(path, lambda newest: open_source(path, newest=newest))
        memory = Memory(memory) if memory else Memory()
        self.teller = Teller([self.shown.append], [self.posted.append], memory)
        self.watcher = Watcher(self.log, {}, Monitor(sinks=[self.teller]))
        other = functools.partial(_other, self.watcher, self.teller)

        def begin(run):
            self.begun += 1
            other(run)

        self.log.other = begin
        self.teller.past = True
        self.look()
        self.teller.past, self.teller.past_step = False, self.watcher.newest_step

    def look(self):
        return self.watcher.take()

    def end(self):
        self.look()
        self.watcher.settle()
        return [a.id for a in self.shown], [a.id for a in self.posted]


def expected(rows, tmp_path):
    """The alarms of a log that is only read."""
    path = tmp_path / "whole.jsonl"
    write_lines(path, rows)
    watch = Watch(path)
    return watch.end()[0]


ROWS = rows_of(60)


def test_there_is_something_to_raise(tmp_path):
    assert len(expected(ROWS, tmp_path)) >= 2


@pytest.mark.parametrize(("name", "write"), [("m.jsonl", write_lines), ("m.csv", write_csv)])
def test_sixty_rewrites_by_rename_raise_each_alarm_once(tmp_path, name, write):
    path = tmp_path / name
    write(path, ROWS[:1])
    watch = Watch(path)
    for n in range(2, 61):
        by_rename(path, ROWS[:n], write)
        assert watch.look() == 1  # one new row
    wanted = expected(ROWS, tmp_path)
    assert watch.end() == (wanted, wanted) and watch.begun == 1


def test_rewrites_in_place_and_in_pieces_raise_each_alarm_once(tmp_path):
    path = tmp_path / "m.jsonl"
    write_lines(path, ROWS[:5])
    watch = Watch(path)
    for n in range(6, 61):
        text = "".join(json.dumps(row) + "\n" for row in ROWS[:n])
        with open(path, "w") as out:
            for start in range(0, len(text), 1000):
                out.write(text[start : start + 1000])
                out.flush()
                watch.look()
    wanted = expected(ROWS, tmp_path)
    assert watch.end() == (wanted, wanted) and watch.begun == 1


def test_a_new_column_in_a_table_is_no_other_run(tmp_path):
    path = tmp_path / "m.csv"
    write_csv(path, ROWS[:20])
    watch = Watch(path)
    write_csv(path, [{**row, "val/score": "" if row["step"] < 20 else 0.5} for row in ROWS[:30]])
    watch.look()
    assert watch.begun == 1 and watch.watcher.steps >= 28


def test_a_log_that_keeps_only_its_last_rows(tmp_path):
    path = tmp_path / "m.jsonl"
    write_lines(path, ROWS[:30])
    watch = Watch(path)
    by_rename(path, ROWS[20:45])
    watch.look()
    by_rename(path, ROWS[40:])
    watch.look()
    wanted = expected(ROWS, tmp_path)
    assert watch.end()[0] == wanted and watch.begun == 1


def later(rows, at, seed):
    """The rows from `at` on, made again with other noise and another clock."""
    again = rows_of(60, seed)[at:]
    return [{**row, "t_step_s": 1.0 + seed} for row in again][: len(rows) - at]


def test_five_resumes_that_cut_the_log_back_raise_each_alarm_once(tmp_path):
    path = tmp_path / "m.jsonl"
    rows = ROWS[:30]
    write_lines(path, rows)
    watch = Watch(path)
    for resume in range(1, 6):
        rows = rows[: 20 + 2 * resume]
        by_rename(path, rows)  # as our own resume does
        watch.look()
        rows = rows + later(ROWS[: 30 + 5 * resume], len(rows), resume)
        by_rename(path, rows)
        watch.look()
    rows = rows + ROWS[len(rows) :]
    write_lines(path, rows)
    shown, posted = watch.end()
    assert len(set(shown)) == len(shown) and len(set(posted)) == len(posted)
    assert set(shown) >= set(expected(rows, tmp_path)) and watch.begun == 1
    assert "collapse-000009-warn" in shown and "collapse-000009-warn" not in posted  # it was there before


def test_resumes_in_a_log_that_only_grows_raise_each_alarm_once(tmp_path):
    path = tmp_path / "m.jsonl"
    write_lines(path, ROWS[:8])
    watch = Watch(path)
    kept = ROWS[:8]
    for resume in range(1, 6):
        back = len(kept) - 4
        new = later(ROWS[: len(kept) + 6], back, resume)
        write_lines(path, new, "a")
        kept = kept[:back] + new
        watch.look()
    write_lines(path, ROWS[len(kept) :], "a")
    kept += ROWS[len(kept) :]
    shown, posted = watch.end()
    assert shown == posted and len(set(shown)) == len(shown) and watch.begun == 1
    assert set(shown) >= set(expected(kept, tmp_path))  # judged as a run without the steps that were made again
    assert watch.watcher.steps == len(kept)


def test_three_restarts_post_what_came_up_in_between_and_nothing_twice(tmp_path):
    path, memory = tmp_path / "m.jsonl", tmp_path / "memory.json"
    write_lines(path, ROWS[:5])
    wanted, posted = expected(ROWS, tmp_path), []
    for n in (8, 20, 50, 60):  # the alarms come while nobody watches, too
        watch = Watch(path, memory)
        posted += watch.end()[1]
        by_rename(path, ROWS[:n])
        watch = Watch(path, memory)
        posted += watch.end()[1]
    assert sorted(posted) == sorted(wanted)
    shown, again = Watch(path, memory).end()
    assert shown == wanted and again == []  # the past is shown


def test_the_past_is_shown_and_not_posted(tmp_path):
    path = tmp_path / "m.jsonl"
    write_lines(path, ROWS)
    watch = Watch(path, tmp_path / "memory.json")
    shown, posted = watch.end()
    assert shown and posted == []


@pytest.mark.parametrize("how", ["rename", "in place"])
@pytest.mark.parametrize("length", [20, 60, 90])
def test_another_run_in_the_same_file_is_read_from_its_start(tmp_path, how, length, capsys):
    path = tmp_path / "m.jsonl"
    write_lines(path, ROWS[:50])
    watch = Watch(path)
    other = rows_of(length, seed=7)
    by_rename(path, other) if how == "rename" else write_lines(path, other)
    watch.look()
    assert watch.begun == 2 and "another run" in capsys.readouterr().err
    _, posted = watch.end()
    assert watch.watcher.steps == length
    assert posted == expected(other, tmp_path)  # the same ids as before, and other alarms


def test_a_run_that_begins_again_in_the_same_file_is_another_one(tmp_path):
    path = tmp_path / "m.jsonl"
    write_lines(path, ROWS[:50])
    watch = Watch(path)
    write_lines(path, rows_of(30, seed=5), "a")
    _, posted = watch.end()
    assert watch.begun == 2 and posted == expected(rows_of(30, seed=5), tmp_path)


def test_an_evaluation_that_took_long_is_no_resume(tmp_path):
    path = tmp_path / "m.jsonl"
    write_lines(path, ROWS[:20])
    watch = Watch(path)
    write_lines(path, [{"step": 12, "val/reward": 0.3, "val/n": 100}], "a")
    watch.look()
    assert watch.begun == 1 and watch.log._skip == []


def test_the_name_of_the_newest_run_is_looked_up_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(follow, "RESOLVE_S", 0.0)
    for name, seed in (("one", 0), ("two", 7)):
        (tmp_path / name).mkdir()
        write_lines(tmp_path / name / "metrics.jsonl", rows_of(30, seed))
    link = tmp_path / "latest-run"
    link.symlink_to("one")
    watch = Watch(link)
    assert watch.look() == 0 and watch.begun == 1
    link.unlink()
    link.symlink_to("two")
    assert watch.look() == 30 and watch.begun == 2
    assert "another run" in capsys.readouterr().err


def test_a_file_that_is_gone_is_known_and_read_on_when_it_is_back(tmp_path):
    path = tmp_path / "m.jsonl"
    write_lines(path, ROWS[:20])
    watch = Watch(path)
    path.unlink()
    assert watch.look() == 0 and watch.log.gone
    write_lines(path, ROWS[:25])
    assert watch.look() == 5 and not watch.log.gone


def test_growth_costs_its_new_bytes_and_a_rewrite_one_reading(tmp_path, monkeypatch):
    from agentrl.monitors.sources import base

    read, original = [], base.Tail.read

    def counted(self):
        data = original(self)
        read.append(len(data))
        return data

    monkeypatch.setattr(base.Tail, "read", counted)
    path = tmp_path / "m.jsonl"
    write_lines(path, ROWS[:50])
    watch = Watch(path)
    read.clear()
    size = path.stat().st_size
    write_lines(path, ROWS[50:51], "a")
    watch.look()
    assert sum(read) == path.stat().st_size - size
    read.clear()
    by_rename(path, ROWS[:52])
    watch.look()
    assert sum(read) == path.stat().st_size


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["append", "rename", "pieces", "look"]), st.integers(1, 7)), max_size=20))
def test_whatever_is_done_to_a_file_with_the_same_rows_gives_each_row_once(tmp_path_factory, actions):
    path = tmp_path_factory.mktemp("f") / "m.jsonl"
    have = 3
    write_lines(path, ROWS[:have])
    log = Following(path, lambda newest: open_source(path, newest=newest))
    got = []

    def look():
        while rows := log.poll():
            got.extend(rows)

    look()
    for action, n in actions:
        more = min(60, have + n)
        if action == "append":
            write_lines(path, ROWS[have:more], "a")
        elif action == "rename":
            by_rename(path, ROWS[:more])
        elif action == "pieces":
            with open(path, "w") as out:
                for row in ROWS[:more]:
                    out.write(json.dumps(row)[:40])
                    out.flush()
                    look() if n % 2 else None
                    out.write(json.dumps(row)[40:] + "\n")
                    out.flush()
        else:
            look()
            continue
        have = more
    look()
    assert [r.step for r in got] == list(range(have))


def test_a_database_of_another_run_and_a_newer_run(tmp_path):
    import sqlite3

    path = tmp_path / "p.db"

    def fill(name, rows):
        with sqlite3.connect(path) as db:
            db.execute(
                "CREATE TABLE IF NOT EXISTS metrics (id INTEGER PRIMARY KEY, run_name TEXT, step INT, metrics TEXT)"
            )
            db.executemany(
                "INSERT INTO metrics (run_name, step, metrics) VALUES (?, ?, ?)",
                [(name, r["step"], json.dumps(r)) for r in rows],
            )
        db.close()

    fill("a", ROWS[:20])
    watch = Watch(path)
    fill("b", rows_of(25, seed=3))
    assert watch.look() == 25 and watch.begun == 2
    path.unlink()
    fill("b", rows_of(40, seed=4))
    assert watch.look() == 40 and watch.begun == 3
    assert watch.look() == 0


def test_a_slow_log_is_not_stalled_and_a_quiet_one_is(monkeypatch):
    from agentrl.monitors.watcher import Patience

    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    patience = Patience("m.jsonl", settle=10, stall=100)
    now[0] = 60
    patience.grew()
    now[0] = 350  # longer than `stall`, but steps take 60 s
    assert patience.notice(3, gone=False) is None
    now[0] = 361
    notice = patience.notice(3, gone=False)
    assert notice.rule == "stalled" and "5 min" in notice.message
    assert patience.notice(3, gone=False) is None  # once
    patience.grew()
    now[0] = 1000
    assert patience.notice(4, gone=False).id == "stalled-000004-warn"
    assert patience.notice(4, gone=True) is None
    now[0] = 1011
    assert patience.notice(4, gone=True).rule == "log_gone"


def test_a_second_run_in_a_folder_is_the_newest_then(tmp_path, monkeypatch):
    monkeypatch.setattr(follow, "RESOLVE_S", 0.0)
    (tmp_path / "one").mkdir()
    write_lines(tmp_path / "one" / "metrics.jsonl", ROWS[:30])
    watch = Watch(tmp_path)
    assert watch.look() == 0
    (tmp_path / "two").mkdir()
    write_lines(tmp_path / "two" / "metrics.jsonl", rows_of(12, seed=3))
    os.utime(tmp_path / "one" / "metrics.jsonl", (1, 1))
    os.utime(tmp_path / "one", (1, 1))
    assert watch.look() == 12 and watch.begun == 2


def test_a_document_that_is_saved_again_and_one_of_another_run(tmp_path):
    path = tmp_path / "trainer_state.json"

    def save(rows):
        path.write_text(json.dumps({"log_history": rows, "global_step": len(rows)}))

    save(ROWS[:20])
    watch = Watch(path)
    save(ROWS[:30])
    assert watch.look() == 10 and watch.begun == 1
    save(rows_of(50, seed=5))
    assert watch.look() == 50 and watch.begun == 2


def test_a_wandb_file_of_another_longer_run(tmp_path):
    from agentrl.monitors import wire
    from tests.monitors.test_wire import leveldb, message

    path = tmp_path / "run-x.wandb"

    def save(rows):
        records = []
        for row in rows:
            items = [message((1, k.encode()), (16, json.dumps(v).encode())) for k, v in row.items()]
            records.append(message((2, message(*((1, i) for i in items), (2, message((1, row["step"])))))))
        path.write_bytes(b":W&B" + leveldb(records)[4:])

    assert wire.WANDB_START
    save(ROWS[:20])
    watch = Watch(path)
    assert watch.watcher.steps >= 19
    save(ROWS[:25])
    assert watch.look() == 5 and watch.begun == 1
    save(rows_of(60, seed=6))
    assert watch.look() == 60 and watch.begun == 2

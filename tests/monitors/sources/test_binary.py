import json
import os
import sqlite3
import subprocess
import sys
import time

import pytest

from agentrl.errors import RunError
from agentrl.monitors import Alarm, sinks
from agentrl.monitors.sources.base import StepAssembler
from agentrl.monitors.sources.tensorboard import TensorBoard
from agentrl.monitors.sources.trackio import Trackio
from agentrl.monitors.sources.wandb import Wandb


def assembled(rows):
    assembler = StepAssembler()
    return [r for row in rows for r in assembler.add(row)] + assembler.flush()


def test_real_tensorboard_events(tmp_path):
    writer_module = pytest.importorskip("tensorboard.summary.writer.event_file_writer")
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    def write(writer, step, **values):
        for tag, value in values.items():
            summary = Summary(value=[Summary.Value(tag=f"train/{tag}", simple_value=value)])
            writer.add_event(Event(step=step, wall_time=1.0, summary=summary))

    writer = writer_module.EventFileWriter(str(tmp_path))
    source = TensorBoard(tmp_path)
    for step in range(3):
        write(writer, step, reward=0.25 * step, entropy=0.5)
    writer.flush()
    rows = assembled(source.poll())
    assert [(r.step, r.values) for r in rows] == [
        (s, {"train/reward": 0.25 * s, "train/entropy": 0.5}) for s in range(3)
    ]
    write(writer, 3, reward=float("nan"))
    writer.close()
    assert [r.step for r in source.poll()] == [3]
    file = next(tmp_path.glob("*tfevents*"))
    whole = file.read_bytes()
    file.write_bytes(whole[:-3])
    assert [r.step for r in assembled(TensorBoard(tmp_path).poll())] == [0, 1, 2]


def test_torchs_summary_writer(tmp_path):
    pytest.importorskip("tensorboard")
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    with tensorboard.SummaryWriter(str(tmp_path)) as writer:
        writer.add_scalar("reward", 0.5, 1)
        writer.add_scalar("new", 0.25, 1, new_style=True)
        writer.add_text("note", "hello", 1)
    assert assembled(TensorBoard(tmp_path).poll())[0].values == {"reward": 0.5, "new": 0.25}


@pytest.fixture(scope="module")
def wandb_file(tmp_path_factory):
    """A run written by wandb itself, offline."""
    wandb = pytest.importorskip("wandb")
    folder = tmp_path_factory.mktemp("wandb")
    settings = wandb.Settings(mode="offline", silent=True, console="off", x_disable_stats=True)
    run = wandb.init(project="p", dir=str(folder), settings=settings)
    for step in range(200):
        run.log({"train/reward": step / 200, "train/global_step": 10 * step, "nested": {"x": step}, "text": "a" * 300})
    sinks.wandb()(Alarm("collapse-000199-warn", 199, "collapse", "warn", "Collapse ahead", remedy="Set a=b."))
    run.finish()
    file = next(folder.glob("wandb/offline-run-*/*.wandb"))
    size, deadline = -1, time.monotonic() + 20
    while size != file.stat().st_size and time.monotonic() < deadline:  # wandb's own process writes the end of it
        size = file.stat().st_size
        time.sleep(1)
    return file


def test_real_wandb_offline_run(wandb_file):
    rows = Wandb(wandb_file).poll()
    assert [r.step for r in rows] == [10 * s for s in range(200)]
    assert rows[7].values["train/reward"] == pytest.approx(0.035)
    assert rows[7].values["nested/x"] == 7.0
    assert "text" not in rows[7].values


def test_real_wandb_alert(wandb_file):
    """The alert is a record of its own: title, text, level, each a length-prefixed field."""
    text = wandb_file.read_bytes()
    assert b"collapse at step 199" in text and b"Collapse ahead\nSet a=b." in text and b"WARN" in text


def test_a_wandb_run_that_grows_in_odd_pieces(wandb_file, tmp_path):
    data = wandb_file.read_bytes()
    assert len(data) > 32768  # so that records cross blocks
    copy = tmp_path / "run.wandb"
    source, steps = Wandb(copy), []
    assert source.poll() == []
    for end in [*range(3, len(data), 1777), len(data)]:
        copy.write_bytes(data[:end])
        steps += [r.step for r in source.poll()]
    assert steps == [10 * s for s in range(200)]


def test_large_files_come_in_parts(wandb_file, tmp_path, monkeypatch):
    monkeypatch.setattr("agentrl.monitors.sources.wandb.WANDB_CHUNK", 65536)
    source, parts = Wandb(wandb_file), []
    while rows := source.poll(final=True):
        parts.append([r.step for r in rows])
    assert len(parts) > 1 and [n for part in parts for n in part] == [10 * s for s in range(200)]
    assert source.problems == {}


def trackio_database(file):
    """The tables that trackio 0.43 creates, as far as metrics go."""
    with sqlite3.connect(file) as db:
        db.execute(
            "CREATE TABLE metrics (id INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT NOT NULL, timestamp TEXT NOT NULL,"
            " run_name TEXT NOT NULL, step INTEGER NOT NULL, metrics TEXT NOT NULL, log_id TEXT, space_id TEXT)"
        )


def log(file, run, step, **metrics):
    with sqlite3.connect(file) as db:
        db.execute(
            "INSERT INTO metrics (run_id, timestamp, run_name, step, metrics) VALUES (?, ?, ?, ?, ?)",
            (run, "2026-01-01", run, step, json.dumps(metrics).encode()),
        )


def test_trackio_follows_the_run_that_wrote_last(tmp_path):
    file = tmp_path / "p.db"
    trackio_database(file)
    source = Trackio(file)
    assert source.poll() == []
    log(file, "old", 0, reward=0.9)
    log(file, "new", 0, reward=0.1)
    log(file, "new", 1, reward="NaN", entropy=0.2)
    rows = source.poll()
    assert source.run == "new" and [r.step for r in rows] == [0, 1]
    assert rows[1].values["entropy"] == 0.2
    log(file, "new", 2, reward=0.3)
    assert [(r.step, r.values) for r in source.poll()] == [(2, {"reward": 0.3})]
    assert [r.values["reward"] for r in Trackio(file, "old").poll()] == [0.9]


def test_a_database_of_something_else_is_not_fatal_and_a_broken_one_is_an_error(tmp_path):
    other = tmp_path / "o.db"
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE x (y)")
    source = Trackio(other)
    assert source.poll() == [] and "no such table" in next(iter(source.problems))
    broken = tmp_path / "b.db"
    broken.write_bytes(b"SQLite format 3\0" + b"junk" * 500)
    with pytest.raises(RunError, match="not a trackio database"):
        Trackio(broken).poll()


@pytest.fixture(scope="module")
def trackio_folder(tmp_path_factory):
    """A database written by trackio itself, with an alarm in it; its folder is read at import."""
    pytest.importorskip("trackio")
    folder = tmp_path_factory.mktemp("trackio")
    code = """
import trackio
from agentrl.monitors import Alarm, sinks
run = trackio.init(project="p", name="r", embed=False)
run.log({"reward": 0.5}, step=3)
sinks.trackio()(Alarm("collapse-000003-warn", 3, "collapse", "warn", "Collapse ahead", remedy="Set a=b."))
trackio.finish()
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"TRACKIO_DIR": str(folder)}, timeout=120)
    return folder


def test_real_trackio_database(trackio_folder):
    file = next(trackio_folder.rglob("*.db"))
    assert [(r.step, r.values["reward"]) for r in Trackio(file).poll()] == [(3, 0.5)]


def test_real_trackio_alert(trackio_folder):
    with sqlite3.connect(next(trackio_folder.rglob("*.db"))) as db:
        found = db.execute("SELECT title, text, level FROM alerts").fetchall()
    assert found == [("collapse at step 3", "Collapse ahead\nSet a=b.", "warn")]

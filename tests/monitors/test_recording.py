"""Others' logs as runs: `watch --to` and `import` write what the dashboard, `runs`, `alarms` and the report read."""

import json
import math

import pytest

from agentrl.cli import main
from agentrl.dashboard.library import Library
from agentrl.dashboard.report import render_report
from agentrl.errors import AgentRLError
from agentrl.runs.read import acknowledge, list_runs, read_alarms, read_metrics
from tests.monitors.test_follow import ROWS, expected, rows_of, write_lines
from tests.monitors.test_watch_told import QUICK, watching


def foreign(path, rows):
    """verl's file logger."""
    names = {"reward": "critic/score/mean", "clip_fraction": "actor/pg_clipfrac", "entropy": "actor/entropy"}
    with open(path, "w") as out:
        for row in rows:
            data = {names[k]: row[k] for k in names} | {
                "perf/mfu": 0.4,
                "loss": row["loss"],
                "_timestamp": 1.7e9 + row["step"],
            }
            out.write(json.dumps({"step": row["step"], "data": data}) + "\n")


def test_an_import_is_a_run_everywhere(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    foreign(tmp_path / "verl.jsonl", ROWS)
    assert main(["import", "verl.jsonl"]) == 0
    assert capsys.readouterr().out.strip() == "runs/verl"
    [info] = list_runs("runs")
    assert (info.name, info.status, info.step) == ("verl", "finished", 60) and info.updated > 1e9
    rows = read_metrics("runs/verl")
    assert [r["step"] for r in rows] == list(range(60)) and rows[3]["reward"] == ROWS[3]["reward"]
    assert any(name.endswith("perf/mfu") for name in rows[3])  # its own columns stay
    assert any("nonfinite" in row for row in rows) == any(math.isnan(row["loss"]) for row in ROWS)
    alarms = read_alarms("runs/verl")
    assert "collapse-000009-warn" in [a["id"] for a in alarms]
    library = Library(tmp_path / "runs")
    history, _ = library.history("verl")
    assert library.problems("verl", history, False) == [] and library.config("verl")["problems"] == []
    text = render_report(library, "verl")
    assert "collapse" in text and "agentrl watch" in text
    assert main(["alarms", "runs/verl"]) == 0 and main(["runs", "runs"]) == 0
    acknowledge("runs/verl", alarms[0]["id"])
    assert main(["import", "verl.jsonl"]) == 0  # again: nothing twice, nothing lost
    assert len(read_metrics("runs/verl")) == 60
    assert [a["id"] for a in read_alarms("runs/verl")] == [a["id"] for a in alarms]
    assert read_alarms("runs/verl")[0]["acknowledged"] is True


def test_a_followed_log_grows_in_the_run_and_the_next_run_gets_its_own(tmp_path):
    path, to = tmp_path / "m.jsonl", tmp_path / "runs" / "mine"
    write_lines(path, ROWS[:20])
    with watching(path, "--json", "--to", to, *QUICK) as process:
        process.followed()
        assert list_runs(to.parent)[0].status == "running"
        write_lines(path, ROWS[20:30], "a")
        process.until(lambda: len(read_metrics(to)) >= 29)
        write_lines(path, rows_of(40, seed=8))
        process.until(lambda: len(read_metrics(to.with_name("mine-2"))) >= 39)
        assert process.end() == 0
    assert {i.name: i.status for i in list_runs(to.parent)} == {"mine": "finished", "mine-2": "stopped"}
    assert [a["id"] for a in read_alarms(to.with_name("mine-2"))] == expected(rows_of(40, seed=8), tmp_path)


def test_what_is_not_ours_is_left_alone(tmp_path):
    write_lines(tmp_path / "a.jsonl", ROWS[:5])
    write_lines(tmp_path / "b.jsonl", ROWS[:5])
    for name, file in (("own", "config.yaml"), ("other", "notes.txt")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("x")
        assert main(["import", str(tmp_path / "a.jsonl"), "--to", str(tmp_path / name)]) == 2
    assert main(["import", str(tmp_path / "a.jsonl"), "--to", str(tmp_path / "a")]) == 0
    assert main(["import", str(tmp_path / "b.jsonl"), "--to", str(tmp_path / "a")]) == 2
    with pytest.raises(AgentRLError, match="name the run directory"):
        from agentrl.commands.recording import RunRecorder

        RunRecorder(tmp_path / "..", "x", live=False)

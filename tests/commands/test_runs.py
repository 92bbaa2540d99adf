"""`runs` and `alarms`: lists for people and for scripts."""

import json
import shutil

import pytest

from agentrl.cli import main
from agentrl.runs.files import append_line
from agentrl.runs.read import ALARMS, STATUS, read_alarms


@pytest.fixture
def runs_dir(finished_run, tmp_path):
    """Three runs: finished, killed while running, failed."""
    for name in ("done", "killed", "broken"):
        shutil.copytree(finished_run, tmp_path / name)
    for name, change in (("killed", {"status": "running"}), ("broken", {"status": "failed", "message": "disk full"})):
        file = tmp_path / name / STATUS
        row = json.loads(file.read_text()) | change | {"resume": f"agentrl resume {tmp_path / name}"}
        file.write_text(json.dumps(row))
    return tmp_path


def test_unfinished_runs_come_with_their_resume_command(runs_dir, capsys):
    assert main(["runs", str(runs_dir)]) == 0
    out = capsys.readouterr().out
    assert f"agentrl resume {runs_dir / 'killed'}" in out and f"agentrl resume {runs_dir / 'broken'}" in out
    assert "disk full" in out and f"agentrl resume {runs_dir / 'done'}" not in out and "2/2" in out
    assert main(["runs", str(runs_dir), "--json"]) == 0
    rows = {r["name"]: r for r in json.loads(capsys.readouterr().out)}
    assert [rows[n]["status"] for n in ("done", "killed", "broken")] == ["finished", "stopped", "failed"]
    assert "resume" not in rows["done"] and rows["killed"]["resume"].startswith("agentrl resume ")
    assert isinstance(rows["done"]["reward"], float)


def test_an_empty_folder_says_what_to_do(tmp_path, capsys):
    assert main(["runs", str(tmp_path)]) == 0
    assert "agentrl train" in capsys.readouterr().out
    assert main(["runs", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_alarms_are_listed_and_acknowledged(runs_dir, capsys):
    run = runs_dir / "done"
    (run / ALARMS).unlink(missing_ok=True)
    assert main(["alarms", str(run)]) == 0
    assert "no alarms" in capsys.readouterr().out
    for step, level in ((3, "warn"), (9, "critical")):
        append_line(run / ALARMS, {"id": f"collapse-{step}", "step": step, "rule": "collapse", "level": level,
                                   "message": "falls", "remedy": "lower optim.lr"})  # fmt: skip
    assert main(["alarms", str(run)]) == 0
    out = capsys.readouterr().out
    assert "critical step     9  collapse: falls" in out and "lower optim.lr" in out
    assert main(["alarms", str(run), "--ack", "collapse-3"]) == 0
    assert [a["acknowledged"] for a in read_alarms(run)] == [True, False]
    capsys.readouterr()
    assert main(["alarms", str(run), "--open", "--json"]) == 0
    assert [a["id"] for a in json.loads(capsys.readouterr().out)] == ["collapse-9"]
    assert main(["alarms", str(run), "--ack", "all"]) == 0
    assert all(a["acknowledged"] for a in read_alarms(run))
    assert main(["alarms", str(run), "--unack", "collapse-9"]) == 0
    assert [a["acknowledged"] for a in read_alarms(run)] == [True, False]


def test_unknown_alarms_and_runs_are_named(runs_dir, capsys):
    append_line(runs_dir / "done" / ALARMS, {"id": "collapse-3", "step": 3, "rule": "collapse", "level": "warn",
                                             "message": "falls", "remedy": ""})  # fmt: skip
    assert main(["alarms", str(runs_dir / "done"), "--ack", "collapse-4"]) == 2
    assert "did you mean 'collapse-3'?" in capsys.readouterr().err
    assert main(["alarms", str(runs_dir / "dne")]) == 2
    assert "did you mean 'done'?" in capsys.readouterr().err

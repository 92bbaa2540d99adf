import argparse
import json
import math
import random
import subprocess
import sys
import threading
import time

import pytest

from agentrl.commands import watch
from agentrl.errors import AgentRLError, RunError
from agentrl.runs.log import RunLog
from tests.monitors.runs import records
from tests.small import small_config


def arguments(*argv):
    parser = argparse.ArgumentParser()
    watch.add_arguments(parser)
    return parser.parse_args(list(argv))


def stagnant(step, metrics):
    metrics["clip_fraction"] = 0.07
    metrics["reward"] = 0.5 + 0.01 * (step % 3)


def write(file, steps, rename=None):
    with open(file, "a") as out:
        for record in steps:
            row = {(rename or {}).get(k, k): v for k, v in record.metrics.items()}
            out.write(json.dumps({"step": record.step, **row}) + "\n")


def test_once_prints_one_json_line_per_alarm(tmp_path, capsys):
    file = tmp_path / "m.jsonl"
    write(file, records(30, stagnant))
    assert watch.run(arguments(str(file), "--once", "--json")) == 0
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert [(a["step"], a["rule"], a["level"]) for a in lines] == [(9, "collapse", "warn")]
    assert lines[0]["signals"]["clip_fraction"]["threshold"] == 0.06 and lines[0]["message"]
    assert "missing probe_logprob" in err and "30 steps" in err


def test_a_foreign_log_with_a_mapping(tmp_path, capsys):
    file = tmp_path / "verl.jsonl"
    rename = {"reward": "my/score", "clip_fraction": "actor/pg_clipfrac", "entropy": "actor/entropy"}
    steps = records(30, stagnant)
    with open(file, "w") as out:
        for r in steps:
            data = {rename[k]: v for k, v in r.metrics.items() if k in rename}
            out.write(json.dumps({"step": r.step, "data": data}) + "\n")
    watch.run(arguments(str(file), "--once", "--json", "--map", "reward=data/my/score"))
    out, err = capsys.readouterr()
    assert [json.loads(line)["rule"] for line in out.splitlines()] == ["collapse"]
    assert "verl names" in err and "reward=data/my/score" in err
    watch.run(arguments(str(file), "--once", "--json"))
    out, err = capsys.readouterr()
    assert out == "" and "missing reward" in err


def test_a_column_that_is_not_there_names_its_neighbours(tmp_path, capsys):
    file = tmp_path / "m.jsonl"
    write(file, records(3))
    watch.run(arguments(str(file), "--once", "--map", "kl=train/grad_norm"))
    assert "no column 'train/grad_norm' for kl: the log has grad_norm" in capsys.readouterr().err


@pytest.mark.parametrize("pair", ["reward", "=x", "reward="])
def test_a_bad_mapping_is_an_error_before_the_file_is_read(pair, tmp_path):
    with pytest.raises(AgentRLError, match="expected SIGNAL=COLUMN"):
        watch.run(arguments(str(tmp_path / "none"), "--map", pair))
    with pytest.raises(AgentRLError, match="did you mean"):
        watch.run(arguments(str(tmp_path / "none"), "--map", "entrpy=x"))
    with pytest.raises(RunError, match="does not exist"):
        watch.run(arguments(str(tmp_path / "none")))


def test_torn_and_broken_lines_are_survived_and_reported(tmp_path, capsys):
    file = tmp_path / "m.jsonl"
    write(file, records(20, stagnant))
    with open(file, "a") as out:
        out.write('{"step": 20, "rew')
    watch.run(arguments(str(file), "--once", "--json"))
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1 and "1 x line is not JSON" in err


def test_what_is_not_finite_in_a_run_directory_is_not_taken_for_missing(tmp_path, capsys):
    with RunLog.create(tmp_path, "a", small_config(tmp_path)) as run:
        for record in records(15, lambda s, m: m.update(entropy=math.nan if s == 13 else 0.4)):
            run.append(record, tokens=0)
    watch.run(arguments(str(run.path), "--once", "--json"))
    [line] = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert (found["step"], found["rule"], found["level"]) == (13, "non_finite", "warn")
    assert found["signals"] == {"entropy": {"value": None, "threshold": None}}


def test_a_run_directory_without_metrics_says_so(tmp_path):
    with RunLog.create(tmp_path, "a", small_config(tmp_path)) as run:
        pass
    with pytest.raises(RunError, match="holds no metrics"):
        watch.run(arguments(str(run.path), "--once"))


def test_the_process_follows_a_growing_file_and_ends_on_a_signal(tmp_path):
    file = tmp_path / "m.jsonl"
    file.write_text("")
    code = (
        "import argparse, sys\nfrom agentrl.commands import watch\n"
        "p = argparse.ArgumentParser(); watch.add_arguments(p)\n"
        "sys.exit(watch.run(p.parse_args(sys.argv[1:])))\n"
    )
    argv = [sys.executable, "-c", code, str(file), "--json", "--every", "0.05", "--settle", "0.2"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        lines = []
        reader = threading.Thread(target=lambda: lines.extend(process.stdout), daemon=True)
        reader.start()
        for record in records(11, stagnant):
            write(file, [record])
            time.sleep(0.02)
        deadline = time.monotonic() + 30
        while not lines and time.monotonic() < deadline:
            time.sleep(0.05)
        assert lines and json.loads(lines[0])["step"] == 9
        process.terminate()
        assert process.wait(20) == 0
        assert "11 steps" in process.stderr.read()
    finally:
        process.kill()


def test_watching_imports_no_torch():
    code = "import sys, agentrl.commands.watch; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_reward_too_noisy_to_judge_is_said_to_be_so(tmp_path, capsys):
    file = tmp_path / "m.jsonl"
    rng = random.Random(0)
    write(file, records(60, lambda s, m: m.update(reward=float(rng.random() < 0.3), clip_fraction=0.0)))
    watch.run(arguments(str(file), "--once"))
    err = capsys.readouterr().err
    assert "too noisy to show a loss of half: needs a mean of about" in err
    write(tmp_path / "n.jsonl", records(60))
    watch.run(arguments(str(tmp_path / "n.jsonl"), "--once"))
    assert "too noisy" not in capsys.readouterr().err


def test_a_clip_fraction_that_is_always_zero_is_not_logged(tmp_path, capsys):
    def change(step, metrics):
        metrics["clip_fraction"] = 0.0
        del metrics["delta_correct"]

    file = tmp_path / "m.jsonl"
    write(file, records(30, change))
    watch.run(arguments(str(file), "--once"))
    assert "warnings will be late" in capsys.readouterr().err

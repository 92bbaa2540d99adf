"""What logs should not contain: each is named and counted, nothing crashes, nothing is run, no row is lost."""

import gzip
import json
import os
import random

import pytest

from agentrl.errors import RunError
from agentrl.monitors.watcher import watch

VERL = "(TaskRunner pid=7) step:{} - critic/score/mean:{} - actor/entropy:{}\n"
CSV = "step,reward,entropy\n"


def rows(n=30, start=0):
    return [f"{s},{0.5 + 0.01 * (s % 3):.2f},0.4\n" for s in range(start, start + n)]


def seen(tmp_path, capsys, content, name="m.log", code=0, **options):
    """What `watch --once` says of a file."""
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert watch(str(file), columns=[], once=True, **options) == code
    out = capsys.readouterr()
    assert "\x1b" not in out.out + out.err
    return out.err


def noise(n=5000, seed=0):
    return random.Random(seed).randbytes(n)


@pytest.mark.parametrize("name", ["core.log", "model.safetensors", "metrics.db", "run.wandb", "m.csv", "m.jsonl"])
def test_binary_files_are_refused_or_nothing_is_found(tmp_path, name):
    file = tmp_path / name
    file.write_bytes(b"\x7fELF\0" + noise())
    try:
        assert watch(str(file), columns=[], once=True) == 2
    except RunError as error:
        assert str(file) in str(error) and ("none of the formats" in str(error) or "not a" in str(error))


def test_binary_lines_inside_a_console_log(tmp_path, capsys):
    lines = [VERL.format(s, 0.5, 0.4).encode() for s in range(30)]
    lines.insert(10, noise(400).replace(b"\n", b"") + b"\n")
    assert "verl console, 30 steps" in seen(tmp_path, capsys, b"".join(lines))


def test_a_log_cut_inside_a_line(tmp_path, capsys):
    whole = "".join(json.dumps({"step": s, "reward": 0.5}) + "\n" for s in range(30))
    err = seen(tmp_path, capsys, whole[:-12], "m.jsonl")
    assert "29 steps" in err and "1 x line is not JSON" in err
    text = "".join(VERL.format(s, 0.5, 0.4) for s in range(30))
    assert "30 steps" in seen(tmp_path, capsys, text[:-8])  # what the last line has is a measured number
    packed = gzip.compress(text.encode())
    assert "damaged or cut" in seen(tmp_path, capsys, packed[:-30], "m.log.gz")


def test_two_runs_in_one_file(tmp_path, capsys):
    err = seen(tmp_path, capsys, CSV + "".join(rows()) + CSV + "".join(rows(20)), "m.csv")
    assert "50 steps" in err and "1 x steps went back: a restart, the monitors warm up again" in err


def test_steps_that_repeat_are_merged_and_steps_that_go_back_are_counted(tmp_path, capsys):
    twice = CSV + "".join(r for row in rows() for r in (row, row))
    assert "30 steps" in seen(tmp_path, capsys, twice, "m.csv")
    late = [json.dumps({"step": s - (s == 12), "reward": 0.5, f"x{s}": 1.0}) + "\n" for s in range(30)]
    late.insert(20, json.dumps({"step": 18, "reward": 0.9}) + "\n")
    assert "1 rows came after their step was complete and were left out" in seen(
        tmp_path, capsys, "".join(late), "m.jsonl"
    )


@pytest.mark.parametrize(
    ("header", "row", "expected"),
    [
        ("step,reward (mean),entropy [nats]", "{},0.5,0.4", ["reward=reward (mean)", "entropy=entropy [nats]"]),
        ("step,reward,step_time (ms)", "{},0.5,1500", ["t_step_s=step_time (ms)"]),
        ("step,reward,clip_fraction (%)", "{},0.5,4.0", ["clip_fraction=clip_fraction (%)"]),
    ],
)
def test_units_in_names(tmp_path, capsys, header, row, expected):
    err = seen(tmp_path, capsys, header + "\n" + "".join(row.format(s) + "\n" for s in range(30)), "m.csv")
    assert all(e in err for e in expected)
    from agentrl.monitors.signals import guess_mapping

    columns = header.split(",")
    applied = guess_mapping(columns).apply(dict(zip(columns, map(float, row.format(1).split(",")))))
    assert applied.get("t_step_s", 1.5) == pytest.approx(1.5)
    assert applied.get("clip_fraction", 0.04) == pytest.approx(0.04)


def test_a_percentage_under_the_name_of_a_share_is_left_out_and_counted(tmp_path, capsys):
    text = "step,reward,clip_fraction\n" + "".join(f"{s},0.5,4.0\n" for s in range(30))
    assert "30 x clip_fraction=clip_fraction is above 1 and no share (a percentage?): left out" in seen(
        tmp_path, capsys, text, "m.csv"
    )


@pytest.mark.parametrize("word", ["nan", "NaN", "NAN", "inf", "-Infinity"])
def test_nan_as_text_is_a_measured_nan(tmp_path, capsys, word):
    text = CSV + "".join(rows()) + f"30,0.5,{word}\n31,,0.4\n"
    file = tmp_path / "m.csv"
    file.write_text(text)
    assert watch(str(file), columns=[], once=True) == 0
    assert "step 30  WARN     non_finite" in capsys.readouterr().out
    quoted = "".join(
        json.dumps({"step": s, "reward": "0.5", "loss": word if s == 20 else "0.1"}) + "\n" for s in range(30)
    )
    file = tmp_path / "m.jsonl"
    file.write_text(quoted)
    assert watch(str(file), columns=[], once=True) == 0
    assert "step 20  WARN     non_finite" in capsys.readouterr().out


def test_five_thousand_columns(tmp_path, capsys):
    names = [f"c{i}" for i in range(5000)]
    text = ",".join(["step", "reward", *names]) + "\n"
    text += "".join(f"{s},0.5," + ",".join(["0.1"] * 5000) + "\n" for s in range(12))
    assert "12 steps" in seen(tmp_path, capsys, text, "m.csv")


HOSTILE = [
    "<script>alert(1)</script>",
    "\x1b[2J\x1b]0;owned\x07reward",
    "../../../../etc/passwd",
    "$(touch PWNED)",
    "`touch PWNED`",
    "{0.__class__}",
    "%s%s%n",
    "__import__('os').system('touch PWNED')",
    "\u202ereward",
    "=cmd|' /C calc'!A0",
    "a" * 5000,
]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "verl", "dicts"])
def test_hostile_names_are_data(tmp_path, capsys, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    names = [n for n in HOSTILE if kind == "jsonl" or not set(n) & set("\",:\x1b{}'")]
    if kind == "jsonl":
        lines = [json.dumps({"step": s, "reward": 0.5, **dict.fromkeys(names, 0.1)}) for s in range(30)]
    elif kind == "csv":
        lines = [",".join(["step", "reward", *names])] + [f"{s},0.5" + ",0.1" * len(names) for s in range(30)]
    elif kind == "verl":
        lines = [f"step:{s} - critic/score/mean:0.5 - " + " - ".join(f"{n}:0.1" for n in names) for s in range(30)]
    else:
        lines = [repr({"step": s, "reward": 0.5, **dict.fromkeys(names, 0.1)}) for s in range(30)]
    before = set(os.listdir(tmp_path))
    err = seen(tmp_path, capsys, "\n".join(lines) + "\n", f"m.{kind}")
    assert "30 steps" in err
    assert watch(f"m.{kind}", columns=[], once=True, explain=True) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\u202e" not in out
    assert set(os.listdir(tmp_path)) == before | {f"m.{kind}"}

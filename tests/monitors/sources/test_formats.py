"""Tables, documents, stores, and what is not a plain file: by content, whatever the name."""

import codecs
import gzip
import json
import sqlite3
import subprocess
import sys

import pytest

from agentrl.errors import RunError
from tests.monitors.sources.test_console import steps_of, verl_line
from tests.monitors.test_watch import arguments


def reward_steps(path, **options):
    source, steps = steps_of(path, **options)
    return source.kind, [(s, v.get("reward")) for s, v in steps]


@pytest.mark.parametrize(
    "text",
    ["step,reward\n1,0.5\n2,0.25\n", "step;reward\n1;0.5\n2;0.25\n", "step;reward\n1;0,5\n2;0,25\n",
     "step\treward\n1\t0.5\n2\t0.25\n", '"step","reward"\n"1","0.5"\n"2","0.25"\n', "step,reward\n1,50%\n2,25%\n"],
)  # fmt: skip
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tables_under_any_name(tmp_path, text, encoding):
    file = tmp_path / "table.txt"
    file.write_bytes(text.encode(encoding))
    assert reward_steps(file) == ("CSV", [(1, 0.5), (2, 0.25)])


def test_a_growing_utf_16_log_waits_for_whole_lines(tmp_path):
    from agentrl.monitors.sources import open_source

    file = tmp_path / "m.jsonl"
    whole = codecs.BOM_UTF16_LE + '{"step": 1, "reward": 0.5}\n{"step": 2, "reward": 0.25}\n'.encode("utf-16-le")
    file.write_bytes(whole[:-9])
    source = open_source(file)
    assert [r.step for r in source.poll()] == [1]
    file.write_bytes(whole)
    assert [r.step for r in source.poll()] == [2]


def test_a_wandb_panels_export(tmp_path):
    file = tmp_path / "wandb_export.csv"
    file.write_text(
        '"Step","a b - train/reward","a b - train/reward__MIN","a b - train/reward__MAX"\n1,0.5,0.1,0.9\n2,,,\n'
    )
    _, steps = steps_of(file)
    assert steps == [(1, {"Step": 1.0, "train/reward": 0.5}), (2, {"Step": 2.0})]
    two = tmp_path / "two.csv"
    two.write_text("Step,x - reward,y - reward\n1,0.5,0.7\n")
    with pytest.raises(RunError, match="holds 2 runs; choose one with --run: x, y"):
        steps_of(two)
    assert steps_of(two, run="y")[1] == [(1, {"Step": 1.0, "reward": 0.7})]
    folder = tmp_path / "exports"
    folder.mkdir()
    (folder / "1.csv").write_text("Step,x - reward\n1,0.5\n2,0.6\n")
    (folder / "2.csv").write_text("Step,x - entropy\n1,0.1\n2,0.2\n")
    kind, steps = steps_of(folder)
    assert kind.kind == "CSV folder" and steps[1] == (2, {"Step": 2.0, "reward": 0.6, "entropy": 0.2})


@pytest.mark.parametrize(
    "tree",
    [
        {"best": None, "log_history": [{"step": 1, "reward": 0.5}, {"step": 2, "reward": "0.25"}]},
        [{"step": 1, "reward": 0.5}, {"step": 2, "reward": 0.25}],
        {"1": {"reward": 0.5}, "2": {"reward": 0.25}},
        {"step": [1, 2], "reward": [0.5, 0.25]},
        {"history": [{"step": 1, "reward": 0.5}, {"step": 2, "reward": 0.25}]},
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_json_documents_under_any_name(tmp_path, tree, indent):
    if indent is None and "log_history" not in tree and not isinstance(tree, list):
        pytest.skip("one line that is an object is a JSONL file of one row")
    file = tmp_path / "history.txt"
    file.write_text(json.dumps(tree, indent=indent))
    assert reward_steps(file) == ("JSON", [(1, 0.5), (2, 0.25)])


def test_the_newest_checkpoint_of_a_folder(tmp_path):
    for step in (9, 10):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        rows = [{"step": s, "reward": 0.1} for s in range(step)]
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": rows}))
    assert len(steps_of(tmp_path)[1]) == 10


def test_record_types_are_chosen_and_the_step_is_named(tmp_path):
    file = tmp_path / "m.jsonl"
    rows = [
        {"type": t, "iteration_no": s, "reward": s + (0.5 if t == "eval" else 0)}
        for s in (1, 2)
        for t in ("train", "eval")
    ]
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    source, steps = steps_of(file, where={"type": "train"}, step="iteration_no")
    assert [(s, v["reward"]) for s, v in steps] == [(1, 1.0), (2, 2.0)] and source.left_out == 2


def test_mlflow_stores(tmp_path):
    run = tmp_path / "mlruns" / "0" / "abc"
    (run / "metrics" / "train").mkdir(parents=True)
    (run / "meta.yaml").write_text("run_id: abc\n")
    (run / "metrics" / "train" / "reward").write_text("1700000000 0.5 1\n1700000001 0.25 2\n")
    (run / "metrics" / "entropy").write_text("1700000000 nan 1\n1700000001 0.1 2\nbroken\n")
    for path in (run, tmp_path / "mlruns"):
        source, steps = steps_of(path)
        assert source.kind == "MLflow" and [(s, v["train/reward"]) for s, v in steps] == [(1, 0.5), (2, 0.25)]
        assert sum(source.problems.values()) == 1
    database = tmp_path / "mlflow.db"
    with sqlite3.connect(database) as db:
        db.execute("CREATE TABLE metrics (key TEXT, value REAL, timestamp INT, run_uuid TEXT, step INT, is_nan INT)")
        rows = [("reward", 0.5, 1, "old", 1, 0), ("reward", 0.5, 2, "new", 1, 0), ("reward", 0.0, 3, "new", 2, 1)]
        db.executemany("INSERT INTO metrics VALUES (?, ?, ?, ?, ?, ?)", rows)
    source, steps = steps_of(database)
    assert (
        source.kind == "MLflow" and [s for s, _ in steps] == [1, 2] and steps[1][1]["reward"] != steps[1][1]["reward"]
    )
    assert len(steps_of(database, run="old")[1]) == 1


def verl_log(n, reward=0.5):
    return "".join(verl_line(s, {"critic/score/mean": reward, "actor/entropy": 0.4}) + "\n" for s in range(1, n + 1))


def test_gzip_and_a_damaged_one(tmp_path):
    file = tmp_path / "out.log.gz"
    file.write_bytes(gzip.compress(verl_log(5).encode()))
    source, steps = steps_of(file)
    assert source.kind == "verl console" and len(steps) == 5
    file.write_bytes(gzip.compress(verl_log(5000).encode())[:-500])
    source, steps = steps_of(file)
    assert len(steps) > 100 and any("damaged" in what for what in source.problems)


def test_standard_input(tmp_path):
    command = [sys.executable, "-m", "agentrl", "watch", "-", "--every", "0.05"]
    text = "hello, world\n" + verl_log(12)
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0 and "verl console, 12 steps" in done.stderr
    nothing = subprocess.run(
        [*command, "--once"], input="no metrics\n", capture_output=True, text=True, check=False, timeout=60
    )
    assert nothing.returncode == 2 and "nothing to judge" in nothing.stderr


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no row with a number"),
        (b"just text, with a comma\nand more, too\n", "no format knows a line"),
        (b"a,b\n1,2\n3,4\n", "2 rows but no known column; there are a, b"),
        (b'{"foo": 1}\n', "no known column; there are foo"),
        (b'{"step": 1}\n', "no known column"),
    ],
)
def test_nothing_to_judge_is_exit_code_2_with_what_to_do(tmp_path, capsys, content, words):
    from agentrl.commands import watch

    file = tmp_path / "x.txt"
    file.write_bytes(content)
    assert watch.run(arguments(str(file), "--once")) == 2
    err = capsys.readouterr().err
    assert words in err and ("--map" in err or "--format" in err)


def test_explain_says_what_is_used_and_what_is_missing(tmp_path, capsys):
    from agentrl.commands import watch

    file = tmp_path / "v.log"
    file.write_text(
        verl_log(12, reward=0.0) + verl_line(13, {"val-core/nq/reward/mean@1": 0.1, "odd\x1b[31m": 1}) + "\n"
    )
    assert watch.run(arguments(str(file), "--explain")) == 0
    out = capsys.readouterr().out
    assert "verl console; 13 rows, 13 steps" in out
    assert "reward               <- critic/score/mean" in out and "validation           <- mean of val-core/nq" in out
    assert "clip_fraction        the earliest warning" in out and "\x1b" not in out and "Collapse" not in out


def test_hostile_and_huge_columns_are_survived(tmp_path, capsys):
    from agentrl.commands import watch

    file = tmp_path / "m.jsonl"
    columns = {f"c{i}": i for i in range(5000)} | {
        "\x1b]0;owned\x07": 1,
        "<script>alert(1)</script>": 2,
        "../../etc/passwd": 3,
    }
    lines = [json.dumps({"step": s, "reward": 0.5, "clip_fraction": 40.0, **columns}) for s in range(12)]
    file.write_text("\n".join([*lines, json.dumps({"a": [1] * 10}), "[" * 100_000]) + "\n")
    assert watch.run(arguments(str(file), "--once")) == 0
    err = capsys.readouterr().err
    assert "12 steps" in err and "12 x clip_fraction=clip_fraction is above 1" in err and "\x1b" not in err


def test_two_runs_in_one_file_are_a_restart(tmp_path, capsys):
    from agentrl.commands import watch

    file = tmp_path / "m.log"
    file.write_text(verl_log(12) + verl_log(12))
    assert watch.run(arguments(str(file), "--once")) == 0
    err = capsys.readouterr().err
    assert "24 steps" in err and "1 x steps went back: a restart" in err


def test_percent_in_the_name_becomes_a_share(tmp_path, capsys):
    from agentrl.monitors import guess_mapping

    mapping = guess_mapping(["my/clip_pct"], {"clip_fraction": "my/clip_pct"})
    assert mapping.apply({"my/clip_pct": 7.0}) == {"clip_fraction": pytest.approx(0.07)}

"""Others' rollouts: what each format's own writer wrote, and files that are broken, mixed, huge or hostile."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import shutil
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl import plugins
from agentrl.cli import main
from agentrl.commands import importing, recording
from agentrl.errors import AgentRLError, PluginError, RunError
from agentrl.runs import read
from agentrl.runs.others import base, detect, store
from agentrl.runs.others.base import Words
from agentrl.runs.others.slime import Slime
from agentrl.runs.others.store import RolloutImport

DATA = Path(__file__).parent / "data" / "rollouts"


def imported(tmp_path: Path, source: Path | str, **options: object) -> tuple[Path, RolloutImport]:
    """A run directory with what is at `source`."""
    rollouts = RolloutImport(DATA / source if isinstance(source, str) else source, **options)  # type: ignore[arg-type]
    rollouts.refresh(tmp_path / "run")
    return tmp_path / "run", rollouts


def write(path: Path, *rows: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def verl(step: int, n: int = 1, **more: object) -> list[dict[str, object]]:
    return [{"input": "user\nq?\nassistant\n", "output": f"<answer>{i}</answer>", "score": 1.0, "step": step} | more
            for i in range(n)]  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- formats


def test_verl(tmp_path):
    run, rollouts = imported(tmp_path, "verl")
    assert read.rollout_steps(run) == [1, 2, 3] and not rollouts.problems
    rows = read.read_rollouts(run, 1)
    first = rows[0]
    assert len(rows) == 8 and {r["group_id"] for r in rows} == {"1/q0", "1/q1"}  # by verl's own uid
    assert first["task"]["question"] == "Where was Ada Rowan born?" and first["task"]["golden_answers"] == ["Varn"]
    assert first["task"]["system"] == "You answer with a search tool."
    assert first["turns"][0]["action"].endswith("</search>\n")
    assert first["turns"][0]["observation"].startswith("<information>")
    assert [r["reward"] for r in rows[:3]] == [1.0, 1.0, 0.0] and [r["correct"] for r in rows[:3]] == [
        True,
        True,
        False,
    ]
    assert rows[2]["turns"][-1]["info"]["answer"] == "Old Keld"
    assert "action_ids" not in first["turns"][0]  # no token map without tokens
    old = read.read_rollouts(run, 3)
    assert len({r["group_id"] for r in old}) == 2 and old[0]["task"]["id"] == first["task"]["id"]  # by prompt
    assert rollouts.steps[("step", 1)].metrics() == {"reward": 0.75, "correct_rate": 0.75}


@pytest.mark.parametrize("kind", ["text", "chat"])
def test_trl(tmp_path, kind):
    pytest.importorskip("pyarrow")
    import pyarrow.parquet

    run, rollouts = imported(tmp_path, f"trl-{kind}")
    assert read.rollout_steps(run) == [1, 2, 3] and not rollouts.problems
    rows = read.read_rollouts(run, 2)
    table = pyarrow.parquet.read_table(DATA / f"trl-{kind}/completions/completions_00002.parquet").to_pylist()
    assert len(rows) == len(table) == 8 and len({r["group_id"] for r in rows}) == 2
    for row, raw in zip(rows, table, strict=True):
        assert row["reward"] == pytest.approx(raw["short"] + (raw["hit"] or 0.0))
        assert row["advantage"] == raw["advantage"] and row["correct"] is None
        assert row["task"]["golden_answers"] == [raw["solution"]]
        said = raw["completion"] if kind == "text" else raw["completion"][0]["content"]
        asked = raw["prompt"] if kind == "text" else raw["prompt"][1]["content"]
        assert row["turns"][0]["action"] == said and row["task"]["question"] == asked
    assert ("system" in rows[0]["task"]) == (kind == "chat")


def test_prime_rl_token_exports(tmp_path):
    run, rollouts = imported(tmp_path, "prime_rl")
    rows = read.read_rollouts(run, 4)
    assert len(rows) == len({r["sample_id"] for r in rows}) == 8  # two ranks
    one = rows[0]
    assert [t["prompt_ids"] for t in one["turns"]] == [[3, 4, 5], [6, 7]]
    assert [t["action_ids"] for t in one["turns"]] == [[10, 11], [12]]
    assert one["turns"][0]["action_tokens"] == ["#10", "#11"] and one["turns"][0]["observation"] == "#6 #7"
    assert one["turns"][1]["logprobs"] == [pytest.approx(-0.8964447)]
    assert one["turns"][1]["old_logprobs"] == [pytest.approx(-0.8864447)]
    assert one["turns"][0]["advantages"] == [pytest.approx(0.7)] * 2 and one["advantage"] == pytest.approx(0.7)
    assert one["reward"] is None and len({r["group_id"] for r in rows}) == 1
    means = rollouts.steps[("step", 4)].metrics()
    assert "reward" not in means and means["response_length"] == 3.5


def test_token_ids_become_text_with_the_tokenizer(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    words = {f"w{i}": i for i in range(20)}
    tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0")).save(str(tmp_path / "tokenizer.json"))
    run, _ = imported(tmp_path, "prime_rl", tokenizer=tmp_path)
    one = read.read_rollouts(run, 4)[0]
    assert one["turns"][0]["action_tokens"] == ["w10", "w11"] and one["task"]["question"] == "w3 w4 w5"
    with pytest.raises(AgentRLError, match=r"--tokenizer .*there is no"):
        RolloutImport(DATA, tokenizer=tmp_path / "nowhere")


def test_verifiers_traces_as_prime_rl_stores_them(tmp_path):
    run, _ = imported(tmp_path, "verifiers")
    rows = read.read_rollouts(run, 7)
    assert sorted(r["sample_id"] for r in rows) == [f"trace{i}" for i in range(5)]  # `effective` and the rest of `all`
    one = next(r for r in rows if r["sample_id"] == "trace1")
    assert one["task"]["question"] == "Where was person 1 born?" and one["task"]["system"] == "Use the search tool."
    assert one["group_id"] == "g1" and one["policy_version"] == 6 and one["reward"] == pytest.approx(0.1)
    assert one["turns"][0]["action"].startswith("<think>I search.</think>\n<tool_call>search(")
    assert one["turns"][0]["observation"] == "<b>Person was born in Varn</b>"
    assert one["turns"][0]["prompt_ids"] == [1, 2, 3, 4, 5, 6] and one["turns"][0]["action_ids"] == [7, 8, 9]
    assert one["turns"][1]["prompt_ids"] == [10, 11, 12] and one["turns"][1]["logprobs"] == [-0.5, -0.6]
    failed = next(r for r in rows if r["sample_id"] == "trace4")
    assert failed["error"] == "ToolError: the search server is away" and failed["reward"] is None


def test_a_trace_with_two_branches_is_two_rows_and_a_circle_is_counted(tmp_path):
    node = {"message": {"role": "user", "content": "q"}, "parent": None}
    told = [{"message": {"role": "assistant", "content": c}, "parent": 0, "sampled": True} for c in "ab"]
    tree = {"id": "t", "task": {}, "nodes": [node, *told]}
    circle = {"id": "c", "task": {}, "nodes": [{**node, "parent": 1}, {**node, "parent": 0}, {**node, "parent": 1}]}
    run, rollouts = imported(tmp_path, write(tmp_path / "in" / "traces.jsonl", tree, circle))
    rows = read.read_rollouts(run, 0, "eval")
    assert [(r["sample_id"], r["turns"][0]["action"]) for r in rows] == [("t/0", "a"), ("t/1", "b")]
    assert rollouts.problems == {"traces whose messages are no tree": 1}


def test_slime(tmp_path):
    pytest.importorskip("torch")
    run, rollouts = imported(tmp_path, "slime")
    assert read.rollout_steps(run) == [5] and read.rollout_steps(run, "eval") == [5] and not rollouts.problems
    rows = read.read_rollouts(run, 5)
    assert [r["reward"] for r in rows] == [1.0, 0.0, 1.0, 0.0] and rows[3]["truncated"]
    assert [r["group_id"] for r in rows] == ["5/0", "5/0", "5/1", "5/1"] and rows[0]["policy_version"] == 4
    assert [t["action_ids"] for t in rows[0]["turns"]] == [[20, 21], [22]]
    assert rows[1]["turns"][0]["action"] == "I call " and rows[1]["turns"][0]["logprobs"] == [-0.1, -0.2]
    assert rows[0]["turns"][-1]["info"]["answer"] == "2" and rows[0]["task"]["golden_answers"] == ["2"]


class Evil:
    def __reduce__(self):
        return (os.system, (f"touch {os.environ['EVIL']}",))


def test_a_slime_file_that_would_run_code_is_refused_with_the_way_to_convert_it(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setenv("EVIL", str(tmp_path / "ran"))
    torch.save({"rollout_id": 3, "samples": [Evil()]}, tmp_path / "3.pt")
    run, rollouts = imported(tmp_path, tmp_path / "3.pt")
    assert not (tmp_path / "ran").exists() and read.rollout_steps(run) == []
    (problem,) = rollouts.problems
    assert "could run code" in problem and "weights_only=False" in problem and "3.pt" in problem
    pickle.loads(pickle.dumps(Evil()))  # what it would have done
    assert (tmp_path / "ran").exists()


@pytest.mark.slow
def test_the_line_that_converts_a_slime_file_works(tmp_path):
    torch = pytest.importorskip("torch")
    numpy = pytest.importorskip("numpy")
    sample = {
        "prompt": "q",
        "response": "<answer>1</answer>",
        "reward": 1.0,
        "index": 0,
        "metadata": {"x": numpy.ones(2)},
    }
    torch.save({"rollout_id": 3, "samples": [sample]}, tmp_path / "3.pt")
    _, before = imported(tmp_path, tmp_path / "3.pt")
    command = next(iter(before.problems)).partition("written: ")[2]
    subprocess.run(command.replace("python -c", f"{sys.executable} -c", 1), shell=True, check=True, cwd=tmp_path)
    run, after = imported(tmp_path, tmp_path / "3.pt.plain.pt")
    assert read.read_rollouts(run, 3)[0]["reward"] == 1.0 and not after.problems


def test_other_pt_files_are_not_opened(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "model_0.pt")
    (tmp_path / "torn_1.pt").write_bytes(b"PK\x03\x04 and no more")
    with zipfile.ZipFile(tmp_path / "plain_2.pt", "w") as archive:
        archive.writestr("a/data.pkl", b"no pickle")
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("opened"))
    _, rollouts = imported(tmp_path, tmp_path)
    assert rollouts.formats == {} and rollouts.steps == {}
    assert Slime.recognises(DATA / "slime/5.pt", None) == base.SURE


# ------------------------------------------------------------------------------------------------------------ bad input


def test_broken_rows_are_counted_and_the_others_are_read(tmp_path):
    file = write(
        tmp_path / "d" / "7.jsonl",
        '{"input": "torn',
        *verl(7, 2),
        "[1, 2]",
        {"input": "x", "score": 1.0, "step": 7},
        {"input": "x", "output": "y", "score": math_nan(), "step": 7},
        {"prompt": "of another version", "output": "y"},
        *verl("seven"),  # type: ignore[arg-type]
        *verl(10**12),
        "\xff\xfe",
        "[" * 100_000,
    )
    run, rollouts = imported(tmp_path, file.parent)
    rows = read.read_rollouts(run, 7)
    assert [r["reward"] for r in rows] == [1.0, 1.0, None]
    assert rollouts.problems == {
        "rows that are torn or no JSON objects": 4,
        "rows without input and output": 2,
        "rows without a step": 2,
    }
    assert any("4 rows that are torn" in line for line in rollouts.summary())


def math_nan() -> float:
    return float("nan")


def test_a_file_without_steps_takes_the_step_from_its_name(tmp_path):
    row = {k: v for k, v in verl(0)[0].items() if k != "step"}
    write(tmp_path / "d" / "12.jsonl", row)
    write(tmp_path / "d" / "samples.jsonl", row)
    run, rollouts = imported(tmp_path, tmp_path / "d")
    assert read.rollout_steps(run) == [12] and rollouts.problems == {"rows without a step": 1}


def test_verls_validation_rollouts_are_evaluations(tmp_path):
    write(tmp_path / "testbed" / "rollout_data" / "2.jsonl", *verl(2))
    write(tmp_path / "testbed" / "validation_data" / "2.jsonl", *verl(2, 3))
    run, rollouts = imported(tmp_path, tmp_path / "testbed")
    assert not rollouts.problems
    assert [len(read.read_rollouts(run, 2, kind)) for kind in ("step", "eval")] == [1, 3]


def test_token_rows_without_ids_or_of_another_schema_are_counted(tmp_path):
    good = {"schema_version": 1, "step": 1, "token_ids": [1, 2], "loss_mask": [False, True]}
    file = write(
        tmp_path / "d" / "rank_0.jsonl",
        good,
        good | {"token_ids": None},
        good | {"loss_mask": [True]},
        good | {"token_ids": ["1", 2]},
        good | {"schema_version": 9},
        good | {"inference_logprobs": [None, "x"], "entropy": [1.0]},
    )
    run, rollouts = imported(tmp_path, file)
    rows = read.read_rollouts(run, 1)
    assert len(rows) == 2 and all("logprobs" not in t and "entropy" not in t for r in rows for t in r["turns"])
    assert sum(rollouts.problems.values()) == 4


def test_formats_may_be_mixed_in_a_folder_and_other_files_are_left_alone(tmp_path):
    shutil.copytree(DATA, tmp_path / "in")
    write(tmp_path / "in" / "metrics.jsonl", {"step": 1, "reward": 0.5})
    (tmp_path / "in" / "notes.txt").write_text("x")
    run, rollouts = imported(tmp_path, tmp_path / "in")
    assert rollouts.formats["verl"] == 3 and rollouts.formats["verifiers"] == 2
    assert len(read.read_rollouts(run, 7)) == 5
    # TRL's two folders and verl's have the steps 1 to 3: the first keeps them, the rest is counted
    assert sum(n for what, n in rollouts.problems.items() if "has already" in what) == 48


def test_pipes_circles_and_folders_that_may_not_be_read(tmp_path, monkeypatch):
    write(tmp_path / "in" / "1.jsonl", *verl(1))
    os.mkfifo(tmp_path / "in" / "pipe.jsonl")
    (tmp_path / "in" / "again").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "2.jsonl").symlink_to("3.jsonl")
    (tmp_path / "in" / "3.jsonl").symlink_to("2.jsonl")
    (tmp_path / "in" / "closed").mkdir()
    write(tmp_path / "in" / "closed.jsonl", *verl(4))
    scandir, open_ = os.scandir, Path.open

    def refuse(path, *args, **kwargs):  # root may read everything
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    def refuse_file(path, *args, **kwargs):
        if path.name == "closed.jsonl":
            raise PermissionError(13, "Permission denied", str(path))
        return open_(path, *args, **kwargs)

    monkeypatch.setattr(os, "scandir", refuse)
    monkeypatch.setattr(Path, "open", refuse_file)
    run, rollouts = imported(tmp_path, tmp_path / "in")
    assert read.rollout_steps(run) == [1]
    found = rollouts.problems
    assert found.pop("names that are no files (pipes, devices), which are not opened") == 1
    assert found.pop("folders without the right to read them") == 1
    assert found.pop("files without the right to read them") == 1
    assert found == {"names that lead to no file (Too many levels of symbolic links)": 2}


def test_a_large_file_needs_little_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "LONGEST", 1 << 20)
    with (tmp_path / "1.jsonl").open("w") as file:
        for step in range(40):
            for row in verl(step, 4, output="x" * 100_000):
                file.write(json.dumps(row) + "\n")
        file.write('{"input": "' + "y" * (3 << 20) + '"}\n')  # a line that no memory should hold
        file.write(json.dumps(verl(99)[0]) + "\n")
    tracemalloc.start()
    run, rollouts = imported(tmp_path, tmp_path / "1.jsonl")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "1.jsonl").stat().st_size > 19e6 and peak < 8e6, peak
    assert read.rollout_steps(run) == [*range(40), 99] and len(read.read_rollouts(run, 0)) == 4
    assert rollouts.problems == {"rows longer than 64 MiB": 1}


def test_steps_that_come_back_are_written_whole(tmp_path):
    rows = [row for turn in range(3) for step in range(20) for row in verl(step, score=float(turn))]
    run, _ = imported(tmp_path, write(tmp_path / "1.jsonl", *rows))
    assert all([r["reward"] for r in read.read_rollouts(run, s)] == [0.0, 1.0, 2.0] for s in range(20))


def test_a_step_that_is_too_large_is_cut_and_said(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "MOST", 5000)
    run, rollouts = imported(tmp_path, write(tmp_path / "1.jsonl", *verl(1, 50)))
    kept = len(read.read_rollouts(run, 1))
    assert 0 < kept < 50 and sum(rollouts.problems.values()) == 50 - kept
    assert rollouts.steps[("step", 1)].rollouts == kept


def test_an_import_that_is_broken_off_leaves_no_half_file(tmp_path, monkeypatch):
    def stop(self, row):
        raise KeyboardInterrupt

    run, _ = imported(tmp_path, "verl")
    monkeypatch.setattr(store.Means, "add", stop)
    with pytest.raises(KeyboardInterrupt):
        imported(tmp_path, "verl")
    assert sorted(p.name for p in (run / "rollouts").iterdir()) == [f"step-00000{s}.jsonl.gz" for s in (1, 2, 3)]


def test_a_broken_parquet_file_is_counted(tmp_path):
    pytest.importorskip("pyarrow")
    shutil.copytree(DATA / "trl-text/completions", tmp_path / "c")
    (tmp_path / "c" / "completions_00002.parquet").write_bytes(b"PAR1 and no more")
    run, rollouts = imported(tmp_path, tmp_path / "c")
    assert read.rollout_steps(run) == [1, 3] and "Parquet files that are broken" in next(iter(rollouts.problems))


def test_names_that_do_not_exist(tmp_path):
    with pytest.raises(RunError, match="does not exist"):
        imported(tmp_path, tmp_path / "nowhere")
    with pytest.raises(PluginError, match="did you mean 'verl'"):
        imported(tmp_path, "verl", form="verll")


COLUMNS = ["input", "output", "score", "step", "gts", "token_ids", "loss_mask", "traces", "nodes", "task", "run", "id"]
COLUMNS += ["errors", "env", "rewards"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted({
        "input", "output", "score", "step", "gts", "uid", "acc", "token_ids", "loss_mask", "traces", "nodes", "message",
        "parent", "sampled", "role", "content", "tool_calls", "mask", "task", "data", "prompt", "errors", "rewards",
        "group", "run", "work", "calls", "id", "env", "logprobs", "entropy", "advantages", "function",
    })), inner, max_size=8),
    max_leaves=25,
)  # fmt: skip


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["verl", "prime_rl", "verifiers"]),
    st.dictionaries(st.sampled_from(COLUMNS), json_values, max_size=9),
)
def test_no_row_crashes_an_import_and_each_is_read_or_counted(tmp_path_factory, form, row):
    folder = tmp_path_factory.mktemp("any")
    file = write(folder / "1.jsonl", row)
    run, rollouts = imported(folder, file, form=form)
    stored = sum(m.rollouts for m in rollouts.steps.values())
    assert stored + sum(rollouts.problems.values()) >= 1
    for kind, step in rollouts.steps:
        for got in read.read_rollouts(run, step, kind):  # type: ignore[arg-type]
            assert got["correct"] in (True, False, None) and isinstance(got["turns"], list)
            assert isinstance(read.text_of(got), str)


@given(st.lists(st.tuples(st.integers(0, 50), st.booleans()), max_size=40))
def test_turns_of_tokens_keep_every_token_once_and_in_order(pairs):
    ids, mask = [i for i, _ in pairs], [m for _, m in pairs]
    values = [float(n) for n in range(len(ids))]
    turns = base.turns_of_tokens(ids, mask, {"entropy": values}, Words())
    assert [i for t in turns for i in t["action_ids"]] == [i for i, m in pairs if m]
    assert [v for t in turns for v in t["entropy"]] == [v for v, m in zip(values, mask, strict=True) if m]
    end = len(mask) - mask[::-1].index(True) if True in mask else 0
    assert [i for t in turns for i in t["prompt_ids"]] == [i for i, m in pairs[:end] if not m]


@given(st.text(alphabet="ab<>/ information", max_size=60))
def test_turns_of_a_text_lose_nothing_of_it(text):
    turns = base.turns_of_text(f"{text}<information>x</information>{text}")
    joined = "".join(t["action"] + t["observation"] for t in turns)
    assert joined.strip() == f"{text}<information>x</information>{text}".strip()


def test_answers_in_texts():
    assert base.answer_in("<answer> a </answer> <answer>b</answer> c") == "b"
    assert base.answer_in(r"so \boxed{\frac{1}{2}} it is") == r"\frac{1}{2}"
    assert base.answer_in(r"\boxed{open") == r"\boxed{open" and base.answer_in("  ") is None


# --------------------------------------------------------------------------------------------- import, watch, search


def run_import(*arguments: str) -> int:
    import argparse

    parser = argparse.ArgumentParser()
    importing.add_arguments(parser)
    return importing.run(parser.parse_args(list(arguments)))


def test_import_makes_a_run_of_rollouts_alone(tmp_path, capsys):
    assert run_import(str(DATA / "verl"), "--to", str(tmp_path / "r")) == 0
    out = capsys.readouterr()
    assert out.out.strip() == str(tmp_path / "r") and "3 files of verl; 24 rollouts of 3 steps (1 to 3)" in out.err
    rows = read.read_metrics(tmp_path / "r")
    assert [(r["step"], r["reward"]) for r in rows] == [(1, 0.75), (2, 0.625), (3, 0.625)]
    assert read.read_info(tmp_path / "r").status == "finished"
    assert run_import(str(DATA / "verl"), "--to", str(tmp_path / "r")) == 0  # again: the same run
    assert len(read.read_metrics(tmp_path / "r")) == 3


def test_import_takes_a_log_and_its_rollouts(tmp_path, capsys):
    log = write(tmp_path / "log.jsonl", *[{"step": s, "reward": 0.5} for s in range(1, 4)])
    assert run_import(str(log), "--rollouts", str(DATA / "verl"), "--to", str(tmp_path / "r")) == 0
    assert len(read.read_metrics(tmp_path / "r")) == 3 and read.rollout_steps(tmp_path / "r") == [1, 2, 3]


def test_import_of_an_output_folder_with_both_takes_both(tmp_path, capsys):
    pytest.importorskip("pyarrow")
    shutil.copytree(DATA / "trl-text", tmp_path / "out")
    state = {"log_history": [{"step": s, "reward": 0.1, "loss": 0.0} for s in range(1, 4)]}
    (tmp_path / "out" / "checkpoint-3").mkdir()
    (tmp_path / "out" / "checkpoint-3" / "trainer_state.json").write_text(json.dumps(state))
    assert run_import(str(tmp_path / "out"), "--to", str(tmp_path / "r")) == 0
    assert [r["reward"] for r in read.read_metrics(tmp_path / "r")] == [0.1] * 3
    assert read.rollout_steps(tmp_path / "r") == [1, 2, 3]


def test_nothing_to_import_is_exit_code_2(tmp_path, capsys):
    file = write(tmp_path / "1.jsonl", {"input": "x", "score": 1, "output": None})
    assert run_import(str(file), "--to", str(tmp_path / "r")) == 2
    assert "1 rows without input and output" in capsys.readouterr().err


def test_the_default_name_is_that_of_the_run(tmp_path):
    assert importing._name(tmp_path / "exp" / "rollout_data") == "exp"
    assert importing._name(tmp_path / "exp" / "completions" / "completions_00001.parquet") == "exp"
    assert importing._name(tmp_path / "exp") == "exp" and importing._name(tmp_path / "a" / "train.log") == "train"


def test_what_grows_is_read_again_and_the_rest_is_not(tmp_path, monkeypatch):
    write(tmp_path / "in" / "1.jsonl", *verl(1, 2))
    rollouts = RolloutImport(tmp_path / "in")
    assert rollouts.refresh(tmp_path / "r") == [("step", 1)] and rollouts.refresh(tmp_path / "r") == []
    write(tmp_path / "in" / "2.jsonl", *verl(2))
    assert rollouts.refresh(tmp_path / "r") == [("step", 2)]
    write(tmp_path / "in" / "1.jsonl", *verl(1, 5))
    assert rollouts.refresh(tmp_path / "r") == [("step", 1)] and len(read.read_rollouts(tmp_path / "r", 1)) == 5


def test_another_rank_of_a_step_means_reading_all_of_it(tmp_path):
    shutil.copytree(DATA / "prime_rl", tmp_path / "in")
    late = tmp_path / "in/token_exports/step_4/rank_1.jsonl"
    text = late.read_text()
    late.unlink()
    rollouts = RolloutImport(tmp_path / "in")
    rollouts.refresh(tmp_path / "r")
    assert len(read.read_rollouts(tmp_path / "r", 4)) == 4
    late.write_text(text)
    rollouts.refresh(tmp_path / "r")
    assert len(read.read_rollouts(tmp_path / "r", 4)) == 8


def test_a_format_of_ones_own_is_a_plugin(tmp_path):
    write(tmp_path / "1.jsonl", {"mine": "hello"})
    run, _ = imported(tmp_path, tmp_path / "1.jsonl", form="tests.runs.test_others:Mine")
    assert read.read_rollouts(run, 0)[0]["turns"][0]["action"] == "hello"
    assert {p.name for p in plugins.available("rollout source")} == set(detect.names())


class Mine(base.RolloutSource):
    @classmethod
    def recognises(cls, path, first):
        return base.NO

    def rollouts(self):
        for i, row in enumerate(self.objects()):
            yield base.Rollout("step", 0, base.row_of(f"0.{i}", "0", [base.turn(row["mine"])]))


def test_damaged_steps_do_not_stop_a_search(tmp_path):
    run, _ = imported(tmp_path, "verl")
    damaged = run / "rollouts" / "step-000002.jsonl.gz"
    damaged.write_bytes(gzip.compress(b'{"sample_id": "x"}\n' * 9)[:-6])
    hits = [(step, row["sample_id"]) for step, row in read.search_rollouts(run, [1, 2, 3], text="old KELD") if row]
    assert {s for s, _ in hits} == {1, 3}
    prompt = read.read_rollouts(run, 1)[0]["task"]["id"]
    same = [step for step, row in read.search_rollouts(run, [1, 2, 3], prompt=prompt) if row]
    assert same == [1] * 4 + [3] * 4


def test_watch_keeps_reading_rollouts_while_it_looks_and_at_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "ROLLOUTS_S", 0.0)
    write(tmp_path / "in" / "1.jsonl", *verl(1))
    rollouts = RolloutImport(tmp_path / "in")
    recorder = recording.RunRecorder(tmp_path / "r", str(tmp_path / "log"), live=True, rollouts=rollouts)
    recorder.looked()
    assert read.rollout_steps(tmp_path / "r") == [1]
    write(tmp_path / "in" / "2.jsonl", *verl(2))
    recorder.close()
    assert read.rollout_steps(tmp_path / "r") == [1, 2]


def test_watch_takes_rollouts_only_with_a_run_to_keep_them_in(tmp_path, capsys):
    log = write(tmp_path / "log.jsonl", *[{"step": s, "reward": 0.5} for s in range(1, 4)])
    assert main(["watch", str(log), "--once", "--rollouts", str(DATA / "verl")]) == 2
    assert "needs --to RUN" in capsys.readouterr().err
    run = tmp_path / "r"
    assert main(["watch", str(log), "--once", "--rollouts", str(DATA / "verl"), "--to", str(run), "--gpus", "8"]) == 0
    assert read.rollout_steps(run) == [1, 2, 3] and "24 rollouts of 3 steps" in capsys.readouterr().err
    assert json.loads((run / "meta.json").read_text())["gpus"] == 8

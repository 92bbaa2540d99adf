"""`eval` on a run, on a model's folder, and on what is neither."""

import json
import shutil

import pytest

from agentrl.cli import main
from agentrl.runs.read import read_evals


def results(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_run_is_evaluated_again_as_it_was_during_training(finished_run, capsys):
    recorded = {row["step"]: row["em"] for row in read_evals(finished_run)}
    for step in (1, 2):
        assert main(["eval", str(finished_run), "--checkpoint", str(step), "--json"]) == 0
        out = results(capsys)
        assert out["model"].endswith(f"step-{step:06d}/model") and out["questions"] == {"held-out": 6}
        assert out["results"]["greedy"]["average"] == pytest.approx(recorded[step])


def test_samples_add_avg_and_pass_at_k(finished_run, capsys):
    assert main(["eval", str(finished_run), "--samples", "3", "--questions", "4", "--json"]) == 0
    out = results(capsys)
    sampled = out["results"]["T=1"]["suites"]["held-out"]
    assert {"avg", "pass@2", "pass@3"} <= set(sampled) and "pass@4" not in sampled and sampled["questions"] == 4
    assert "pass@2" not in out["results"]["greedy"]["suites"]["held-out"]
    assert sampled["avg"]["value"] <= sampled["pass@2"]["value"] <= sampled["pass@3"]["value"]


def test_the_table_is_text_or_markdown(finished_run, capsys):
    assert main(["eval", str(finished_run), "--questions", "2"]) == 0
    text = capsys.readouterr()
    assert text.out.splitlines()[0].split() == ["method", "held-out", "average"]
    assert "questions: held-out 2" in text.out and "Traceback" not in text.err
    assert main(["eval", str(finished_run), "--questions", "2", "--samples", "2", "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "|---|---|---|" and lines[3].startswith("| T=1 avg@2 |")


def test_a_model_folder_needs_a_config(finished_run, tmp_path, capsys):
    model = str(shutil.copytree(finished_run / "checkpoints" / "step-000002" / "model", tmp_path / "model"))
    assert main(["eval", model]) == 2
    assert f"agentrl eval {model} CONFIG" in capsys.readouterr().err
    assert main(["eval", model, str(finished_run / "config.yaml"), "--questions", "3", "--json"]) == 0
    assert results(capsys)["questions"] == {"held-out": 3}


def test_another_test_set_becomes_a_suite(finished_run, tmp_path, capsys):
    from agentrl.envs.worlds import make_world

    world = make_world("search", 3, people=24, companies=10, cities=8, regions=6)
    rows = list(world.questions("test"))[:3]
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps({k: r[k] for k in ("question", "golden_answers")}) + "\n" for r in rows))
    assert main(["eval", str(finished_run), "--suite", str(file), "--json"]) == 0
    assert results(capsys)["questions"] == {"mine": 3}


def test_sets_of_one_name_keep_apart(finished_run, tmp_path, capsys):
    suites = []
    for n in (1, 2):
        (tmp_path / str(n)).mkdir()
        file = tmp_path / str(n) / "test.jsonl"
        file.write_text((json.dumps({"question": "school of reno ?", "golden_answers": ["x"]}) + "\n") * n)
        suites += ["--suite", str(file)]
    assert main(["eval", str(finished_run), *suites, "--json"]) == 0
    assert results(capsys)["questions"] == {"test": 1, suites[3]: 2}


def test_several_models_are_rows_of_one_table(finished_run, capsys):
    step_1 = str(finished_run / "checkpoints" / "step-000001" / "model")
    command = ["eval", str(finished_run), str(finished_run / "config.yaml"), "--beside", step_1]
    assert main([*command, "--json"]) == 0
    out = results(capsys)
    recorded = {row["step"]: row["em"] for row in read_evals(finished_run)}
    name = finished_run.name
    assert set(out["results"]) == {f"{name} greedy", "model greedy"} and out["models"]["model"] == step_1
    assert out["results"]["model greedy"]["average"] == pytest.approx(recorded[1])
    assert out["results"][f"{name} greedy"]["average"] == pytest.approx(recorded[2])
    assert main([*command, "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith(f"| {name} greedy |") and lines[3].startswith("| model greedy |")


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        (["--checkpoint", "7"], "no checkpoint of step 7; there are 1, 2"),
        (["--samples", "0"], "--samples 0"),
        (["--temperature", "-1", "--samples", "2"], "--temperature -1"),
        (["--temperature", "nan"], "--temperature nan"),
        (["--temperature", "inf"], "--temperature inf"),
        (["--temperature", "0", "--samples", "2"], "--temperature 0 gives the same response every time"),
        (["--questions", "-3"], "--questions -3"),
        (["--beside", "/nowhere"], "/nowhere is not a run directory"),
        (["--set", "eval.question=3"], "did you mean 'questions'?"),
        (["--suite", "/nowhere/at/all.jsonl"], "/nowhere/at/all.jsonl"),
    ],
)
def test_mistakes_are_named(finished_run, capsys, more, wanted):
    assert main(["eval", str(finished_run), *more]) == 2
    assert wanted in capsys.readouterr().err


def test_rows_of_one_table_are_of_the_same_questions(finished_run, tmp_path, capsys, monkeypatch):
    other = tmp_path / "other"
    shutil.copytree(finished_run, other)
    text = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(text.replace("kind: search", "kind: arithmetic"))
    assert text.count("kind: search") == 1
    monkeypatch.setattr("agentrl.train.build.build_job", lambda *a, **k: pytest.fail("something was played"))
    assert main(["eval", str(finished_run), "--beside", str(other)]) == 2
    assert "held-out questions of arithmetic. Name them with --suite" in capsys.readouterr().err


def test_a_suite_is_whole_unless_somebody_says_otherwise(finished_run, tmp_path, capsys):
    file = tmp_path / "five.jsonl"
    file.write_text((json.dumps({"question": "school of reno ?", "golden_answers": ["x"]}) + "\n") * 5)
    for more, asked in (([], 5), (["--set", "eval.questions=2"], 2), (["--questions", "3"], 3)):
        assert main(["eval", str(finished_run), "--suite", str(file), "--json", *more]) == 0
        assert results(capsys)["questions"] == {"five": asked}


def test_a_damaged_checkpoint_is_not_evaluated(finished_run, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(finished_run, copy)
    weights = copy / "checkpoints" / "step-000002" / "model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert main(["eval", str(copy), "--checkpoint", "2"]) == 2
    assert "SHA-256" in capsys.readouterr().err
    assert main(["eval", str(copy), "--questions", "1", "--json"]) == 0  # the newest whole one
    assert results(capsys)["model"].endswith("step-000001/model")


def test_an_earlier_checkpoint_beside_the_newest_is_two_rows(finished_run, capsys):
    command = ["eval", str(finished_run), "--checkpoint", "1", "--beside", str(finished_run)]
    assert main([*command, "--json"]) == 0
    out = results(capsys)
    recorded = {row["step"]: row["em"] for row in read_evals(finished_run)}
    name = finished_run.name
    assert {label: r["average"] for label, r in out["results"].items()} == {
        f"{name} step-000001 greedy": pytest.approx(recorded[1]),
        f"{name} step-000002 greedy": pytest.approx(recorded[2]),
    }
    [(label, cells)] = out["differences"].items()
    assert label == f"{name} step-000002 greedy − {name} step-000001 greedy" and "other_limits" not in out
    assert cells[0]["value"] == pytest.approx(recorded[2] - recorded[1]) and cells[0]["low"] < cells[0]["high"]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "difference " in text and "*" not in text


def test_a_run_with_other_limits_is_marked(finished_run, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(finished_run, other)
    text = (other / "config.yaml").read_text()
    assert text.count("max_tokens_per_turn: 16") == 1
    (other / "config.yaml").write_text(text.replace("max_tokens_per_turn: 16", "max_tokens_per_turn: 12"))
    assert main(["eval", str(finished_run), "--beside", str(other)]) == 0
    out = capsys.readouterr().out
    assert "other* greedy" in out and "* other was made with rollout.max_tokens_per_turn 12, not 16" in out
    assert main(["eval", str(finished_run), "--beside", str(other), "--json"]) == 0
    assert results(capsys)["other_limits"] == {"other": ["rollout.max_tokens_per_turn 12, not 16"]}


def test_a_subset_is_stated_and_a_test_set_that_was_trained_on_is_told(finished_run, tmp_path, capsys):
    from agentrl.envs.worlds import make_world

    world = make_world("search", 3, people=24, companies=10, cities=8, regions=6, hops=[1])
    rows = [{k: r[k] for k in ("question", "golden_answers")} for r in list(world.questions("train"))[:5]]
    file, copy = tmp_path / "mine.jsonl", tmp_path / "copy.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    copy.write_bytes(file.read_bytes())
    command = ["eval", str(finished_run), "--suite", str(file), "--suite", str(copy), "--questions", "3"]
    assert main(command) == 0
    said = capsys.readouterr()
    assert "questions: mine 3 of 5, copy 3 of 5" in said.out and "a fixed random subset" in said.out
    assert "mine: 5 of 5 questions are training questions, too" in said.err
    assert "are one file under two names" in said.err

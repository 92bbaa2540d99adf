"""`rollouts show` on a real run, and on hostile text."""

import json
from pathlib import Path

import pytest

from agentrl.cli import main
from agentrl.commands.rollouts import conversation
from agentrl.runs.others.store import RolloutImport
from agentrl.runs.read import read_rollouts, rollout_steps


def shown(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_last_step_is_shown_as_a_conversation(finished_run, capsys):
    assert main(["rollouts", "show", str(finished_run), "--limit", "2"]) == 0
    out = capsys.readouterr().out
    rows = read_rollouts(finished_run, 1)
    assert f"step 1: 2 of {len(rows)} episodes" in out
    assert rows[0]["sample_id"] in out and rows[0]["task"]["question"] in out and "model" in out
    assert rows[2]["sample_id"] not in out


def test_worst_are_those_with_the_lowest_reward(finished_run, capsys):
    rows = read_rollouts(finished_run, 0)
    assert main(["rollouts", "show", str(finished_run), "--step", "0", "--worst", "3", "--json"]) == 0
    found = shown(capsys)
    assert sorted(r["reward"] for r in found) == sorted(r["reward"] for r in rows)[:3]
    assert main(["rollouts", "show", str(finished_run), "--limit", "0", "--json"]) == 0
    assert len(shown(capsys)) == len(read_rollouts(finished_run, 1)) == 16


def test_groups_evaluations_and_tokens(finished_run, capsys):
    group = read_rollouts(finished_run, 1)[-1]["group_id"]
    assert main(["rollouts", "show", str(finished_run), "--group", group, "--json"]) == 0
    assert {r["group_id"] for r in shown(capsys)} == {group}
    assert main(["rollouts", "show", str(finished_run), "--eval"]) == 0
    assert "evaluation after 2 steps: 5 of 6 episodes" in capsys.readouterr().out
    assert main(["rollouts", "show", str(finished_run), "--tokens", "--limit", "1"]) == 0
    out = capsys.readouterr().out
    turn = read_rollouts(finished_run, 1)[0]["turns"][0]
    assert "log π" in out and "advantage" in out and f"{turn['logprobs'][0]:.3f}" in out


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        (["--step", "9"], "stored are 0 to 1"),
        (["--group", "no"], "has no group 'no'"),
        (["--eval", "--step", "7"], "eval 7"),
    ],
)
def test_what_is_not_there_is_named(finished_run, capsys, more, wanted):
    assert main(["rollouts", "show", str(finished_run), *more]) == 2
    assert wanted in capsys.readouterr().err


def test_a_folder_without_rollouts(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("")
    assert main(["rollouts", "show", str(tmp_path)]) == 2
    assert "no stored episodes" in capsys.readouterr().err


def test_hostile_text_cannot_drive_the_terminal_and_failures_are_told_apart():
    turn = {"action": "\x1b[2J<search> \u202e x </search>", "observation": "\x07bell\x00", "stop": "length"}
    row = {"sample_id": "\x1b]0;t\x07", "error": None, "correct": False, "reward": 0.0, "turns": [turn], "task": {}}
    text = conversation(row)
    assert not {"\x1b", "\x07", "\x00", "\u202e"} & set(text)
    assert "wrong, reward 0" in text and "cut at the token limit" in text
    assert "failed: timeout" in conversation(row | {"error": "timeout", "reward": None})


# --------------------------------------------------------------------------------------------- others' rollouts, graded

OTHERS = Path(__file__).parent.parent / "runs" / "data" / "rollouts"


@pytest.fixture
def others(tmp_path):
    """A run directory with the rollouts of verl."""
    RolloutImport(OTHERS / "verl").refresh(tmp_path / "verl")
    (tmp_path / "verl" / "meta.json").write_text('{"imported": {}}')
    return tmp_path / "verl"


def contrary(answer, golden):
    """A grader that finds Old Keld right, and cannot take one answer."""
    return float(answer == "Old Keld")


def by_length(answer, golden, row):
    if row["sample_id"] == "1.3":
        raise ValueError("no such length")
    return float(len(row["turns"]))


def test_best_and_worst_search_and_one_prompt(others, capsys):
    assert main(["rollouts", "show", str(others), "--step", "1", "--best", "2", "--json"]) == 0
    assert [r["reward"] for r in shown(capsys)] == [1.0, 1.0]
    assert main(["rollouts", "show", str(others), "--search", "OLD keld", "--limit", "0", "--json"]) == 0
    found = shown(capsys)
    assert len(found) == 8 and {r["step"] for r in found} == {1, 2, 3} and not any(r["correct"] for r in found)
    assert main(["rollouts", "show", str(others), "--prompt", "ada rowan", "--limit", "0", "--json"]) == 0
    found = shown(capsys)
    assert len(found) == 12 and len({r["task"]["id"] for r in found}) == 1
    assert main(["rollouts", "show", str(others), "--prompt", found[0]["task"]["id"], "--step", "2", "--json"]) == 0
    assert [r["step"] for r in shown(capsys)] == [2] * 4


def test_a_grader_of_ones_own_is_kept_beside_what_the_trainer_gave(others, capsys):
    assert main(["rollouts", "grade", str(others), "--grader", "exact_match"]) == 0
    assert "step 1: 8 graded, exact_match 0.75 on average; 0 of 8 differ" in capsys.readouterr().out
    assert main(["rollouts", "grade", str(others), "--grader", "gold_recall"]) == 2
    assert "gold_recall reads what the searches found" in capsys.readouterr().err
    grader = "tests.commands.test_rollouts:contrary"
    assert main(["rollouts", "grade", str(others), "--step", "1", "--grader", grader]) == 0
    assert "8 of 8 differ from what is stored" in capsys.readouterr().out
    rows = read_rollouts(others, 1)
    assert all(r["grades"] == {"exact_match": r["reward"], grader: 1 - r["reward"]} for r in rows)
    assert "grades" in read_rollouts(others, 2)[0] and grader not in read_rollouts(others, 2)[0]["grades"]
    assert main(["rollouts", "show", str(others), "--step", "1", "--worst", "1"]) == 0
    assert f"wrong, reward 0, exact_match 0, {grader} 1" in capsys.readouterr().out


def test_a_grader_that_fails_on_one_episode_grades_the_others(others, capsys):
    grader = "tests.commands.test_rollouts:by_length"
    assert main(["rollouts", "grade", str(others), "--step", "1", "--grader", grader]) == 1
    assert "7 graded" in (out := capsys.readouterr().out) and "failed on 1 (first: 1.3: ValueError" in out
    assert {r["sample_id"]: r["grades"][grader] for r in read_rollouts(others, 1)}["1.3"] is None


def test_grading_what_is_not_there(others, capsys):
    assert main(["rollouts", "grade", str(others), "--grader", "exact_mach"]) == 2
    assert "did you mean 'exact_match'" in capsys.readouterr().err
    assert main(["rollouts", "grade", str(others), "--grader", "f1", "--step", "9"]) == 2
    assert "stored are 1 to 3" in capsys.readouterr().err


def test_episodes_without_expected_answers_are_counted(others, tmp_path, capsys):
    RolloutImport(OTHERS / "prime_rl").refresh(others)
    assert main(["rollouts", "grade", str(others), "--step", "4", "--grader", "f1"]) == 0
    assert "0 graded, f1 on none; 8 have no expected answers" in capsys.readouterr().out


def test_only_correct_ones_and_so_many_of_a_question(tmp_path, finished_run, capsys):
    rows = [r for step in rollout_steps(finished_run, "step") for r in read_rollouts(finished_run, step)]
    right = [r for r in rows if r["correct"]]
    out = tmp_path / "right.jsonl"
    code = main(["rollouts", "export", str(finished_run), str(out), "--correct"])
    assert code == (0 if right else 2)
    if right:
        assert [json.loads(line)["sample_id"] for line in out.read_text().splitlines()] == [
            r["sample_id"] for r in right
        ]
    assert main(["rollouts", "export", str(finished_run), str(tmp_path / "one"), "--per-question", "1"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "one").read_text().splitlines()]
    assert len({r["question"] for r in lines}) == len(lines) == len({r["task"]["question"] for r in rows})


def test_ids_beyond_the_tokenizer_are_stored_and_shown_as_what_they_are(tmp_path, capsys):
    from agentrl.train.start import train_run
    from tests.fakes import save_tiny_model
    from tests.small import small_config

    model = save_tiny_model(tmp_path / "m", context=1024)  # 528 rows, fewer tokens
    config = small_config(tmp_path, model, rollout={"max_context": 900, "max_tokens_per_turn": 40}, train={"steps": 1})
    run = train_run(config, quiet=True).run_dir
    tokens = [t for row in read_rollouts(run, 0) for turn in row["turns"] for t in turn["action_tokens"]]
    assert None not in tokens and any(t.startswith("<id 5") for t in tokens)
    assert main(["rollouts", "show", str(run), "--tokens", "--limit", "0"]) == 0
    row = read_rollouts(run, 0)[0]
    row["turns"][0]["action_tokens"][0] = None  # as earlier versions stored them
    assert "<no token>" in conversation(row, tokens=True)


def test_a_lora_checkpoints_own_path_can_be_evaluated_and_alone_is_named(tmp_path, capsys):
    from agentrl.config import ModelConfig
    from agentrl.engines.shared.loading import load_model
    from agentrl.errors import ModelError
    from agentrl.train.start import train_run
    from tests.fakes import save_tiny_model
    from tests.small import small_config

    model = save_tiny_model(tmp_path / "m", context=1024)
    config = small_config(tmp_path, model, model={"lora": {"rank": 2}}, rollout={"max_context": 900}, train={"steps": 1},  # noqa: E501
                          eval={"questions": 2})  # fmt: skip
    folder = train_run(config, quiet=True).run_dir / "checkpoints" / "step-000001"
    for path in (folder, folder / "model"):
        assert main(["eval", str(path), "--questions", "2"]) == 0
    (folder / "manifest.json").unlink()
    with pytest.raises(ModelError, match="holds LoRA adapters alone"):
        load_model(ModelConfig(path=str(folder / "model")), None, 0)

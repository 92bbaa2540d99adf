"""What is tried before a run begins: long questions, one scripted step, a tokenizer without a padding token."""

import json
import re
import shutil

import pytest

from agentrl.cli import main
from agentrl.engines.shared import loading
from agentrl.errors import DataError, ModelError
from agentrl.runs.read import read_metrics, read_rollouts
from agentrl.train.build import build_job, build_world
from agentrl.train.start import resume_run, train_run
from tests.small import small_config, train_until
from tests.train.test_start import config_file
from tests.train.test_surroundings import faulty  # noqa: F401 (a fixture)


def questions(tmp_path, long):
    rows = build_world(small_config(tmp_path)).questions("train")[:8]
    for row in rows[:long]:
        row["question"] = " ".join([row["question"]] * 200)
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def test_long_questions_are_counted_and_left_out(faulty, tmp_path):  # noqa: F811
    config = faulty("a")
    questions(tmp_path, long=3)
    said = []
    job = build_job(config, tmp_path, say=said.append)
    assert len(job.train_tasks) == len(job.test_tasks) == 5
    assert [s.split(" (")[0] for s in said if "longer" in s] == [
        f"data.{split}: 3 of 8 questions are longer than the context allows" for split in ("train", "test")
    ]
    run = train_run(config, quiet=True).run_dir
    assert [r["failed_rollouts"] for r in read_metrics(run)] == [0.0] * 4
    questions(tmp_path, long=8)
    with pytest.raises(DataError, match=r"data.train: 8 of 8 questions are longer .*Raise rollout.max_context"):
        build_job(config, tmp_path, say=said.append)


def test_a_dry_run_plays_one_step_and_counts_long_questions(faulty, tmp_path, capsys):  # noqa: F811
    path = config_file(tmp_path, faulty("a"))
    questions(tmp_path, long=2)
    assert main(["train", str(path), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"one step of .*Faulty-v0: reward [01] for .*; the episode ended", out)
    assert "questions: 8 train, 8 test" in out and "data.train: 2 of 8 questions are longer" in out
    for fault, problem in (("None", "returned the reward None"), ("raise", "ZeroDivisionError: the environment's own")):
        (tmp_path / "fault").write_text(fault)
        assert main(["train", str(path), "--dry-run"]) == 2
        assert re.search(f"problem, environment: .*{problem}", capsys.readouterr().out)
    assert main(["train", str(path), "--dry-run", "--set", "data.train=nowhere.jsonl"]) == 2
    assert "problem, questions: data.train: nowhere.jsonl does not exist" in capsys.readouterr().out


def test_a_tokenizer_without_pad_and_end_is_named(warm_model, monkeypatch):
    real = loading.PreTrainedTokenizerFast.from_pretrained

    def bare(path, **kwargs):
        tokenizer = real(path, **kwargs)
        tokenizer.pad_token = tokenizer.eos_token = None
        return tokenizer

    for chosen in (loading.PreTrainedTokenizerFast, loading.AutoTokenizer):
        monkeypatch.setattr(chosen, "from_pretrained", staticmethod(bare))
    config = small_config("x", warm_model).model
    with pytest.raises(
        ModelError, match=rf"model.path = '{warm_model}' has neither a padding nor an end-of-seq.*eos_token"
    ):
        loading.load_tokenizer(config)


def test_a_tokenizer_folder_without_pad_and_end_is_named_before_a_run_directory_exists(warm_model, tmp_path, capsys):
    """A folder as somebody has it: no special token is named in any of its files."""
    folder = tmp_path / "model"
    shutil.copytree(warm_model, folder)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).exists():
            row = json.loads((folder / name).read_text())
            (folder / name).write_text(
                json.dumps({k: v for k, v in row.items() if k not in ("pad_token", "eos_token")})
            )
    path = config_file(tmp_path, small_config(tmp_path / "runs", folder))
    assert main(["train", str(path)]) == 2
    said = f"the tokenizer of model.path = '{folder}' has neither a padding nor an end-of-sequence token"
    assert said in capsys.readouterr().err and not [*(tmp_path / "runs").iterdir()]
    row = json.loads((folder / "tokenizer_config.json").read_text())
    eos = json.loads((warm_model / "tokenizer_config.json").read_text())["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(row | {"eos_token": eos}))  # what the message asks for
    assert loading.load_tokenizer(small_config("x", folder).model).pad_token == eos


def test_questions_that_changed_since_are_reported(faulty, tmp_path, capsys):  # noqa: F811
    run = train_until(faulty("a", eval={"questions": 2}), steps=2)
    text = (tmp_path / "q.jsonl").read_text()
    (tmp_path / "q.jsonl").write_text(text.replace('"question": "', '"question": "so ', 1))
    resume_run(run)
    err = capsys.readouterr().err
    assert re.search(rf"the train questions are not those that {run} began with \(SHA-256 \w+, now \w+\)", err)
    assert main(["eval", str(run), "--questions", "2"]) == 0
    assert "the test questions are not those that" in capsys.readouterr().err


@pytest.mark.parametrize("concurrency", [1, 32])
def test_a_question_twice_in_a_batch_and_one_of_its_name(faulty, tmp_path, concurrency):  # noqa: F811
    """`2` twice at the border of two epochs used to be called `2.2`, as another question is."""
    names = ["2", "2.2", "3", "3.2", "3#2", "3"]
    config = faulty(
        "a", rollout={"prompts_per_step": 12, "group_size": 2, "concurrency": concurrency}, train={"steps": 2},
        log={"rollout_groups": -1},
    )  # fmt: skip
    rows = [{"id": n, "question": f"what is {n}", "golden_answers": ["x"]} for n in names]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    run = train_run(config, quiet=True).run_dir
    groups = {}
    for t in read_rollouts(run, 0):
        groups.setdefault(t["group_id"], []).append(t["task"]["question"])
    assert len(groups) == 12 and all(len(g) == 2 and len(set(g)) == 1 for g in groups.values())


@pytest.mark.parametrize("mask", [False, True])
def test_truncated_episodes_are_left_out_of_the_loss(tmp_path, warm_model, mask):
    """DAPO's overlong filtering: a mini-batch has the rows that no limit has cut, and its divisor counts those."""
    seen, cut = [], []

    def meddle(trainer):
        update, engine_update = trainer.update, trainer.engine.update

        def watched(step):
            cut.append([t.truncated for t in step.rollouts.used])
            return update(step)

        def rows(batch, *args, **kwargs):
            seen.append(len(batch))
            return engine_update(batch, *args, **kwargs)

        trainer.update, trainer.engine.update = watched, rows

    changes = {
        "algorithm": {"mask_truncated": mask},
        "train": {"steps": 1, "mini_batches": 2},
        "rollout": {"max_turns": 1},
    }
    run = train_until(small_config(tmp_path, warm_model, **changes), meddle=meddle)
    [row] = read_metrics(run)
    assert any(cut[0]) and row["truncated_share"] == sum(cut[0]) / 16
    assert sum(seen) == (16 - sum(cut[0]) if mask else 16)
    assert row.get("truncated_masked_share") == (sum(cut[0]) / 16 if mask else None)

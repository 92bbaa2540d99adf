"""`export`: what it writes is loaded with transformers and peft alone."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from agentrl.cli import main
from agentrl.runs.checkpoint import checkpoint_at
from agentrl.train.build import build_world
from agentrl.train.start import train_run
from tests.small import small_config

IDS = torch.tensor([[3, 5, 8, 13, 21, 34]])


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=IDS).logits


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory, warm_model):
    config = small_config(
        tmp_path_factory.mktemp("lora"), warm_model, model={"lora": {"rank": 4}}, optim={"lr": 1e-2},
        eval={"questions": 2, "every": 1}, log={"checkpoint_every": 1, "keep_checkpoints": 3, "keep_best": "em"},
    )  # fmt: skip
    return train_run(config, quiet=True).run_dir


def test_the_model_of_a_checkpoint_is_exported_as_it_is(warm_model, tmp_path, capsys):
    config = small_config(tmp_path, warm_model, log={"checkpoint_every": 1})
    learned = train_run(config, quiet=True).run_dir
    for step in (1, 2):
        out = tmp_path / "new" / f"model-{step}"
        assert main(["export", str(learned), str(out), "--checkpoint", str(step)]) == 0
        assert f"step-{step:06d}" in capsys.readouterr().out
        model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
        saved = load_file(str(learned / "checkpoints" / f"step-{step:06d}" / "model" / "model.safetensors"))
        mine = model.state_dict()
        assert all(torch.equal(mine[name], value) for name, value in saved.items()) and len(saved) > 10
        words = "question: school of reno ? <search>"
        ids = PreTrainedTokenizerFast.from_pretrained(out)(words)["input_ids"]
        assert ids == build_world(small_config(tmp_path)).tokenizer()(words)["input_ids"] and len(ids) > 4
    first, second = (load_file(str(tmp_path / "new" / f"model-{s}" / "model.safetensors")) for s in (1, 2))
    assert any(not torch.equal(first[k], second[k]) for k in first)
    newest = tmp_path / "newest"
    newest.mkdir()  # an empty folder may be there
    assert main(["export", str(learned), str(newest), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["what"] == "model" and said["checkpoint"].endswith("step-000002")
    assert not [*tmp_path.glob(".*")]


def test_an_adapter_is_merged_by_default(lora_run, warm_model, tmp_path, capsys):
    from peft import PeftModel

    for which, out in (("best", "best"), ("2", "merged")):
        assert main(["export", str(lora_run), str(tmp_path / out), "--checkpoint", which, "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        of = checkpoint_at(lora_run, which if which == "best" else int(which))
        assert (said["what"], said["checkpoint"]) == ("merged model", str(of))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(warm_model, dtype=torch.float32)
    plain = logits(base)
    adapted = logits(PeftModel.from_pretrained(base, of / "model"))
    assert torch.allclose(logits(merged), adapted, atol=1e-4) and not torch.allclose(adapted, plain, atol=1e-3)
    assert not [*(tmp_path / "merged").glob("adapter*")]


def test_the_adapter_alone_from_a_checkpoints_folder(lora_run, warm_model, tmp_path, capsys):
    from peft import PeftModel

    folder = lora_run / "checkpoints" / "step-000002"
    assert main(["export", str(folder), str(tmp_path / "adapter"), "--adapter"]) == 0
    assert "adapter of" in capsys.readouterr().out
    base = AutoModelForCausalLM.from_pretrained(warm_model, dtype=torch.float32)
    exported = logits(PeftModel.from_pretrained(base, tmp_path / "adapter"))
    base = AutoModelForCausalLM.from_pretrained(warm_model, dtype=torch.float32)
    assert torch.equal(exported, logits(PeftModel.from_pretrained(base, folder / "model")))


def test_an_adapter_that_does_not_fit_is_refused_and_leaves_nothing(lora_run, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(lora_run, copy, symlinks=True)
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace("targets: all-linear", "targets: [q_proj]"))
    assert "targets: all-linear" in text
    assert main(["export", str(copy), str(tmp_path / "out")]) == 2
    assert "was model.lora changed?" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["copy"]


def test_mistakes_are_named(finished_run, tmp_path, capsys):
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    for more, message in (
        ([str(finished_run), str(full)], "exists and is not empty"),
        ([str(finished_run), str(full / "mine.txt")], "exists and is not empty"),
        ([str(finished_run), str(tmp_path / "x"), "--adapter"], "trains all weights"),
        ([str(finished_run), str(tmp_path / "x"), "--checkpoint", "best"], "log.keep_best"),
        ([str(finished_run), str(tmp_path / "x"), "--checkpoint", "9"], "no checkpoint of step 9; there are 1, 2"),
        ([str(finished_run.with_name("aa")), str(tmp_path / "x")], "did you mean 'a'?"),
    ):
        assert main(["export", *more]) == 2
        assert message in capsys.readouterr().err
    assert (full / "mine.txt").read_text() == "mine" and not (tmp_path / "x").exists()


def test_a_layout_that_is_not_hugging_faces_is_refused(finished_run, tmp_path, capsys, monkeypatch):
    other = tmp_path / "step-000001"
    (other / "model").mkdir(parents=True)
    (other / "model" / "weights.bin").write_text("")
    monkeypatch.setattr("agentrl.runs.checkpoint.checkpoint_at", lambda path, step: other)
    assert main(["export", str(finished_run), str(tmp_path / "x")]) == 2
    assert "is no model in Hugging Face layout" in capsys.readouterr().err

"""meta.json says how many GPUs a run uses, by which the dashboard counts what was spent after the first alarm."""

import json

from agentrl.engines.local.engine import LocalEngine
from agentrl.runs.read import META
from agentrl.train.start import resume_run, train_run
from tests.small import small_config


def meta(run):
    return json.loads((run / META).read_text())


def test_a_run_says_how_many_gpus_it_uses_also_when_a_resume_has_others(tmp_path, warm_model, monkeypatch):
    config = small_config(tmp_path, warm_model, train={"steps": 1})
    run = train_run(config, quiet=True).run_dir
    assert "gpus" not in meta(run)  # on a CPU: absent, not 0
    text = (run / "config.yaml").read_text().replace("steps: 1\n", "steps: 2\n")
    (run / "config.yaml").write_text(text)
    monkeypatch.setattr(LocalEngine, "gpus", 2)
    resume_run(run, quiet=True)
    assert meta(run)["gpus"] == 2 and "questions" in meta(run)
    other = small_config(tmp_path, warm_model, train={"steps": 1}, log={"name": "other"})
    assert meta(train_run(other, quiet=True).run_dir)["gpus"] == 2


def test_the_local_engine_is_one_gpu_or_none():
    import torch

    local = object.__new__(LocalEngine)
    local.device = torch.device("cuda")
    assert local.gpus == 1
    local.device = torch.device("cpu")
    assert local.gpus == 0

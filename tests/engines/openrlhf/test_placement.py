"""The dry run's arithmetic against numbers worked out by hand."""

from types import SimpleNamespace

from agentrl.engines.openrlhf.placement import batch_rows, keeps_reference, memory_rows, placement_rows
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

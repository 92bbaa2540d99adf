"""The estimates of `--dry-run`, against arithmetic by hand for a model of known shape."""

import pytest

from agentrl.commands import dryrun
from agentrl.config import ModelConfig
from agentrl.engines.kind import Shape
from agentrl.engines.local.estimate import memory_rows, step_operations
from agentrl.engines.shared.estimate import action_tokens
from tests.small import small_config

SHAPE = Shape(
    parameters=1_000_000, trainable=250_000, layers=4, kv_heads=2, head_dim=16, hidden=64, vocabulary=500, positions=999
)


def rows(table):
    return {name: value for name, value in table}


@pytest.fixture
def config(tmp_path):
    return small_config(
        tmp_path,
        rollout={"prompts_per_step": 3, "group_size": 5, "max_tokens_per_turn": 20, "max_turns": 4, "max_context": 200},
        train={"steps": 7, "epochs": 2, "micro_batch_tokens": 1000},
    )


def test_memory(config):
    got = rows(memory_rows(config, SHAPE))
    assert got["weights (fp32)"] == "4.0 MB"
    assert got["gradients and AdamW (fp32)"] == "3.0 MB"  # of what is trained: a gradient and two moments, 4 bytes each
    assert got["key/value cache"] == "3.1 MB"  # 15 responses x 200 tokens x 4 layers x 2 x 2 heads x 16 x 4 bytes
    assert got["logits at once"] == "6.0 MB"  # three times 1000 tokens x 500 x 4 bytes
    assert got["Python and libraries"] == "570.0 MB"
    assert got["activations of a micro-batch"] == "17.4 MB"  # 1000 tokens x 64 x 34 x 4 layers x 2 bytes
    assert got["at once"] == "600.4 MB"  # 570 + 4 + 3 + 17.408 + 6; the cache was given back before
    assert "frozen reference" not in got
    assert got["parameters"] == "1,000,000 (250,000 trained)"


def test_an_evaluation_may_need_the_largest_cache(config):
    config.eval.questions, config.eval.batch = 300, 200
    got = rows(memory_rows(config, SHAPE))
    assert got["key/value cache"] == "41.0 MB"  # 200 rows now, as above
    assert got["at once"] == "618.0 MB"  # 570 + 4 + 3 + 40.96: more than activations and logits, which come after it


def test_a_reference_is_a_second_copy_of_the_weights(tmp_path):
    config = small_config(tmp_path, algorithm={"loss": {"kl_coef": 0.1}})
    assert rows(memory_rows(config, SHAPE))["frozen reference"] == "4.0 MB"


def test_time(config, monkeypatch):
    monkeypatch.setattr(dryrun, "_matmul_rate", lambda model: (1e9, "cpu"))
    got = rows(dryrun._time(config, step_operations(config, SHAPE)))
    # a response has 200 tokens in context, 80 of them (4 turns x 20) through the output head of 64 x 500; two
    # operations a weight and token: 15 x 2 x (968,000 x 200 + 32,000 x 80) = 5.8848e9. Sampled once, scored once, and
    # two epochs of a forward and a backward pass, which is three: 8 times
    assert got["operations per step"] == "47.1 GFLOP"
    assert got["time per step"] == "47 s"
    assert got["time for the run"] == "5:30"


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        ({"train": {"mini_batches": 1}}, 4),
        ({"train": {"mini_batches": 2}}, 5),
        ({"train": {"mini_batches": 1}, "algorithm": {"mask_truncated": True}}, 5),
        ({"train": {"mini_batches": 1, "micro_batch_tokens": 640}, "algorithm": {"nthr": {"enabled": True}}}, 4),
        ({"train": {"mini_batches": 1, "micro_batch_tokens": 639}, "algorithm": {"nthr": {"enabled": True}}}, 5),
    ],
)
def test_with_one_update_a_batch_nothing_is_scored_apart(tmp_path, changes, passes):
    """Groups of 4 responses with at most 160 tokens each: whole ones fit into 640."""
    config = small_config(tmp_path, **changes)
    forward = 16 * 2 * ((1_000_000 - 32_000) * 160 + 32_000 * action_tokens(config))
    assert step_operations(config, SHAPE) == pytest.approx(forward * passes)


def test_the_rate_is_of_this_machine():
    rate, device = dryrun._matmul_rate(ModelConfig(device="cpu"))
    assert rate > 1e8 and device == "cpu"

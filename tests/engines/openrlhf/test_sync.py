"""Which weights vLLM lacks: names in groups that survive its fused layers, sums that find what is stale."""

import pytest

from agentrl.engines.openrlhf.sync import SyncError, check, parameter_group, stale_groups

NAMES = {  # transformers and vLLM name the same weights
    "layer 3 attention": ["model.layers.3.self_attn.q_proj.weight", "model.layers.3.self_attn.qkv_proj.weight"],
    "layer 0 mlp": ["model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.gate_up_proj.weight"],
    "layer 12 norms": ["model.layers.12.input_layernorm.weight", "model.layers.12.post_attention_layernorm.weight"],
    "embedding": ["model.embed_tokens.weight"],
    "output head": ["lm_head.weight"],
    "final norm": ["model.norm.weight"],
}


@pytest.mark.parametrize("group", NAMES)
def test_groups(group):
    assert {parameter_group(name) for name in NAMES[group]} == {group}


def test_norms_inside_attention_are_the_same_on_both_sides():
    assert parameter_group("model.layers.1.self_attn.q_norm.weight") == "layer 1 attention"


TRAINER = {"embedding": 100.0, "layer 0 attention": 40.0, "final norm": 8.0}


def test_what_agrees_is_not_stale():
    assert not stale_groups(TRAINER, [dict(TRAINER)])
    assert not stale_groups(TRAINER, [{**TRAINER, "embedding": 100.0 + 1e-5}])


def test_what_differs_or_is_missing_is_named():
    assert stale_groups(TRAINER, [{**TRAINER, "embedding": 100.01}]) == {"embedding": (100.0, 100.01)}
    assert stale_groups(TRAINER, [{"embedding": 100.0, "final norm": 8.0}]) == {"layer 0 attention": (40.0, 0.0)}


def test_tensor_parallel_ranks_hold_parts_or_copies():
    ranks = [{"embedding": 60.0, "layer 0 attention": 25.0, "final norm": 8.0}] * 2
    ranks = [ranks[0], {"embedding": 40.0, "layer 0 attention": 15.0, "final norm": 8.0}]
    assert not stale_groups(TRAINER, ranks)
    assert list(stale_groups(TRAINER, [ranks[0], {**ranks[1], "final norm": 7.9}])) == ["final norm"]


def test_a_tied_head_is_listed_by_one_side_only():
    assert not stale_groups({**TRAINER, "output head": 100.0}, [TRAINER])
    assert not stale_groups(TRAINER, [{**TRAINER, "output head": 100.0}])


def test_check_names_the_group_or_the_head():
    assert check(0, 7, [-1.0, -2.0], [-1.001, -2.0], 0.01, {}) == pytest.approx(0.001)
    with pytest.raises(SyncError, match=r"version 7.*not the trainer's: output head .Σ.w. 2, in vLLM 3"):
        check(1, 7, [-1.0], [-1.0], 0.01, {"output head": (2.0, 3.0)})
    with pytest.raises(SyncError, match=r"up to 0.5 nats.*all its parameters.*output head"):
        check(1, 7, [-1.0], [-1.5], 0.01, {})

"""Which weights vLLM lacks: names in groups that survive its fused layers, sums of bits that find what is stale."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agentrl.engines.openrlhf.buckets import ALL, add_bits, bits, buckets, flat, held_parts, views
from agentrl.engines.openrlhf.sync import (
    OWN,
    Limit,
    gap_error,
    mean_gap,
    parameter_group,
    stale_error,
    stale_groups,
    whole,
)

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


# --------------------------------------------------------------------------------------------------------- the digest

TRAINER = {"embedding": 100, "layer 0 attention": 40, "final norm": 8}


def held(digest):
    return {group: {OWN: value} for group, value in digest.items()}


def test_what_agrees_is_not_stale():
    assert not stale_groups(TRAINER, [held(TRAINER)])


def test_what_differs_by_one_bit_or_is_missing_is_named():
    assert stale_groups(TRAINER, [held({**TRAINER, "embedding": 101})]) == ["embedding"]
    assert stale_groups(TRAINER, [held({"embedding": 100, "final norm": 8})]) == ["layer 0 attention"]


def test_a_tied_head_is_listed_by_one_side_only():
    assert not stale_groups({**TRAINER, "output head": 100}, [held(TRAINER)])
    assert not stale_groups(TRAINER, [held({**TRAINER, "output head": 100})])


def test_a_step_that_bf16_hardly_shows_changes_the_digest():
    weight = torch.randn(512, 512, generator=torch.Generator().manual_seed(0)).bfloat16()
    stale = weight.clone()
    stale[3, 5] = torch.nextafter(weight[3, 5], torch.tensor(9.0).bfloat16())  # one weight, by its last bit
    assert bits(stale) != bits(weight)
    sums = [float(w.abs().sum(dtype=torch.float64)) for w in (weight, stale)]
    assert abs(sums[0] - sums[1]) < 1e-6 * sums[0]  # which a comparison of rounded sums lets through


# -------------------------------------------------------------------------------- vLLM's tensor-parallel ranks, by hand


class Layer(torch.nn.Module):
    """A stand-in with the attributes of vLLM's layers that are read."""

    def __init__(self, **attributes):
        super().__init__()
        self.__dict__.update(attributes)


def layer(kind, **attributes):
    return type(kind, (Layer,), {})(**attributes)


HEADS, SIZE, WIDTH, DEEP, EXPERTS = 8, 4, 16, 24, 6


def qwen3(kv_heads, seed=0):
    """A layer of Qwen3's shape with a router and row-parallel biases, by the names of transformers."""
    g = torch.Generator().manual_seed(seed)

    def make(*shape):
        return torch.randn(*shape, generator=g).bfloat16()

    name = "model.layers.0."
    return {
        name + "self_attn.q_proj.weight": make(HEADS * SIZE, WIDTH),
        name + "self_attn.k_proj.weight": make(kv_heads * SIZE, WIDTH),
        name + "self_attn.v_proj.weight": make(kv_heads * SIZE, WIDTH),
        name + "self_attn.o_proj.weight": make(WIDTH, HEADS * SIZE),
        name + "self_attn.o_proj.bias": make(WIDTH),
        name + "self_attn.q_norm.weight": make(SIZE),
        name + "self_attn.k_norm.weight": make(SIZE),
        name + "mlp.gate.weight": make(EXPERTS, WIDTH),  # a router: whole on every rank
        name + "mlp.up_proj.weight": make(DEEP, WIDTH),
        name + "mlp.down_proj.weight": make(WIDTH, DEEP),
        name + "mlp.down_proj.bias": make(WIDTH),
    }


def shard_of(weights, kv_heads, rank, ranks):
    """What vLLM's rank holds of them, as its worker would report it."""
    w = {name.removeprefix("model.layers.0."): value for name, value in weights.items()}
    sharing = max(1, ranks // kv_heads)

    def rows(name, at=rank, of=ranks):
        return w[name].chunk(of)[at]

    k, v = (rows(f"self_attn.{p}_proj.weight", rank // sharing, ranks // sharing) for p in "kv")
    tp = {"tp_size": ranks, "tp_rank": rank}
    qkv = layer("QKVParallelLinear", **tp, num_heads=HEADS // ranks, head_size=SIZE, num_kv_head_replicas=sharing)
    row, column = layer("RowParallelLinear", **tp), layer("ColumnParallelLinear", **tp)
    router, norm = layer("ReplicatedLinear", **tp), layer("RMSNorm")
    held = [
        (qkv, "self_attn.qkv_proj.weight", torch.cat([rows("self_attn.q_proj.weight"), k, v])),
        (row, "self_attn.o_proj.weight", w["self_attn.o_proj.weight"].chunk(ranks, 1)[rank]),
        (row, "self_attn.o_proj.bias", w["self_attn.o_proj.bias"]),
        (norm, "self_attn.q_norm.weight", w["self_attn.q_norm.weight"]),
        (norm, "self_attn.k_norm.weight", w["self_attn.k_norm.weight"]),
        (router, "mlp.gate.weight", w["mlp.gate.weight"]),
        (column, "mlp.gate_up_proj.weight", rows("mlp.up_proj.weight")),
        (row, "mlp.down_proj.weight", w["mlp.down_proj.weight"].chunk(ranks, 1)[rank]),
        (row, "mlp.down_proj.bias", w["mlp.down_proj.bias"]),
    ]
    out = {}
    for module, name, weight in held:
        group = out.setdefault(parameter_group("model.layers.0." + name), {})
        for who, part in held_parts(module, name.rsplit(".", 1)[1], weight):
            group[who] = group.get(who, 0) + bits(part)
    return out


def trainer_digest(weights):
    out = {}
    add_bits(out, list(weights.items()))
    return out


@pytest.mark.parametrize(("kv_heads", "ranks"), [(4, 1), (4, 2), (4, 4), (2, 4), (1, 4), (2, 8)])
def test_shards_and_copies_of_one_group_are_no_false_alarm(kv_heads, ranks):
    weights = qwen3(kv_heads)
    shards = [shard_of(weights, kv_heads, rank, ranks) for rank in range(ranks)]
    assert whole(shards) == trainer_digest(weights)
    assert not stale_groups(trainer_digest(weights), shards)


@pytest.mark.parametrize("stale", ["self_attn.q_norm.weight", "self_attn.k_proj.weight", "mlp.gate.weight",
                                   "mlp.down_proj.bias", "self_attn.q_proj.weight"])  # fmt: skip
@pytest.mark.parametrize("where", [0, 3])
def test_a_copy_that_is_stale_on_one_rank_is_found(stale, where):
    new, old = qwen3(2), qwen3(2)
    name = "model.layers.0." + stale
    old[name] = old[name] * 1.01
    shards = [shard_of(old if rank == where else new, 2, rank, 4) for rank in range(4)]
    assert stale_groups(trainer_digest(new), shards) == [parameter_group(name)]


# ---------------------------------------------------------------------------------------------------------- the probe


def test_the_mean_gap():
    assert mean_gap([[-1.0, -2.0], [-3.0]], [[-1.5, -2.0], [-3.25]]) == pytest.approx(0.25)
    assert mean_gap([], []) == 0.0
    with pytest.raises(ValueError, match=r"shorter|longer"):
        mean_gap([[-1.0]], [[-1.0, -2.0]])


def test_the_limit_is_a_multiple_of_the_first_hand_over():
    limit = Limit("bfloat16")
    assert limit.nats == 0.25  # before anything is known
    limit.learn(0.044)
    limit.learn(0.2)  # of a later hand-over: the first counts
    assert limit.nats == pytest.approx(0.11)
    assert 0.06 < limit.nats < 0.172  # correct weights, over 256 tokens; weights with 2 % of noise
    small = Limit("float32")
    small.learn(1e-6)
    assert small.nats == 0.01
    assert Limit("bfloat16", fixed=0.3, baseline=0.04).nats == 0.3


def test_errors_name_the_group_or_the_head_and_the_key():
    assert "version 7" in str(stale_error(1, 7, ["output head", "embedding"]))
    assert "output head, embedding" in str(stale_error(1, 7, ["output head", "embedding"]))
    first = str(gap_error(0, 0, 0.5, Limit("bfloat16")))
    assert "0.5 nats on average" in first and "at most 0.25" in first and "openrlhf.sync_tolerance to 1" in first
    later = str(gap_error(0, 9, 0.5, Limit("bfloat16", baseline=0.04)))
    assert "0.04 at the first hand-over, at most 0.1" in later
    assert "openrlhf.sync_tolerance = 0.3" in str(gap_error(0, 9, 0.5, Limit("bfloat16", fixed=0.3)))


# -------------------------------------------------------------------------------------------------------- the transport

SHAPES = st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=3), min_size=1, max_size=12)


@given(SHAPES, st.integers(4, 400), st.integers(0, 9))
def test_buckets_lose_nothing_and_keep_the_order(shapes, limit, seed):
    g = torch.Generator().manual_seed(seed)
    weights = [(str(i), torch.randn(*s, generator=g).to(torch.bfloat16 if i % 4 == 3 else torch.float32))
               for i, s in enumerate(shapes)]  # fmt: skip
    seen = []
    for bucket in buckets(weights, limit):
        size = sum(w.numel() * w.element_size() for _, w in bucket)
        assert size <= limit or len(bucket) == 1
        assert len({w.dtype for _, w in bucket}) == 1
        seen += zip([name for name, _ in bucket], views(flat(bucket), [w.shape for _, w in bucket]), strict=True)
    assert [name for name, _ in seen] == [name for name, _ in weights]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(seen, weights, strict=True))


def test_what_is_everywhere_is_known_by_vllms_own_classes():
    norm = layer("RMSNorm")
    assert [who for who, _ in held_parts(norm, "weight", torch.ones(3))] == [ALL]
    alone = layer("RowParallelLinear", tp_size=1, tp_rank=0)
    assert [who for who, _ in held_parts(alone, "weight", torch.ones(3))] == [ALL]

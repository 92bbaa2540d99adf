"""Optimiser state of any number of workers and either ZeRO stage, read by any other: every weight once."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.engines.openrlhf.shards import (
    _step,
    load_shards,
    pieces_by_parameter,
    pieces_end_to_end,
    pieces_of,
    save_shard,
    shard_file,
)
from agentrl.errors import RunError

ALIGN = 2


def test_stage_2_by_hand():
    groups = [[("a", 3), ("b", 4)]]  # 7 weights and 1 of padding, for two ranks
    first, second = (pieces_end_to_end(groups, [4], rank) for rank in (0, 1))
    assert [(p.name, p.at, p.start, p.length) for p in first] == [("a", 0, 0, 3), ("b", 3, 0, 1)]
    assert [(p.name, p.at, p.start, p.length) for p in second] == [("b", 0, 1, 3)]


def test_stage_3_by_hand():
    groups = [[("a", 3), ("b", 1)]]  # a: 2 + 1 and padding, b: 1 and padding alone
    first, second = (pieces_by_parameter(groups, rank, 2) for rank in (0, 1))
    assert [(p.name, p.at, p.start, p.length) for p in first] == [("a", 0, 0, 2), ("b", 2, 0, 1)]
    assert [(p.name, p.at, p.start, p.length) for p in second] == [("a", 0, 2, 1)]


class Fake:
    """A ZeRO optimiser of one rank, as DeepSpeed lays it out; filled with `of(name, place, key)` where given."""

    def __init__(self, stage, groups, rank, ranks, of=None):
        self.groups = groups
        parameters = [[SimpleNamespace(ds_numel=n, numel=lambda n=n: n) for _, n in g] for g in groups]
        self.names = {id(p): name for g, ps in zip(groups, parameters) for (name, _), p in zip(g, ps)}
        if stage == 3:
            sizes = [sum(-(-n // ranks) for _, n in g) for g in groups]
            self.fp16_groups = parameters
            self.fp32_partitioned_groups_flat = masters = [torch.zeros(s) for s in sizes]
        else:
            step = ALIGN * ranks
            sizes = [-(-sum(n for _, n in g) // step) * step // ranks for g in groups]
            self.round_robin_bit16_groups = parameters
            self.single_partition_of_fp32_groups = masters = [torch.zeros(s) for s in sizes]
        self.masters = masters
        self.optimizer = SimpleNamespace(state={m: {} for m in masters}, param_groups=[{"fused": False}])
        self.pieces = pieces_of(self, self.names, rank, ranks)
        if of is None:
            return
        for m in masters:
            self.optimizer.state[m] = {k: torch.zeros_like(m) for k in ("exp_avg", "exp_avg_sq")} | {
                "step": torch.tensor(7.0)
            }
        for piece in self.pieces:
            for key, tensor in self.tensors(piece.flat).items():
                for i in range(piece.length):
                    tensor[piece.at + i] = of(piece.name, piece.start + i, key)

    def tensors(self, flat):
        master = self.masters[flat]
        return {"master": master} | {k: v for k, v in self.optimizer.state[master].items() if k != "step"}


def value(name, place, key):
    return float(hash((name, place, key)) % 100_003)


GROUPS = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=2)
WHERE = st.tuples(st.sampled_from([2, 3]), st.integers(1, 5))


@settings(max_examples=60, deadline=None)
@given(GROUPS, WHERE, WHERE)
def test_whoever_saved_it_every_weight_comes_back(tmp_path_factory, sizes, before, after):
    folder = tmp_path_factory.mktemp("shards")
    groups = [[(f"g{i}.p{j}", n) for j, n in enumerate(g)] for i, g in enumerate(sizes)]
    stage, ranks = before
    for rank in range(ranks):
        fake = Fake(stage, groups, rank, ranks, of=value)
        save_shard(fake, fake.pieces, shard_file(folder, rank, ranks))
    stage, ranks = after
    seen = []
    for rank in range(ranks):
        fake = Fake(stage, groups, rank, ranks)
        load_shards(fake, fake.pieces, folder)
        for piece in fake.pieces:
            tensors = fake.tensors(piece.flat)
            assert set(tensors) == {"master", "exp_avg", "exp_avg_sq"}
            assert fake.optimizer.state[fake.masters[piece.flat]]["step"] == 7.0
            for i in range(piece.length):
                seen.append((piece.name, piece.start + i))
                for key, tensor in tensors.items():
                    assert tensor[piece.at + i] == value(piece.name, piece.start + i, key)
    assert sorted(seen) == sorted((name, k) for g in groups for name, n in g for k in range(n))


def saved(folder, groups, ranks=2):
    for rank in range(ranks):
        fake = Fake(2, groups, rank, ranks, of=value)
        save_shard(fake, fake.pieces, shard_file(folder, rank, ranks))


def test_a_file_that_is_missing_is_said(tmp_path):
    saved(tmp_path, [[("a", 8)]])
    shard_file(tmp_path, 1, 2).unlink()
    fake = Fake(2, [[("a", 8)]], 0, 1)
    with pytest.raises(RunError, match=r"lacks a part of the optimiser state of a: a worker's file is missing"):
        load_shards(fake, fake.pieces, tmp_path)


def test_another_model_is_said(tmp_path):
    saved(tmp_path, [[("a", 8)]])
    for groups, found in (([[("a", 9)]], "holds 8 of a, which has 9"), ([[("b", 8)]], "holds nothing of b")):
        fake = Fake(2, groups, 0, 1)
        with pytest.raises(RunError, match=found):
            load_shards(fake, fake.pieces, tmp_path)


def test_no_state_and_state_of_an_older_version(tmp_path):
    fake = Fake(2, [[("a", 8)]], 0, 1)
    with pytest.raises(RunError, match="checkpoint is of another engine"):
        load_shards(fake, fake.pieces, tmp_path)
    from safetensors.torch import save_file

    save_file({"0|master": torch.zeros(8)}, str(tmp_path / "optimizer-zero2-0000-of-0001.safetensors"))
    with pytest.raises(RunError, match=r"older version of agentrl.*--set model\.path="):
        load_shards(fake, fake.pieces, tmp_path)


def test_steps_are_counted_where_the_optimiser_wants_them():
    weights = torch.zeros(3, device="meta")  # stands for a GPU
    fused, plain = (SimpleNamespace(param_groups=[{"fused": f}]) for f in (True, False))
    assert _step(torch.tensor(4.0), fused, weights).device.type == "meta"
    assert _step(torch.tensor(4.0), plain, weights).device.type == "cpu"
    assert _step(torch.tensor(4), plain, weights) == 4 and type(_step(torch.tensor(4), plain, weights)) is int

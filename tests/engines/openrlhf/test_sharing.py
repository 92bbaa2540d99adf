"""Rows to workers and back: every row once, whole groups together, about as many tokens each."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from agentrl.algorithms import LossNormalizer
from agentrl.batch import pack
from agentrl.config import LossConfig
from agentrl.engines.base import ScoreResult
from agentrl.engines.openrlhf.sharing import balance, cut, merge, share_groups
from agentrl.engines.shared.updates import Update
from agentrl.types import Trajectory, Turn


def batch(lengths, groups):
    """Rows of one turn each: a prompt of two tokens and as many actions as `lengths` says."""
    rows = []
    for i, (n, group) in enumerate(zip(lengths, groups, strict=True)):
        turn = Turn([1, 2], list(range(3, 3 + n)), [-0.5] * n, "", "", 0.0, "stop")
        rows.append(Trajectory(f"s{i}", group, "Env-v0", 0, (turn,), 0.0, i % 2 == 0, True, False, None))
    return pack(rows, 0)


@given(st.lists(st.integers(1, 100), max_size=40), st.integers(1, 8))
def test_every_row_goes_to_one_worker_and_none_has_much_more_than_another(lengths, parts):
    shares = balance(torch.tensor(lengths, dtype=torch.int64), parts)
    assert len(shares) == parts
    assert sorted(i for s in shares for i in s.tolist()) == list(range(len(lengths)))
    tokens = [sum(lengths[i] for i in s.tolist()) for s in shares]
    assert max(tokens) - min(tokens) <= max(lengths, default=0)


@given(st.lists(st.tuples(st.integers(1, 9), st.sampled_from("abcde")), min_size=1, max_size=30), st.integers(1, 4))
def test_groups_stay_whole_wherever_their_rows_are(rows, parts):
    whole = batch([n for n, _ in rows], [g for _, g in rows])
    shares = share_groups(whole, parts)
    assert sorted(i for s in shares for i in s.tolist()) == list(range(len(rows)))
    homes = [{int(whole.group_ids[i]) for i in s.tolist()} for s in shares]
    assert sum(map(len, homes)) == len(set.union(*homes))


def test_results_come_back_to_their_rows_and_columns():
    whole = batch([3, 1, 2], ["a", "b", "a"])
    parts = [torch.tensor([0, 2]), torch.tensor([1]), torch.tensor([], dtype=torch.int64)]
    long = ScoreResult(
        torch.tensor([[0.0, 1, 2, 3], [0, 4, 5, 0]]), nthr_factor=torch.full((2, 4), 0.5), gwhes={0: 7.0}
    )
    short = ScoreResult(torch.tensor([[0.0, 6]]), nthr_factor=torch.full((1, 2), 0.25), gwhes={1: 8.0})
    out = merge(whole, parts, [long, short, None])
    assert out.logprobs.tolist() == [[0, 1, 2, 3], [0, 6, 0, 0], [0, 4, 5, 0]]
    assert out.nthr_factor.tolist() == [[0.5] * 4, [0.25, 0.25, 1, 1], [0.5] * 4]  # 1 changes no advantage
    assert out.gwhes == {0: 7.0, 1: 8.0} and out.entropy is None


def test_a_worker_gets_its_rows_with_the_divisor_of_all():
    whole = batch([3, 1, 2], ["a", "b", "a"])
    normalizer = LossNormalizer.of(whole.action_mask, correct=whole.correct)
    values = torch.arange(12.0).reshape(3, 4)
    part = Update(whole, values, values + 100, None, LossConfig(), normalizer, 0.7)
    mine = cut(part, torch.tensor([1, 2]))
    assert mine.advantages.tolist() == [[4, 5, 6], [8, 9, 10]]  # as many columns as the longer of both
    assert mine.old_logprobs.tolist() == [[104, 105, 106], [108, 109, 110]] and mine.reference_logprobs is None
    assert mine.batch.lengths().tolist() == [3, 4] and mine.normalizer is normalizer and normalizer.action_tokens == 6
    assert cut(part, torch.tensor([], dtype=torch.int64)) is None

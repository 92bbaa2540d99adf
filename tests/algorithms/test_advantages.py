"""Advantages against docs/algorithms.md written as loops, and leave-one-out weights against enumerated draws."""

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agentrl.algorithms import advantages
from agentrl.config.advantages import built_in
from agentrl.errors import AlgorithmError

ADVANTAGES = built_in()
COUNTS_CORRECT = [name for name, row in ADVANTAGES.items() if row.counts_correct]
K_OF = {"rloo_k": 3, "grpo_tilde_k": 3, "grpo_k": 3}
MIXED = [[1, 0], [1, 1, 0], [0, 0, 0, 1], [1, 0, 1, 0, 0], [0, 1, 1, 1, 1, 1, 1, 0]]


def share_all_failing(rewards, draws):
    """Of all ways to draw `draws` responses (as many as there are, if fewer), the share in which none is correct."""
    ways = list(combinations(rewards, min(draws, len(rewards))))
    return sum(sum(way) == 0 for way in ways) / len(ways)


def expected(name, r, k):
    """One group with rewards 0 or 1, from the definitions."""
    G, p = len(r), sum(r) / len(r)
    grpo = [math.sqrt((1 - p) / p) if x else -math.sqrt(p / (1 - p)) for x in r]
    rloo = [x - (sum(r) - x) / (G - 1) for x in r]  # minus the mean of the others
    f = [share_all_failing(r[:i] + r[i + 1 :], k - 1) for i in range(G)]
    rho_k = 1 - share_all_failing(r, k)
    w = math.sqrt((1 - rho_k) / rho_k) * math.sqrt(p / (1 - p))
    return {
        "rloo": rloo,
        "grpo": grpo,
        "pos_only": [max(a, 0.0) for a in grpo],
        "skew_r": [(1 - p) * a for a in grpo],
        "rloo_k": [fi * a for fi, a in zip(f, rloo)],
        "grpo_tilde_k": [w * a for a in grpo],
        "grpo_k": [fi * a for fi, a in zip(f, grpo)],
        "dr_grpo": [x - p for x in r],
        "reinforce": [float(x) for x in r],
    }[name]


@pytest.mark.parametrize("name", list(ADVANTAGES))
@pytest.mark.parametrize("rewards", MIXED)
def test_one_group(name, rewards):
    for k in (2, 3, 4, 9) if name in K_OF else (1,):
        got = advantages(name, torch.tensor(rewards).float(), torch.zeros(len(rewards)).long(), k=k)
        assert got.dtype == torch.float32
        assert got.tolist() == pytest.approx(expected(name, rewards, k), abs=1e-6), k


def test_k_of_one_is_the_row_without_k():
    r, g = torch.tensor([1.0, 0, 0, 1, 0]), torch.zeros(5).long()
    assert torch.allclose(advantages("rloo_k", r, g, k=1), advantages("rloo", r, g))
    assert torch.allclose(advantages("grpo_k", r, g, k=1), advantages("grpo", r, g))
    assert torch.allclose(advantages("grpo_tilde_k", r, g, k=1), advantages("grpo", r, g))


@given(
    st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=6), min_size=1, max_size=5),
    st.sampled_from(sorted(ADVANTAGES)),
    st.randoms(use_true_random=False),
)
def test_groups_of_any_size_in_any_order(groups, name, random):
    ids = random.sample(range(-50, 50), len(groups))
    rows = [(g, r) for g, rewards in zip(ids, groups) for r in rewards]
    want = {}
    for g, rewards in zip(ids, groups):
        if len(set(rewards)) > 1:
            want[g] = expected(name, rewards, K_OF.get(name, 1))
        else:
            want[g] = [float(r) if name == "reinforce" else 0.0 for r in rewards]
    at = list(range(len(rows)))
    random.shuffle(at)
    got = advantages(
        name, torch.tensor([float(rows[i][1]) for i in at]), torch.tensor([rows[i][0] for i in at]), k=K_OF.get(name, 1)
    )
    flat = [a for g in ids for a in want[g]]
    assert got.tolist() == pytest.approx([flat[i] for i in at], abs=1e-6)


@pytest.mark.parametrize("name", list(ADVANTAGES))
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_group_without_contrast_has_advantage_zero(name, value):
    """But for reinforce, which compares nothing: its advantage is the reward, as docs/algorithms.md says."""
    wanted = value if name == "reinforce" else 0.0
    got = advantages(name, torch.full((4,), value), torch.zeros(4).long(), k=K_OF.get(name, 1))
    assert got.tolist() == [wanted] * 4
    assert advantages(name, torch.tensor([value]), torch.tensor([9]), k=K_OF.get(name, 1)).tolist() == [wanted]


@pytest.mark.parametrize("name", [n for n in ADVANTAGES if n != "reinforce"])
@pytest.mark.parametrize("rewards", [[1.0, 1.0000001, 1.0], [0.9999999, 1.0, 1.0], [5.6e-17, 0.0, 0.0]])
def test_rewards_that_rounding_has_parted_are_no_contrast(name, rewards):
    """1.0 and 1.0000001 trained at nearly full strength: σ divides the difference away."""
    rewards = torch.tensor(rewards, dtype=torch.float64)
    correct = None if name == "grpo" else rewards > 0.5
    got = advantages(name, rewards, torch.zeros(3).long(), k=K_OF.get(name, 1), correct=correct)
    assert got.tolist() == [0.0] * 3


def test_a_small_contrast_is_one():
    got = advantages("grpo", torch.tensor([1.0, 1.0001], dtype=torch.float64), torch.zeros(2).long())
    assert got.tolist() == pytest.approx([-1.0, 1.0])
    got = advantages("grpo", torch.tensor([0.0, 1e-6], dtype=torch.float64), torch.zeros(2).long())
    assert got.tolist() == pytest.approx([-1.0, 1.0])  # against 0 every size is one


def test_a_sum_of_tenths_counts_as_correct():
    reward = sum([0.1] * 10)
    got = advantages("skew_r", torch.tensor([reward, 0.0], dtype=torch.float64), torch.zeros(2).long())
    assert reward < 1 and got.tolist() == pytest.approx([0.5, -0.5])


def test_equal_rewards_that_do_not_sum_exactly_are_still_equal():
    assert advantages("grpo", torch.full((3,), 0.1), torch.zeros(3).long()).tolist() == [0.0] * 3


def test_rewards_that_are_not_binary():
    r = torch.tensor([0.0, 0.5, 2.0, 0.5])
    g = torch.tensor([4, 4, 4, 4])
    assert advantages("grpo", r, g).tolist() == pytest.approx(((r - r.mean()) / r.std(unbiased=False)).tolist())
    assert advantages("rloo", r, g).tolist() == pytest.approx([-1.0, -1 / 3, 5 / 3, -1 / 3], abs=1e-6)
    assert advantages("reinforce", r, g).tolist() == r.tolist()
    correct = r >= 0.5
    for name in COUNTS_CORRECT:  # these then use correctness as the reward
        k = K_OF.get(name, 1)
        assert torch.equal(advantages(name, r, g, k=k, correct=correct), advantages(name, correct.float(), g, k=k))
    assert advantages("pos_only", r, g, correct=r >= 2).tolist() == pytest.approx([0, 0, 5 / 3, 0])


def test_no_overflow_in_large_groups():
    r = torch.zeros(4000)
    r[0] = 1.0
    got = advantages("rloo_k", r, torch.zeros(4000).long(), k=64)
    assert got.isfinite().all()
    assert float(got[0]) == pytest.approx(1.0)  # f⁺ = 1: all others fail
    assert float(got[1]) == pytest.approx(-(1 - 63 / 3999) / 3999, rel=1e-5)  # f⁻: 63 of 3,999 draws miss the one


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("grop", [1.0, 0.0], [0, 0]), "no advantage 'grop'; did you mean 'grpo'"),
        (("grpo", [1.0, math.nan], [0, 0]), "reward of response 1 is nan; leave failed rollouts out"),
        (("grpo", [1.0, 0.0], [0]), r"must all be \(B,\); their shapes are \[\(2,\), \(1,\)\]"),
        (("rloo_k", [0.3, 0.0], [0, 0]), "response 0 has reward 0.3, neither 0 nor 1.*algorithm.correct_threshold"),
    ],
)
def test_bad_input(arguments, message):
    name, r, g = arguments
    with pytest.raises(AlgorithmError, match=message):
        advantages(name, torch.tensor(r), torch.tensor(g), k=2 if name in K_OF else 1)
    for number in (0, 1.5):
        with pytest.raises(AlgorithmError, match=f"k is {number}; pass@K needs a whole k of 1 or more"):
            advantages("grpo_k", torch.ones(2), torch.zeros(2).long(), k=number)
    with pytest.raises(AlgorithmError, match=r"correct is torch\.int64; give bool, one per response"):
        advantages("pos_only", torch.ones(2), torch.zeros(2).long(), correct=torch.tensor([1, 0]))


def test_what_is_made_is_made_where_the_rewards_are():
    r, g = torch.tensor([1.0, 0, 0, 1, 0]), torch.zeros(5).long()
    for name in ADVANTAGES:
        want = advantages(name, r, g, k=K_OF.get(name, 1))
        with torch.device("meta"):  # a tensor that is made without a device holds nothing
            assert torch.equal(advantages(name, r, g, k=K_OF.get(name, 1)), want), name


def test_the_remedy_of_rewards_that_are_not_binary_is_whole():
    with pytest.raises(AlgorithmError) as error:
        advantages("skew_r", torch.tensor([0.3, 0.0]), torch.zeros(2).long())
    assert str(error.value) == (
        "skew_r counts correct responses, but response 0 has reward 0.3, neither 0 nor 1; "
        "say which are correct: correct=rewards >= threshold (config: algorithm.correct_threshold)"
    )

"""Surrogate rewards: F′ against numerical derivatives, its weight against numerical derivatives and advantages."""

import pytest
import torch

from agentrl.algorithms import advantages, group_gradient_weight, surrogate, surrogate_slope
from agentrl.config.advantages import built_in
from agentrl.errors import AlgorithmError

RHO = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)
HAS_K = ("rloo_k", "grpo_tilde_k", "grpo_k")
CASES = [(n, k) for n in built_in() if n != "pos_only" for k in ((1, 2, 4, 8) if n in HAS_K else (1,))]


@pytest.mark.parametrize(("name", "k"), CASES)
def test_slope_is_the_derivative(name, k):
    step = 1e-5
    numerical = (surrogate(name, RHO + step, k) - surrogate(name, RHO - step, k)) / (2 * step)
    assert torch.allclose(surrogate_slope(name, RHO, k), numerical, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("name", "k"), CASES)
def test_slope_times_variance_is_the_gradient_weight(name, k):
    step = 1e-5  # numerical on purpose: independent of the slope that the module states
    numerical = (surrogate(name, RHO + step, k) - surrogate(name, RHO - step, k)) / (2 * step)
    assert torch.allclose(numerical * RHO * (1 - RHO), group_gradient_weight(name, RHO, k), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("name", "k"), [*CASES, ("pos_only", 1)])
@pytest.mark.parametrize("right", [10_000, 50_000, 90_000])
def test_weight_is_what_advantages_give_in_a_large_group(name, k, right):
    """The group gradient is the mean of A·∇log π: p·mean(A⁺) in front of ∇₊ and -(1-p)·mean(A⁻) in front of -∇₋."""
    G = 100_000
    rewards = (torch.arange(G) < right).float()
    adv = advantages(name, rewards, torch.zeros(G).long(), k=k).double()
    weight = float(group_gradient_weight(name, torch.tensor(right / G, dtype=torch.float64), k))
    if name == "reinforce":  # it has the limit of rloo after its mean, which moves nothing, is taken off
        adv = adv - rewards.double().mean()
    assert float(adv[:right].sum() / G) == pytest.approx(weight, rel=1e-2)
    if name != "pos_only":
        assert float(-adv[right:].sum() / G) == pytest.approx(weight, rel=1e-2)


def test_closed_forms_of_methods():
    half = torch.tensor(0.5, dtype=torch.float64)
    pi = torch.pi
    assert float(surrogate("grpo", half)) == pytest.approx(pi / 2)
    assert float(surrogate("skew_r", half)) == pytest.approx(pi / 4 + 0.5)
    assert float(surrogate("rloo_k", half, 3)) == pytest.approx(7 / 8 / 3)
    assert float(surrogate("grpo_tilde_k", half, 2)) == pytest.approx(pi / 3)  # ρ_2 = 3/4, arcsin √(3/4) = π/3
    # B(x; ½, K-½), integrated with t = sin²θ by the midpoint rule
    for k in (1, 2, 5):
        theta = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000 * (pi / 4)
        integral = float((2 * theta.cos() ** (2 * k - 2)).mean() * (pi / 4))
        assert float(surrogate("grpo_k", half, k)) == pytest.approx(integral, rel=1e-8)


@pytest.mark.parametrize(("name", "k"), CASES)
def test_ends_and_dtype(name, k):
    ends = torch.tensor([0.0, 1.0])
    value = surrogate(name, ends, k)
    assert value.dtype == torch.float32 and value[0] == 0 and value.isfinite().all()
    weight = group_gradient_weight(name, ends, k)
    assert weight.tolist() == [0.0, 0.0]
    assert not surrogate_slope(name, ends, k).isnan().any()
    assert surrogate(name, torch.rand(2, 3, 4), k).shape == (2, 3, 4)


def test_bad_input():
    with pytest.raises(AlgorithmError, match="no advantage 'rlo'; did you mean 'rloo'"):
        surrogate("rlo", RHO)
    with pytest.raises(AlgorithmError, match=r"pos_only has no surrogate reward.*leave it out"):
        surrogate_slope("pos_only", RHO)
    with pytest.raises(AlgorithmError, match=r"rho runs from -0\.1 to 1\.5; a success rate is in \[0, 1\]"):
        surrogate("grpo", torch.tensor([-0.1, 1.5]))
    with pytest.raises(AlgorithmError, match="K is a whole number"):
        surrogate("rloo_k", RHO, 0)
    with pytest.raises(AlgorithmError, match=r"rho runs from 0 to 2; a success rate"):
        surrogate("grpo", torch.tensor([0.0, 2.0]))


def test_k_is_one_unless_it_is_given_and_whole_numbers_give_fractions():
    half = torch.tensor(0.5)
    for curve in (surrogate, surrogate_slope, group_gradient_weight):
        assert curve("rloo_k", half) == curve("rloo_k", half, 1) != curve("rloo_k", half, 2)
    assert surrogate("grpo", torch.tensor([0, 1])).dtype == torch.get_default_dtype()

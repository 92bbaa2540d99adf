"""Mixed groups, and updates that are undone: what they compute, and that they leave nothing behind."""

import copy
from dataclasses import replace

import pytest
import torch

from agentrl.config import AlgorithmConfig, OptimConfig
from agentrl.errors import AgentRLError, AlgorithmError, NonFiniteError
from agentrl.lab.groups import Step, delta_of, displacement, mixed_groups, undone
from agentrl.lab.methods import method_config
from agentrl.train.build import build_job
from tests.small import small_config

GRPO = AlgorithmConfig(name="grpo")
SMALL_STEP = Step("sgd", 1e-4)


def gradient(engine, batch, weights):
    """∇θ Σ weights · log π, by parameter name; weights (B, S)."""
    logprobs, _ = engine.logprobs(batch)
    engine.model.zero_grad(set_to_none=True)
    (weights * logprobs).sum().backward()
    out = {n: p.grad.clone() for n, p in engine.model.named_parameters() if p.grad is not None}
    engine.model.zero_grad(set_to_none=True)
    return out


def grpo_weights(batch):
    """What multiplies log π of each token in one update of GRPO: its advantage over the tokens of the batch."""
    p = batch.correct.float().mean()
    advantage = torch.where(batch.correct, ((1 - p) / p).sqrt(), -(p / (1 - p)).sqrt())
    return advantage[:, None] * batch.action_mask / batch.action_mask.sum()


def state_of(engine):
    return (
        {n: p.detach().clone() for n, p in engine.model.named_parameters()},
        copy.deepcopy(engine.optimizer.state_dict()),
        (engine.updates, engine.lr_scale, engine.optim_config, engine.policy_version),
    )


def assert_same(before, after):
    for a, b in zip((before[0], before[1]["state"]), (after[0], after[1]["state"])):
        assert a.keys() == b.keys()
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=0, atol=0)
    assert before[1]["param_groups"] == after[1]["param_groups"] and before[2] == after[2]


@pytest.fixture
def trained(lab):
    """The job's engine with an optimiser state of its own; as it was afterwards."""
    job, groups = lab
    engine, batch = job.local, groups[0].batch
    kept, weights = engine.optimizer, copy.deepcopy(engine.model.state_dict())
    engine.optimizer = engine._make_optimizer()
    zero = torch.zeros(batch.action_mask.shape)
    engine.update(batch, grpo_weights(batch).sign(), zero, loss=GRPO.loss)
    yield engine
    engine.optimizer, engine.updates = kept, 0
    engine.model.load_state_dict(weights)


def test_groups_are_mixed_and_the_same_for_the_same_seed(lab):
    job, groups = lab
    assert len(groups) == 5
    for g in groups:
        assert 0 < g.share_correct < 1 and len(g.trajectories) == len(g.batch) <= job.config.rollout.group_size
        assert g.share_correct == sum(t.correct for t in g.trajectories) / len(g.trajectories)


def test_questions_without_contrast_are_explained(lab):
    job, _ = lab
    greedy = copy.deepcopy(job.config)
    greedy.rollout.temperature = 0.0  # all responses of a group are equal
    with pytest.raises(AgentRLError, match=r"none of 8 questions gave a group with both.*10 % and 90 %"):
        mixed_groups(replace(job, config=greedy), 1, seed=0, max_draws=1, say=lambda line: None)


def test_the_plain_step_is_one_along_the_gradient(lab):
    """Against θ + lr ∇θ (1/n) Σ A log π, worked out with autograd."""
    job, groups = lab
    engine, batch = job.local, groups[0].batch
    old, new = displacement(engine, batch, GRPO, step=Step("sgd", 0.01))
    ascent = gradient(engine, batch, grpo_weights(batch))
    kept = copy.deepcopy(engine.model.state_dict())
    with torch.no_grad():
        for name, p in engine.model.named_parameters():
            p += 0.01 * ascent[name]
        wanted, _ = engine.logprobs(batch)
    engine.model.load_state_dict(kept)
    torch.testing.assert_close(old, engine.logprobs(batch)[0].detach())
    torch.testing.assert_close(new, wanted, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(new, old, atol=1e-3)


def test_delta_of_a_small_step_is_the_inner_product_of_gradients(lab):
    """Δ(x) ≈ lr ⟨∇θ mean log-likelihood of correct responses, ∇θ objective⟩: what the papers' theory is about."""
    job, groups = lab
    for group in groups[:3]:
        batch = group.batch
        _, delta = delta_of(batch, *displacement(job.local, batch, GRPO, step=SMALL_STEP))
        correct = (batch.correct[:, None] & batch.action_mask) / batch.correct.sum()
        a, b = gradient(job.local, batch, correct), gradient(job.local, batch, grpo_weights(batch))
        assert delta == pytest.approx(1e-4 * sum(float((a[n] * b[n]).sum()) for n in a), rel=0.1, abs=1e-5)


def test_a_fresh_adam_moves_every_weight_by_its_learning_rate(lab):
    job, groups = lab
    engine, batch = job.local, groups[0].batch
    before = {n: p.detach().clone() for n, p in engine.model.named_parameters()}
    weights = grpo_weights(batch)
    ascent = gradient(engine, batch, weights)
    old = engine.score(batch).logprobs
    with undone(engine, Step("adam", 1e-4)):
        engine.update(batch, weights * batch.action_mask.sum(), old, loss=GRPO.loss)
        for name, p in engine.model.named_parameters():
            clear = ascent[name].abs() > 1e-4  # below that Adam's epsilon and rounding have a say
            moved = (p.detach() - before[name])[clear]
            torch.testing.assert_close(moved, 1e-4 * ascent[name][clear].sign(), atol=2e-6, rtol=0.02)


@pytest.mark.parametrize("step", [Step("sgd"), Step("adam"), Step("run")])
def test_the_engine_is_left_as_it_was_and_order_does_not_matter(trained, lab, step):
    _, groups = lab
    batch, before = groups[1].batch, state_of(trained)
    first = [displacement(trained, batch, method_config(GRPO, m), step=step)[1] for m in ("grpo", "nthr")]
    assert_same(before, state_of(trained))
    again = [displacement(trained, batch, method_config(GRPO, m), step=step)[1] for m in ("nthr", "grpo")]
    for a, b in zip(first, reversed(again)):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_the_runs_optimiser_takes_part_with_its_moments(trained, lab):
    _, groups = lab
    batch = groups[1].batch
    own, fresh = (displacement(trained, batch, GRPO, step=Step(o))[1] for o in ("run", "adam"))
    assert float((own - fresh).abs().max()) > 1e-4
    trained.optimizer.state.clear()
    before = state_of(trained)
    with pytest.raises(AgentRLError, match="no state yet"):
        displacement(trained, batch, GRPO, step=Step("run"))
    assert_same(before, state_of(trained))


def test_learning_rates():
    optim = OptimConfig(lr=3e-4)
    assert Step("adam").rate(optim) == 3e-4 and Step("adam", 1e-5).rate(optim) == Step("sgd", 1e-5).rate(optim) == 1e-5
    assert Step("sgd").rate(optim) == Step("sgd").rate(OptimConfig(lr=1.0))


def test_a_kl_term_pulls_back_to_the_checkpoint(lab, warm_model, tmp_path):
    _, groups = lab
    job = build_job(small_config(tmp_path, warm_model, algorithm={"loss": {"kl_coef": 1.0}}), tmp_path)
    free = job.config.algorithm.model_copy(update={"loss": GRPO.loss})
    batch, moved = groups[0].batch, {}
    for name, algorithm in {"kl": job.config.algorithm, "free": free}.items():
        for updates in (1, 8):
            old, new = displacement(job.local, batch, algorithm, step=Step("sgd", 2e-3), updates=updates)
            moved[name, updates] = float((new - old).abs().sum())
    assert moved["kl", 1] == pytest.approx(moved["free", 1], rel=1e-4)  # the first update starts at the reference
    assert moved["kl", 8] < 0.95 * moved["free", 8]


@pytest.mark.parametrize(("method", "error"), [("nthr", AlgorithmError), ("grpo", NonFiniteError)])
def test_a_diverged_model_is_named_and_put_back(lab, method, error):
    job, groups = lab
    weight = job.local.model.model.norm.weight
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight[0] = float("nan")
        with pytest.raises(error, match=r"diverged"):
            displacement(job.local, groups[0].batch, method_config(GRPO, method))
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def test_delta_is_over_correct_responses_alone(lab):
    _, groups = lab
    batch = groups[0].batch
    before = torch.zeros(batch.action_mask.shape)
    change = torch.where(batch.correct, 0.5, 9.0)[:, None].expand_as(before)  # off action too: it must not count
    token, response = delta_of(batch, before, before + change)
    lengths = [t.action_tokens for t in groups[0].trajectories if t.correct]
    assert token == pytest.approx(0.5) and response == pytest.approx(0.5 * sum(lengths) / len(lengths))

"""The loss of a micro-batch against the loss of the whole batch; what both engines share of an update."""

import pytest
import torch

from agentrl.algorithms import LossNormalizer, MetricSums, policy_loss
from agentrl.batch import micro_batches, pack
from agentrl.config import LossConfig, OptimConfig
from agentrl.engines.base import ScoreResult
from agentrl.engines.shared.updates import Update, learning_rate, loss_of_rows, rows_with_gradient, without_dropout
from agentrl.types import Trajectory, Turn

EVERYTHING = LossConfig(
    kl_coef=0.1, nll_coef=0.1, entropy_coef=0.01, tis_cap=2.0, clip_low=0.01, clip_high=0.01,
    llds={"enabled": True, "weight": 0.5, "answer_weight": 0.3},
)  # fmt: skip


def batch_of(lengths):
    """Rows of two turns, of which the second is the answer of every other row."""
    rows = []
    for i, n in enumerate(lengths):
        first = Turn([1, 2 + i], list(range(3, 3 + n)), [-0.5 - 0.1 * i] * n, "", "", 0.0, "stop")
        second = Turn([7], [8, 9], [-1.0, -0.2 * i], "<answer> a </answer>", "", 0.0, "stop")
        rows.append(Trajectory(f"s{i}", f"g{i // 2}", "e", 0, (first, second), 0.0, i % 2 == 0, True, False))
    batch = pack(rows, 0)
    batch.answer_mask = batch.action_mask & (batch.turn_ids == 1)
    return batch


class Table:
    """A model whose log-probabilities are parameters, a row for each first token of a row."""

    device = torch.device("cpu")

    def __init__(self, batch):
        g = torch.Generator().manual_seed(0)
        self.values = -torch.rand(batch.action_mask.shape, generator=g)
        self.values.requires_grad_()
        self.asked = []

    def logprobs(self, batch, temperature=1.0, *, entropy=False, entropy_gradient=True):
        self.asked.append((temperature, entropy, entropy_gradient))
        rows = batch.input_ids[:, 1] - 2
        out = self.values[rows, : batch.action_mask.shape[1]] * batch.action_mask
        heat = (out * out).detach() if not entropy_gradient else out * out
        return out, heat if entropy else None


def update_of(batch, loss=EVERYTHING):
    g = torch.Generator().manual_seed(1)
    advantages, old, reference = (torch.randn(batch.action_mask.shape, generator=g) for _ in range(3))
    normalizer = LossNormalizer.of(batch.action_mask, correct=batch.correct)
    return Update(batch, advantages, -old.abs(), -reference.abs(), loss, normalizer, 0.7)


def test_micro_batches_sum_to_the_loss_of_the_whole_batch():
    batch = batch_of([1, 5, 3, 2])
    update, model = update_of(batch), Table(batch)
    sums, total = MetricSums(), 0.0
    for index in micro_batches(batch.lengths(), 16):
        loss, metrics = loss_of_rows(model, update, index)
        loss.backward()
        total += float(loss.detach())
        sums.add(metrics)
    assert len(model.asked) > 1 and set(model.asked) == {(0.7, True, True)}
    own = Table(batch)
    logprobs, entropy = own.logprobs(batch, entropy=True)
    expected, metrics = policy_loss(
        logprobs, update.old_logprobs, update.advantages, batch.action_mask, config=EVERYTHING,
        normalizer=update.normalizer, turn_ids=batch.turn_ids, answer_mask=batch.answer_mask, correct=batch.correct,
        reference_logprobs=update.reference_logprobs, rollout_logprobs=batch.rollout_logprobs, entropy=entropy,
    )  # fmt: skip
    expected.backward()
    assert total == pytest.approx(float(expected.detach()), rel=1e-5)
    assert torch.allclose(model.values.grad, own.values.grad, atol=1e-6) and bool(own.values.grad.any())
    whole = MetricSums()
    whole.add(metrics)
    assert sums.result() == pytest.approx(whole.result(), rel=1e-5)


def test_the_only_update_of_a_batch_fills_the_scores_and_is_at_ratio_one():
    batch = batch_of([1, 5, 3, 2])
    update, model = update_of(batch, LossConfig()), Table(batch)
    nan = torch.full(batch.action_mask.shape, float("nan"))
    unread = Update(
        batch, update.advantages, nan, None, update.loss, update.normalizer, update.temperature
    )  # old_logprobs
    scores = ScoreResult(nan.clone(), nan.clone())
    rows = torch.tensor([2, 0])
    loss, metrics = loss_of_rows(model, unread, rows, scores)
    assert model.asked == [(0.7, True, False)]  # the entropy is a metric, not a part of the loss
    assert float(metrics["ratio_max"].total) == 1.0 and bool(loss.isfinite())
    S = int(batch.lengths()[rows].max()) - 1
    expected = (model.values * batch.action_mask)[rows, :S].detach()
    assert torch.equal(scores.logprobs[rows, :S], expected) and torch.equal(scores.entropy[rows, :S], expected**2)
    assert bool(scores.logprobs[[1, 3]].isnan().all())


def test_rows_without_advantage_count_only_where_something_else_is_in_the_loss():
    batch = batch_of([1, 5, 3, 2])
    advantages = torch.zeros(batch.action_mask.shape)
    assert rows_with_gradient(batch, advantages, LossConfig()).tolist() == [0]  # the shortest keeps metrics defined
    advantages[2, 3] = advantages[1, 0] = -1.0
    assert rows_with_gradient(batch, advantages, LossConfig()).tolist() == [1, 2]
    for more in ({"kl_coef": 0.1}, {"entropy_coef": 0.1}, {"nll_coef": 0.1}, {"llds": {"enabled": True}}):
        assert rows_with_gradient(batch, advantages, LossConfig(**more)).tolist() == [0, 1, 2, 3]


def test_training_mode_without_dropout_is_evaluation_mode():
    class Attention(torch.nn.Module):
        attention_dropout = 0.2

    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.9), Attention())
    without_dropout(model)
    model.train()
    x = torch.ones(3, 4)
    assert torch.equal(model[:2](x), model[0](x)) and model[2].attention_dropout == 0.0


def test_learning_rate_schedules():
    config = OptimConfig(lr=1.0, warmup_steps=4)
    assert [learning_rate(config, i, 10) for i in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    linear = OptimConfig(lr=1.0, schedule="linear")
    assert [learning_rate(linear, i, 4) for i in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]
    cosine = OptimConfig(lr=1.0, schedule="cosine")
    assert learning_rate(cosine, 5, 10) == pytest.approx(0.5)

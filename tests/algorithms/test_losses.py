"""The policy loss against a loop over tokens, in every aggregation mode and with every option; micro-batches add up."""

import math

import pytest
import torch

from agentrl.algorithms import LossNormalizer, MetricSums, policy_loss, with_answer_weight
from agentrl.algorithms.llds import llds_term
from agentrl.config import LLDSConfig, LossConfig
from agentrl.errors import AlgorithmError

MODES = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum")
OPTIONS = {
    "plain": {},
    "asymmetric clip": {"clip_low": 0.1, "clip_high": 0.3},
    "dual clip": {"dual_clip": 1.5},
    "sequence ratio": {"ratio": "sequence", "clip_low": 0.05, "clip_high": 0.05},
    "kl": {"kl_coef": 0.3},
    "nll": {"nll_coef": 0.2},
    "entropy": {"entropy_coef": 0.1},
    "importance weights": {"tis_cap": 1.1},
    "llds": {"llds": LLDSConfig(enabled=True, weight=0.5, gate="token")},
    "all": {
        "kl_coef": 0.3, "nll_coef": 0.2, "entropy_coef": -0.1, "tis_cap": 1.1, "dual_clip": 2.0,
        "llds": LLDSConfig(enabled=True, weight=0.5, gate="response", answer_weight=0.5),
    },
}  # fmt: skip


def case(seed=0, B=6, S=9):
    """Every tensor that any option needs; the last response has no action tokens, the first only one."""
    g = torch.Generator().manual_seed(seed)

    def noise(scale):
        return scale * torch.randn(B, S, generator=g)

    mask = torch.rand(B, S, generator=g) < 0.6
    mask[0] = False
    mask[0, 4] = True
    mask[-1] = False
    old = -torch.rand(B, S, generator=g) - 0.1
    return {
        "logprobs": old + noise(0.4),
        "old_logprobs": old,
        "advantages": torch.tensor([1.0, -1.5, 0.7, -0.2, 0.0, 2.0])[:, None].expand(B, S).clone(),
        "action_mask": mask,
        "turn_ids": torch.where(mask, 0, -1),
        "answer_mask": mask & (torch.arange(S) > 5),
        "correct": torch.tensor([True, False, True, False, False, True]),
        "reference_logprobs": old + noise(0.3),
        "rollout_logprobs": old + noise(0.2),
        "entropy": torch.rand(B, S, generator=g),
    }


def by_loop(c, config):
    """The loss from its definition, token by token."""
    B, S = c["action_mask"].shape
    rows = [[s for s in range(S) if c["action_mask"][i, s]] for i in range(B)]
    tokens, sequences = sum(map(len, rows)), sum(bool(r) for r in rows)
    right = sum(len(r) for i, r in enumerate(rows) if c["correct"][i])
    at = {k: v.tolist() for k, v in c.items()}
    surrogate, kl, heat = [], [], []
    nll = llds = 0.0
    for i, row in enumerate(rows):
        logs = [at["logprobs"][i][s] - at["old_logprobs"][i][s] for s in row]
        drop = sum(logs) < 0
        for j, s in enumerate(row):
            a = at["advantages"][i][s]
            ratio = math.exp(sum(logs) / len(logs) if config.ratio == "sequence" else logs[j])
            clipped = min(max(ratio, 1 - config.clip_low), 1 + config.clip_high)
            value = min(ratio * a, clipped * a)
            if config.dual_clip is not None and a < 0:
                value = max(value, config.dual_clip * a)
            if config.tis_cap is not None:
                value *= min(math.exp(at["old_logprobs"][i][s] - at["rollout_logprobs"][i][s]), config.tis_cap)
            gap = at["reference_logprobs"][i][s] - at["logprobs"][i][s]
            surrogate.append((i, -value))
            kl.append((i, math.exp(gap) - gap - 1))
            heat.append((i, at["entropy"][i][s]))
            if at["correct"][i]:
                nll -= at["logprobs"][i][s] / right
            if a >= 0 and (config.llds.gate == "token" or drop):
                w = config.llds.answer_weight if at["answer_mask"][i][s] else 1.0
                llds += w * max(0.0, -logs[j]) / tokens

    def mean(values):
        if config.aggregation == "token-mean":
            return sum(v for _, v in values) / tokens
        per_row = [[v for i, v in values if i == k] for k in range(B)]
        if config.aggregation == "seq-mean-token-sum":
            return sum(sum(r) for r in per_row) / sequences
        return sum(sum(r) / len(r) for r in per_row if r) / sequences

    total = mean(surrogate) + config.kl_coef * mean(kl) - config.entropy_coef * mean(heat) + config.nll_coef * nll
    return total + (config.llds.weight * llds if config.llds.enabled else 0.0)


def run(c, config, normalizer=None):
    normalizer = normalizer or LossNormalizer.of(c["action_mask"], correct=c["correct"])
    return policy_loss(**c, config=config, normalizer=normalizer)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("seed", range(2))
def test_equals_the_loop(mode, name, seed):
    c, config = case(seed), LossConfig(aggregation=mode, **OPTIONS[name])
    loss, metrics = run(c, config)
    assert float(loss) == pytest.approx(by_loop(c, config), rel=1e-4, abs=1e-6)
    assert float(metrics["loss"].total) == pytest.approx(float(loss))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", OPTIONS)
def test_micro_batches_sum_to_the_batch_in_loss_gradient_and_metrics(mode, name):
    c, config = case(3), LossConfig(aggregation=mode, **OPTIONS[name])
    normalizer = LossNormalizer.of(c["action_mask"], correct=c["correct"])
    results = []
    for split in ([6], [1, 3, 2], [1] * 6):
        leaf = c["logprobs"].clone().requires_grad_()
        sums = MetricSums()
        for rows in torch.tensor([4, 0, 5, 2, 1, 3]).split(split):
            part = {k: v[rows] for k, v in {**c, "logprobs": leaf}.items()}
            loss, metrics = run(part, config, normalizer)
            loss.backward()
            sums.add(metrics)
        results.append((leaf.grad, sums.result()))
    for grad, metrics in results[1:]:
        assert torch.allclose(grad, results[0][0], atol=1e-7)
        assert metrics == pytest.approx(results[0][1], rel=1e-4, abs=1e-6)


def test_gradient_of_the_sequence_ratio_is_that_of_the_geometric_mean():
    c, config = case(1), LossConfig(ratio="sequence", clip_low=0.9, clip_high=9.0, aggregation="seq-mean-token-mean")
    leaf = c["logprobs"].clone().requires_grad_()
    run({**c, "logprobs": leaf}, config)[0].backward()
    other = c["logprobs"].clone().requires_grad_()
    total = 0.0
    for i in range(5):
        m = c["action_mask"][i]
        total = total - (other[i] - c["old_logprobs"][i])[m].mean().exp() * c["advantages"][i, 0] / 5
    total.backward()
    assert torch.allclose(leaf.grad, other.grad, atol=1e-7)


def test_values_off_action_do_not_matter():
    c, config = case(), LossConfig(**OPTIONS["all"])
    off = ~c["action_mask"]
    hostile = {k: v.masked_fill(off, math.nan) if v.dtype == torch.float32 else v for k, v in c.items()}
    hostile["logprobs"].requires_grad_()
    loss, metrics = run(hostile, config)
    loss.backward()
    want, want_metrics = run(c, config)
    assert torch.equal(loss.detach(), want) and not hostile["logprobs"].grad[off].any()
    assert all(torch.equal(metrics[k].total, want_metrics[k].total) for k in want_metrics)


def test_ratio_metrics():
    c = case()
    c["advantages"] = c["advantages"] * 0 + 1
    ratio = (c["logprobs"] - c["old_logprobs"]).exp()[c["action_mask"]]
    sums = MetricSums()
    sums.add(run(c, LossConfig(clip_low=0.1, clip_high=0.3))[1])
    got = sums.result()
    assert got["clip_fraction_low"] == pytest.approx(float((ratio < 0.9).float().mean()))
    assert got["clip_fraction_high"] == pytest.approx(float((ratio > 1.3).float().mean()))
    assert got["clip_fraction"] == pytest.approx(got["clip_fraction_low"] + got["clip_fraction_high"])
    assert got["ratio_max"] == pytest.approx(float(ratio.max()))
    assert set(got) == {"loss", "pg_loss", "clip_fraction", "clip_fraction_low", "clip_fraction_high", "ratio_max"}


def test_an_exploded_ratio_stays_finite():
    c = case()
    c["old_logprobs"] = c["old_logprobs"] - 1000.0
    leaf = c["logprobs"].clone().requires_grad_()
    loss, _ = run({**c, "logprobs": leaf}, LossConfig())
    loss.backward()
    assert loss.isfinite() and leaf.grad.isfinite().all()


def test_a_batch_without_action_tokens_is_zero():
    c = case()
    c["action_mask"] = torch.zeros_like(c["action_mask"])
    for mode in MODES:
        loss, metrics = run(c, LossConfig(aggregation=mode, kl_coef=0.1, nll_coef=0.1))
        assert float(loss) == 0.0
        sums = MetricSums()
        sums.add(metrics)
        assert "clip_fraction" not in sums.result()  # a mean over nothing is absent, not zero


@pytest.mark.parametrize(
    ("config", "missing", "message"),
    [
        ({"kl_coef": 0.1}, "reference_logprobs", "kl_coef is set, but there is no reference_logprobs; pass it"),
        ({"tis_cap": 2.0}, "rollout_logprobs", "tis_cap is set, but there is no rollout_logprobs"),
        ({"entropy_coef": 0.1}, "entropy", "entropy_coef is set, but there is no entropy"),
        ({"nll_coef": 0.1}, "correct", "nll_coef is set, but there is no correct"),
        ({"llds": LLDSConfig(enabled=True)}, "turn_ids", "the action gate needs turn_ids"),
        (
            {"llds": LLDSConfig(enabled=True, answer_weight="schedule")},
            None,
            r"^llds.answer_weight is a .* number first$",
        ),
    ],
)
def test_what_is_missing_is_named(config, missing, message):
    c = case()
    normalizer = LossNormalizer.of(c["action_mask"], correct=c["correct"])
    if missing:
        c[missing] = None
    with pytest.raises(AlgorithmError, match=message):
        run(c, LossConfig(**config), normalizer)


def test_scheduled_answer_weight():
    loss = LossConfig(llds=LLDSConfig(enabled=True, answer_weight="schedule", gate="token"))
    assert [with_answer_weight(loss, v).llds.answer_weight for v in (0.0, 0.5, 2.0, 3.5)] == [0.0, 0.25, 1.0, 1.0]
    assert loss.llds.answer_weight == "schedule" and with_answer_weight(loss, 1.0).llds.gate == "token"
    for other in (LossConfig(), LossConfig(llds=LLDSConfig(enabled=True, answer_weight=0.3))):
        assert with_answer_weight(other, 1.0) is other


def test_nll_needs_the_count_of_the_whole_batch():
    c = case()
    with pytest.raises(AlgorithmError, match=r"^nll_coef is set, but .* without correct; pass both$"):
        run(c, LossConfig(nll_coef=0.1), LossNormalizer.of(c["action_mask"]))


def test_every_part_has_its_metric():
    """Names and values of what was added, token by token; the whole batch is one micro-batch."""
    llds = LLDSConfig(enabled=True, gate="action", weight=0.5)
    c = case(1)
    c["turn_ids"] = torch.where(c["action_mask"], (torch.arange(9) // 4).expand(6, 9), -1)
    _, metrics = run(c, LossConfig(kl_coef=0.3, nll_coef=0.2, entropy_coef=0.1, tis_cap=1.1, llds=llds))
    m = c["action_mask"]
    gap = (c["reference_logprobs"] - c["logprobs"])[m]
    weights = (c["old_logprobs"] - c["rollout_logprobs"]).exp()[m]
    term = llds_term(c["logprobs"], c["old_logprobs"], c["advantages"], m, c["turn_ids"])
    want = {
        "kl": float((gap.exp() - gap - 1).mean()),
        "entropy": float(c["entropy"][m].mean()),
        "nll_loss": -float(c["logprobs"][m & c["correct"][:, None]].mean()),
        "tis_capped_share": float((weights > 1.1).double().mean()),
        "llds_loss": float(term.total) / int(m.sum()),
        "llds_open_share": int(term.open_gates) / int(term.gates),
    }
    sums = MetricSums()
    sums.add(metrics)
    got = sums.result()
    assert {name: got[name] for name in want} == pytest.approx(want, rel=1e-5)
    assert 0 < want["tis_capped_share"] < 1 and 0 < want["llds_open_share"] < 1 and want["llds_loss"] > 0
    assert MetricSums().result() == {}


def test_a_ratio_at_the_cap_is_not_capped():
    one = torch.zeros(1, 1)
    _, metrics = policy_loss(
        one, one, one + 1, one == 0, config=LossConfig(tis_cap=1.0), normalizer=LossNormalizer(1, 1),
        rollout_logprobs=one,
    )  # fmt: skip
    assert int(metrics["tis_capped_share"].total) == 0


def test_a_gap_to_the_reference_stays_finite():
    c = case()
    for shift in (1000.0, -1000.0):
        loss, metrics = run({**c, "reference_logprobs": c["logprobs"] + shift}, LossConfig(kl_coef=0.1))
        assert loss.isfinite() and metrics["kl"].total.isfinite()
    far = run({**c, "reference_logprobs": c["logprobs"] - 1000.0}, LossConfig(kl_coef=0.1))[1]["kl"]
    assert float(far.total / far.weight) == pytest.approx(math.exp(-20) + 20 - 1)  # |gap| is cut at 20 on both sides


def test_one_token_is_divided_by_one():
    """Divisors of a batch of a single token, a single correct one, in every aggregation."""
    one = torch.full((1, 1), -0.5)
    for mode in MODES:
        loss, metrics = policy_loss(
            one, one + 0.25, one * 0 + 1, one < 0, config=LossConfig(aggregation=mode, nll_coef=1.0,
            llds=LLDSConfig(enabled=True, gate="token", weight=1.0), clip_low=0.9), correct=one[0] < 0,
            normalizer=LossNormalizer(1, 1, 1),
        )  # fmt: skip
        assert float(loss) == pytest.approx(-math.exp(-0.25) + 0.5 + 0.25), mode
        assert float(metrics["pg_loss"].total) == pytest.approx(-math.exp(-0.25))


def seen(logprobs, ratio, advantages, action_mask, config):
    """A loss that reads the rest of what it is given: 0 off action, and the mask itself."""
    assert not logprobs[~action_mask].any() and (ratio[~action_mask] == 1).all()
    return -logprobs * advantages


def wrong_shape(logprobs, ratio, advantages, action_mask, config):
    return logprobs[:1]


def no_tensor(logprobs, ratio, advantages, action_mask, config):
    return 1.0


def test_a_loss_of_ones_own():
    c = case()
    m = c["action_mask"]
    loss, _ = run(c, LossConfig(name=f"{__name__}:seen"))
    assert float(loss) == pytest.approx(float((-c["logprobs"] * c["advantages"])[m].mean()), rel=1e-5)
    for name, shape in (("wrong_shape", "(1, 9)"), ("no_tensor", "float")):
        with pytest.raises(AlgorithmError) as error:
            run(c, LossConfig(name=f"{__name__}:{name}"))
        assert str(error.value) == f"loss '{__name__}:{name}' gives {shape}; it must give (B, S), here (6, 9)"


def test_the_log_ratio_is_cut_on_both_sides():
    one = torch.zeros(1, 2)
    for far, mean in ((-1000.0, -10.0), (1000.0, 10.0)):  # of 20 and 0
        logprobs = torch.tensor([[far, 0.0]])
        _, metrics = policy_loss(
            logprobs, one, one + 1, one == 0, config=LossConfig(ratio="sequence"), normalizer=LossNormalizer(2, 1)
        )
        assert float(metrics["ratio_max"].total) == pytest.approx(math.exp(mean))

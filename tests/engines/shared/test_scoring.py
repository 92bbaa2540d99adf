"""NTHR in the engine's scoring pass equals the function on the concatenated hidden states, however it is split."""

import math

import pytest
import torch

from agentrl.algorithms import nthr_scores
from agentrl.algorithms.head import Head
from agentrl.batch import TokenBatch
from agentrl.config import NTHRConfig
from agentrl.engines.shared import scoring
from agentrl.engines.shared.head import OutputHead
from agentrl.engines.shared.scoring import nthr_head
from agentrl.errors import AlgorithmError, ModelError
from tests.engines.local.test_engine import make, rollout
from tests.fakes import save_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def shuffled(batch: TokenBatch, seed: int = 0) -> TokenBatch:
    """Rows in any order, and group ids that are neither ascending nor dense."""
    out = batch.rows(torch.randperm(len(batch), generator=torch.Generator().manual_seed(seed)))
    out.group_ids = 7 - 5 * out.group_ids
    return out


def head_matrix(module):
    """W of a linear head, with the change of its adapters where there are any."""
    if not hasattr(module, "get_delta_weight"):
        return module.weight.detach()
    return module.get_base_layer().weight.detach() + sum(map(module.get_delta_weight, module.active_adapters)).detach()


def by_function(engine, batch, group, *, temperature=1.0, **options):
    """`nthr_scores` on one group's tokens, with hidden states of the whole batch at once."""
    rows = (batch.group_ids == group).nonzero()[:, 0]
    mask = batch.action_mask[rows]
    with torch.no_grad():
        hidden = engine.hidden(batch.input_ids[rows, :-1], batch.attention_mask[rows, :-1])[mask]
    row = mask.nonzero()[:, 0]
    ids = batch.input_ids[rows, 1:][mask]
    weight, bias = head_matrix(engine.head.module), getattr(engine.head.module, "bias", None)
    result = nthr_scores(
        hidden.float(), ids, weight, row, batch.correct[rows][row], head_bias=bias, temperature=temperature,
        softcap=engine.head.softcap, **options,
    )  # fmt: skip
    return rows, mask, result


@pytest.mark.parametrize("method", ["exact", "vstar", "auto"])
@pytest.mark.parametrize("micro_batch_tokens", [8192, 40])
def test_the_engine_gives_what_the_function_gives(folder, method, micro_batch_tokens):
    engine = make(folder, micro_batch_tokens=micro_batch_tokens)
    batch = shuffled(rollout(make(folder), 14))
    assert sorted(batch.group_ids.unique(return_counts=True)[1].tolist()) == [2, 4, 4, 4]
    scored = engine.score(batch, nthr=NTHRConfig(enabled=True, method=method), temperature=0.8, entropy=True)
    plain = engine.score(batch, temperature=0.8, entropy=True)
    assert torch.allclose(scored.logprobs, plain.logprobs, atol=1e-5)
    assert torch.allclose(scored.entropy, plain.entropy, atol=1e-4)
    for group in batch.group_ids.unique().tolist():
        rows, mask, want = by_function(engine, batch, group, temperature=0.8, method=method)
        scale = float(want.scores.abs().max()) or 1.0
        assert torch.allclose(scored.nthr_scores[rows][mask], want.scores, atol=1e-5 * scale, rtol=1e-4)
        assert torch.equal(scored.nthr_selected[rows][mask], want.selected)
        assert torch.allclose(scored.nthr_factor[rows][mask], want.factor)
        if math.isnan(float(want.gwhes)):
            assert group not in scored.gwhes
        else:
            assert scored.gwhes[group] == pytest.approx(float(want.gwhes), rel=1e-3)
    off = ~batch.action_mask
    assert not scored.nthr_scores[off].any() and not scored.nthr_selected[off].any()
    assert (scored.nthr_factor[off] == 1).all()


def test_hidden_states_of_few_groups_are_held_at_once(folder, monkeypatch):
    engine, held = make(folder), []
    batch = shuffled(rollout(engine, 14))
    want = engine.score(batch, nthr=NTHRConfig(enabled=True))
    collect = scoring._hidden_of_actions
    monkeypatch.setattr(scoring, "_hidden_of_actions", lambda e, b: held.append(collect(e, b)) or held[-1])
    monkeypatch.setattr(scoring, "HELD_BYTES", int(batch.lengths().sum()) * 64 * 4 // 3)
    got = engine.score(batch, nthr=NTHRConfig(enabled=True))
    assert len(held) > 1 and sum(map(len, held)) == int(batch.action_mask.sum())
    assert torch.allclose(got.nthr_scores, want.nthr_scores, rtol=1e-4, atol=1e-4)
    assert torch.equal(got.nthr_selected, want.nthr_selected)


def test_metrics_are_of_incorrect_and_of_selected_tokens(folder):
    engine = make(folder)
    batch = rollout(engine)
    scored = engine.score(batch, nthr=NTHRConfig(enabled=True, beta=-math.inf, eta=0.25))
    mixed = torch.tensor([len(batch.correct[batch.group_ids == g].unique()) == 2 for g in batch.group_ids.tolist()])
    wrong = batch.action_mask & ~batch.correct[:, None] & mixed[:, None]
    assert torch.equal(scored.nthr_selected, wrong) and scored.metrics["nthr_selected"] == 1.0
    some = engine.score(batch, nthr=NTHRConfig(enabled=True, beta=0.0))
    assert some.metrics["nthr_selected"] == pytest.approx(float(some.nthr_selected.sum() / wrong.sum()))
    assert scored.metrics["nthr_eta"] == 0.25 and "nthr_agreement" not in scored.metrics
    batch.correct[:] = True
    nothing = engine.score(batch, nthr=NTHRConfig(enabled=True, beta=-math.inf))
    assert nothing.metrics == {} and nothing.gwhes == {} and (nothing.nthr_factor == 1).all()


def test_random_baseline_is_as_large_and_repeats(folder):
    engine = make(folder)
    batch = rollout(engine)
    nthr = NTHRConfig(enabled=True, beta=0.0)
    chosen = engine.score(batch, nthr=nthr).nthr_selected
    nthr.baseline = "random"
    a, b = engine.score(batch, nthr=nthr), engine.score(batch, nthr=nthr)
    assert chosen.any() and torch.equal(a.nthr_selected, b.nthr_selected)
    assert torch.equal(a.nthr_selected.sum(1), chosen.sum(1)) and not torch.equal(a.nthr_selected, chosen)
    assert not a.nthr_selected[~batch.action_mask].any()
    split = make(folder, micro_batch_tokens=40).score(batch, nthr=nthr)
    assert torch.equal(a.nthr_selected, split.nthr_selected)


def test_a_response_without_action_tokens_counts_in_p_only(folder):
    engine = make(folder)
    batch = rollout(engine, 4)
    batch.correct = torch.tensor([True, False, False, False])
    batch.action_mask[1] = False
    scored = engine.score(batch, nthr=NTHRConfig(enabled=True, beta=-math.inf))
    assert scored.nthr_factor[2][batch.action_mask[2]].unique().tolist() == [0.5]  # 2 |1/2 - 1/4|, not 2 |1/2 - 1/3|
    assert not scored.nthr_selected[1].any()


def test_an_untied_head_with_bias_and_softcap(folder):
    engine = make(folder)
    batch = rollout(engine)
    torch.manual_seed(1)
    engine.head = OutputHead(torch.nn.Linear(64, 528), softcap=3.0)
    with torch.no_grad():
        engine.head.module.weight.mul_(5)
    scored = engine.score(batch, nthr=NTHRConfig(enabled=True))
    assert torch.allclose(scored.logprobs, engine.score(batch).logprobs, atol=1e-5)
    for group in (0, 1, 2):
        rows, mask, want = by_function(engine, batch, group)
        assert torch.allclose(scored.nthr_scores[rows][mask], want.scores, rtol=1e-3, atol=1e-3)
    assert scored.nthr_scores.any()
    engine.head.softcap = None
    assert not torch.allclose(
        scored.nthr_scores, engine.score(batch, nthr=NTHRConfig(enabled=True)).nthr_scores, rtol=0.1
    )


def test_lora_on_the_head(folder):
    engine = make(folder, lora={"rank": 4, "alpha": 8, "targets": ["q_proj", "lm_head"]}, keep_reference=True)
    with torch.no_grad():
        engine.head.module.lora_B["default"].weight.normal_()
    batch = rollout(engine)
    scored = engine.score(batch, nthr=NTHRConfig(enabled=True))
    assert torch.allclose(scored.logprobs, engine.score(batch).logprobs, atol=1e-4)
    assert (scored.logprobs - engine.score(batch, reference=True).logprobs).abs().max() > 0.1
    rows, mask, want = by_function(engine, batch, 0)
    assert torch.allclose(scored.nthr_scores[rows][mask], want.scores, rtol=1e-3, atol=1e-4)


def test_bfloat16_scores_are_fp32_and_close(folder):
    a, b = make(folder, fast_path="off"), make(folder, dtype="bfloat16")
    batch = rollout(a)
    exact, half = (e.score(batch, nthr=NTHRConfig(enabled=True)) for e in (a, b))
    assert half.nthr_scores.dtype == torch.float32
    assert torch.allclose(half.logprobs, b.score(batch).logprobs, atol=2e-2)
    gap = (exact.nthr_scores - half.nthr_scores).norm() / exact.nthr_scores.norm()
    assert 0 < gap < 0.05


def test_nan_weights_are_explained(folder):
    engine = make(folder)
    batch = rollout(engine)
    with torch.no_grad():
        engine.head.module.weight[3] = float("nan")
    with pytest.raises(AlgorithmError, match=r"logits of \d+ of \d+ action tokens are not finite.*lower optim.lr"):
        engine.score(batch, nthr=NTHRConfig(enabled=True))


def test_heads_that_are_no_matrix_are_refused():
    class Two(torch.nn.Module):
        weight = torch.zeros(3, 2)

    with pytest.raises(ModelError, match=r"a Two; leave the head out of model\.lora\.targets"):
        nthr_head(OutputHead(Two()), 1.0, None)
    linear = torch.nn.Linear(2, 3)
    found = nthr_head(OutputHead(linear, softcap=30.0), 0.5, torch.bfloat16)
    assert found == Head(linear.weight, linear.bias, 30.0, 0.5, None, torch.bfloat16)

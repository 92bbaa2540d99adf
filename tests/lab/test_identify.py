"""GWHES against autograd on a real model, and the statistics of the comparison."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agentrl.lab.groups import Step
from agentrl.lab.identify import IdentifyResult, run_identify, spearman


def gwhes_by_autograd(engine, batch):
    """-⟨∇_W Σ_correct log π, ∇_W (p⁺ Σ_correct log π - p⁻ Σ_incorrect log π)⟩ for the output head W alone."""
    mask = batch.action_mask
    with torch.no_grad():
        hidden = engine.hidden(batch.input_ids[:, :-1], batch.attention_mask[:, :-1])[mask]
    weight = engine.head.module.weight.detach().clone().requires_grad_()
    logp = (hidden @ weight.t()).log_softmax(-1).gather(1, batch.input_ids[:, 1:][mask][:, None])[:, 0]
    right = batch.correct[mask.nonzero()[:, 0]]
    p = float(batch.correct.float().mean())
    up = torch.autograd.grad(logp[right].sum(), weight, retain_graph=True)[0]
    down = torch.autograd.grad(logp[~right].sum(), weight)[0]
    scale = math.sqrt(p * (1 - p))
    return -float((up * ((1 - p) / scale * up - p / scale * down)).sum())


def test_gwhes_is_minus_the_heads_share_of_the_first_order_change(lab):
    job, groups = lab
    found = run_identify(job, groups, top=2, step=Step("sgd", 1e-4), say=lambda line: None)
    wanted = [gwhes_by_autograd(job.local, g.batch) for g in groups]
    assert found.gwhes == pytest.approx(wanted, rel=1e-3)
    assert len(found.delta) == len(found.questions) == 5 and all(map(math.isfinite, found.delta))
    assert found.top == 2 and found.expected == pytest.approx(4 / 5)
    assert found.rank_correlation == pytest.approx(spearman(found.gwhes, [-d for d in found.delta]))
    highest = sorted(range(5), key=lambda i: -found.gwhes[i])[:2]
    lowest = sorted(range(5), key=lambda i: found.delta[i])[:2]
    assert found.overlap == len(set(highest) & set(lowest))


def test_more_questions_asked_for_than_there_are(lab):
    job, groups = lab
    found = run_identify(job, groups[:3], top=10, say=lambda line: None)
    assert (found.top, found.overlap, found.expected) == (3, 3, 3.0)
    assert "3/3 (random: 3.0)" in found.text()


def test_to_json_is_plain(lab):
    import json

    one = IdentifyResult(["q"], [1.0], [-1.0], 1, 1, 1.0, math.nan)
    assert set(json.loads(json.dumps(one.to_json()))) == set(vars(one))


def test_rank_correlation_of_small_cases():
    assert spearman([1, 2, 3], [10, 20, 90]) == pytest.approx(1.0)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    # ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: 4.5 / sqrt(4.5 * 5)
    assert spearman([0, 5, 5, 9], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert math.isnan(spearman([1, 1, 1], [1, 2, 3])) and math.isnan(spearman([1, 2], [1, 2]))


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=3, max_size=12))
def test_rank_correlation_is_that_of_numpys_ranks(pairs):
    import numpy as np

    def ranks(values):
        return [sum(v < w for v in values) + (sum(v == w for v in values) + 1) / 2 for w in values]

    a, b = zip(*pairs)
    got = spearman(a, b)
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert math.isnan(got)
    else:
        assert got == pytest.approx(float(np.corrcoef(ranks(a), ranks(b))[0, 1]), abs=1e-9)

"""NTHR on hand-built groups: autograd of the output head and loops on one side, the functions on the other."""

import math

import pytest
import torch

from agentrl.algorithms import NTHRResult, nthr, nthr_scores
from agentrl.algorithms.head import Head
from agentrl.algorithms.nthr import Agreement, Layout, eta_values, nthr_pass, random_like
from agentrl.config import NTHRConfig
from agentrl.errors import AlgorithmError

D, V = 10, 60


def group(correct, seed=0, tokens=(3, 9)):
    """Tokens of responses (correct: list of bool) in shuffled order, odd ids: hidden, ids, response_ids, correct."""
    g = torch.Generator().manual_seed(seed)
    sizes = torch.randint(*tokens, (len(correct),), generator=g)
    response = torch.arange(len(correct)).repeat_interleave(sizes)
    response = response[torch.randperm(len(response), generator=g)]
    right = torch.tensor(correct)[response]
    hidden = torch.randn(len(response), D, generator=g)
    ids = torch.randint(0, V // 3, (len(response),), generator=g)
    return hidden, ids, 100 - 7 * response, right


def weight(seed=0):
    return torch.randn(V, D, generator=torch.Generator().manual_seed(99 + seed)) * 0.6


def by_autograd(hidden, ids, w, response, correct, *, bias=None, temperature=1.0, beta=1.0, eta=None, softcap=None):
    """NTHR §5 and Thm 4.4 in float64 with one gradient per token."""
    w = w.double().requires_grad_()
    grads = []
    for h, y in zip(hidden.double(), ids):
        z = h @ w.t() + (0 if bias is None else bias.double())
        if softcap:
            z = torch.tanh(z / softcap) * softcap
        grads.append(torch.autograd.grad((z / temperature).log_softmax(-1)[y], w)[0])
    m = sum(g for g, c in zip(grads, correct) if c)
    s = [float((g * m).sum()) for g in grads]
    means = {
        r: sum(x for x, q in zip(s, response.tolist()) if q == r) / response.tolist().count(r)
        for r in response[correct].tolist()
    }
    tau = -math.inf if beta == -math.inf else beta * min(means.values())
    p = len(means) / len(set(response.tolist()))
    selected = [not c and x > tau for x, c in zip(s, correct.tolist())]
    wrong, right = (sum(x for x, c in zip(s, correct.tolist()) if c == flag) for flag in (False, True))
    root = math.sqrt(p * (1 - p))
    return s, tau, selected, 2 * abs(0.5 - p) if eta is None else eta, p / root * wrong - (1 - p) / root * right


def assert_result(got: NTHRResult, want, k=0, tokens=slice(None)):
    s, tau, selected, eta, gwhes = want
    scale = max(map(abs, s))
    assert got.scores[tokens].tolist() == pytest.approx(s, abs=2e-5 * scale)
    assert float(got.thresholds[k]) == pytest.approx(tau, rel=1e-4)
    assert got.selected[tokens].tolist() == selected
    assert float(got.eta[k]) == pytest.approx(eta, abs=1e-6)
    assert float(got.gwhes[k]) == pytest.approx(gwhes, rel=1e-4)
    assert got.factor[tokens].tolist() == pytest.approx([eta if x else 1.0 for x in selected], abs=1e-6)


@pytest.mark.parametrize("correct", [[True, False], [False, True, True, False, False], [True] * 7 + [False]])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.7}, {"head_bias": torch.linspace(-1, 1, V)}])
@pytest.mark.parametrize("beta", [1.0, 0.0, -1.0, -math.inf])
def test_one_group_equals_autograd(correct, options, beta):
    hidden, ids, response, right = group(correct)
    want = by_autograd(
        hidden, ids, weight(), response, right, beta=beta, bias=options.get("head_bias"),
        temperature=options.get("temperature", 1.0),
    )  # fmt: skip
    got = nthr_scores(hidden, ids, weight(), response, right, beta=beta, **options)
    assert_result(got, want)
    assert got.thresholds.shape == got.eta.shape == got.gwhes.shape == (1,)
    if beta == -math.inf:
        assert torch.equal(got.selected, ~right)


def test_the_tests_above_see_both_outcomes():
    hidden, ids, response, right = group([False, True, True, False, False])
    selected = nthr_scores(hidden, ids, weight(), response, right, beta=0.0).selected
    assert 0 < int(selected.sum()) < int((~right).sum())


def test_a_score_equal_to_the_threshold_is_not_selected():
    hidden, ids, response, right = group([True, False, False])
    hidden[~right] = 0.0
    got = nthr_scores(hidden, ids, weight(), response, right, beta=0.0)
    assert not got.scores[~right].any() and float(got.thresholds) == 0.0 and not got.selected.any()


@pytest.mark.parametrize("beta", [-math.inf, math.inf])
def test_an_infinite_threshold_does_not_depend_on_the_scores(beta):
    hidden, ids, response, right = group([True, False, False])
    hidden[right] = 0.0  # all scores are 0, and 0 times infinity is not a number
    got = nthr_scores(hidden, ids, weight(), response, right, beta=beta)
    assert float(got.thresholds) == beta
    assert torch.equal(got.selected, ~right if beta < 0 else torch.zeros_like(right))


@pytest.mark.parametrize("chunk_tokens", [2048, 7])
def test_many_groups_of_unequal_size_in_any_order(chunk_tokens):
    kinds = [[True, False, False], [True, True], [False], [False, True, False, True, True, False], [True, False]]
    made = [group(c, seed) for seed, c in enumerate(kinds)]
    names = [40, -3, 7, 0, 12]
    ids = torch.cat([torch.full((len(m[1]),), n) for m, n in zip(made, names)])
    mix = torch.randperm(len(ids), generator=torch.Generator().manual_seed(5))
    hidden, y, response, right = (torch.cat(x)[mix] for x in zip(*made))
    got = nthr_scores(hidden, y, weight(), response, right, ids[mix], beta=0.0, chunk_tokens=chunk_tokens)
    assert got.group_ids.tolist() == sorted(names)
    for m, n, kind in zip(made, names, kinds):
        k, tokens = sorted(names).index(n), ids[mix] == n
        if len(set(kind)) == 2:
            place = (ids == n).nonzero()[:, 0].tolist()
            order = [place.index(int(i)) for i in mix if ids[i] == n]
            shuffled = [x[order] for x in m]
            assert_result(got, by_autograd(shuffled[0], shuffled[1], weight(), *shuffled[2:], beta=0.0), k, tokens)
        else:
            assert not got.scores[tokens].any() and not got.selected[tokens].any()
            assert got.thresholds[k].isnan() and got.gwhes[k].isnan() and got.eta[k] == 1


@pytest.mark.parametrize("correct", [[True, True], [False, False], [False]])
@pytest.mark.parametrize("beta", [1.0, -math.inf])
@pytest.mark.parametrize("method", ["exact", "vstar"])
def test_a_group_that_is_not_mixed_keeps_its_advantages(correct, beta, method):
    got = nthr_scores(*group(correct)[:2], weight(), *group(correct)[2:], beta=beta, method=method)
    assert not got.selected.any() and (got.factor == 1).all() and not got.scores.any()
    assert got.thresholds.isnan().all() and got.gwhes.isnan().all() and got.eta.tolist() == [1.0]


@pytest.mark.parametrize(
    ("eta", "value"), [("2|0.5-p|", 0.5), ("0", 0.0), ("p", 0.25), ("1-p", 0.75), (0.3, 0.3), (0, 0.0)]
)
def test_eta(eta, value):
    hidden, ids, response, right = group([True, False, False, False])
    got = nthr_scores(hidden, ids, weight(), response, right, beta=-math.inf, eta=eta)
    assert_result(got, by_autograd(hidden, ids, weight(), response, right, beta=-math.inf, eta=value))


def test_vstar_keeps_the_full_normaliser():
    hidden, ids, response, right = group([True, False, True, False])
    w = weight()
    got = nthr_scores(hidden, ids, w, response, right, method="vstar")
    columns = torch.unique(ids)
    g = torch.nn.functional.one_hot(ids, V) - (hidden @ w.t()).softmax(-1)
    m = g[right][:, columns].t() @ hidden[right]
    assert torch.allclose(got.scores, (g[:, columns] * (hidden @ m.t())).sum(1), rtol=1e-4, atol=1e-5)
    whole = nthr_scores(hidden, ids, w, torch.where(right, 0, 1), right)
    assert not torch.allclose(got.scores, whole.scores, rtol=1e-2)
    everything = torch.arange(V)  # and with all columns V* is the definition
    hidden, ids = torch.cat([hidden, torch.zeros(V, D)]), torch.cat([ids, everything])
    more = {
        "response_ids": torch.cat([response, torch.full((V,), 5)]),
        "correct": torch.cat([right, torch.zeros(V) > 0]),
    }
    a, b = (nthr_scores(hidden, ids, w, **more, method=m) for m in ("exact", "vstar"))
    assert torch.allclose(a.scores, b.scores, rtol=1e-4, atol=1e-5)


# -------------------------------------------------------------------------------------------------------------- auto


def many(n=6):
    made = [group([True, False, True, False, False], seed, tokens=(8, 12)) for seed in range(n)]
    ids = torch.cat([torch.full((len(m[1]),), k) for k, m in enumerate(made)])
    hidden, y, response, right = (torch.cat(x) for x in zip(*made))
    return hidden, y, weight(), response, right, ids


def test_auto_is_exact_where_the_vocabulary_is_small():
    got, exact = (nthr_scores(*many(), method=m) for m in ("auto", "exact"))
    assert torch.equal(got.scores, exact.scores) and got.agreement is None


@pytest.mark.parametrize("needed", [0.0, 1.01])
def test_auto_measures_on_the_first_groups_and_then_decides(needed, monkeypatch):
    monkeypatch.setattr(nthr, "SMALL_VOCABULARY", 0)
    monkeypatch.setattr(nthr, "SAMPLE_TOKENS", 40)
    monkeypatch.setattr(nthr, "AGREEMENT", needed)
    data = many()
    auto, exact, vstar = (nthr_scores(*data, method=m, beta=0.0) for m in ("auto", "exact", "vstar"))
    wrong, first = ~data[4], data[5] < 2  # 28 or so incorrect tokens a group: two groups are looked at
    assert 40 <= int((wrong & first).sum()) < 100
    same = (exact.selected == vstar.selected)[wrong & first].float().mean()
    assert auto.agreement == pytest.approx(float(same))
    assert torch.allclose(auto.scores[first], exact.scores[first], atol=1e-4)
    rest = vstar if needed == 0.0 else exact
    assert torch.allclose(auto.scores[~first], rest.scores[~first], atol=1e-4)
    assert not torch.allclose(vstar.scores[~first], exact.scores[~first], atol=1e-2)


def test_what_auto_measured_carries_over_to_the_next_part(monkeypatch):
    monkeypatch.setattr(nthr, "SMALL_VOCABULARY", 0)
    hidden, y, w, response, right, _ = many(1)
    layout = Layout((100 - response) // 7, torch.zeros(5).long(), torch.tensor([True, False, True, False, False]), 1)
    order = layout.order()
    layout = Layout(layout.response[order], layout.group, layout.correct, 1)
    known = Agreement(same=5000, tokens=5000)
    done, result = nthr_pass(Head(w), hidden[order], y[order], layout, method="auto", entropy=True, agreement=known)
    assert result.agreement == 1.0 and known.tokens == 5000
    vstar = nthr_scores(hidden, y, w, response, right, method="vstar")
    assert torch.allclose(result.scores, vstar.scores[order], atol=1e-5)
    logp = (hidden @ w.t()).log_softmax(-1)[order]
    assert torch.allclose(done.entropy, -(logp.exp() * logp).sum(1), atol=1e-5)


# ------------------------------------------------------------------------------------------------------------ random


def test_random_baseline_selects_as_many_per_response():
    data = many()
    chosen = nthr_scores(*data, beta=0.0)
    got = [nthr_scores(*data, beta=0.0, baseline="random", seed=s) for s in (1, 1, 2)]
    assert torch.equal(got[0].selected, got[1].selected) and not torch.equal(got[0].selected, got[2].selected)
    assert not got[0].selected[data[4]].any()
    key = data[5] * 1000 + data[3]
    for r in key.unique().tolist():
        assert int(got[0].selected[key == r].sum()) == int(chosen.selected[key == r].sum())
    assert torch.equal(got[0].factor == 1, ~got[0].selected)


def test_random_choice_is_uniform():
    selected, response = torch.tensor([1, 0, 0, 1, 0, 0, 0, 0]) > 0, torch.tensor([5, 5, 5, 5, -1, -1, 5, -1])
    counts = torch.zeros(8)
    for seed in range(2000):
        draw = torch.rand(8, generator=torch.Generator().manual_seed(seed))
        counts += random_like(selected, response, draw)
    assert counts[response == -1].tolist() == [0, 0, 0]
    assert counts[response == 5].tolist() == pytest.approx([800] * 5, abs=110)  # 2 of 5; five standard deviations


# --------------------------------------------------------------------------------------------------------- bad input


def test_bad_input():
    hidden, ids, response, right = group([True, False, False])
    w = weight()
    cases = [
        ({"method": "exakt"}, r"method 'exakt' does not exist; did you mean 'exact'\?; known: exact, vstar, auto"),
        ({"beta": math.nan}, "^beta is not a number; 1 is the paper's value, -inf selects every incorrect token$"),
        ({"eta": "1-q"}, r"eta is '1-q'; did you mean '1-p'\?; known: 2\|0.5-p\|, 0, p, 1-p, or a number"),
        ({"eta": math.inf}, "eta is inf; it multiplies advantages and must be finite"),
        ({"baseline": "greedy"}, "baseline 'greedy' does not exist; use 'random' or None"),
        ({"temperature": 0.0}, r"temperature is 0\.0; a greedy policy has no gradient"),
    ]
    for options, message in cases:
        with pytest.raises(AlgorithmError, match=message):
            nthr_scores(hidden, ids, w, response, right, **options)
    mixed_up = right.clone()
    mixed_up[right.nonzero()[0]] = False
    wrong_arguments = [
        ((hidden, ids, w, response, mixed_up), r"response 100 has \d tokens marked correct and 1 not"),
        ((hidden, ids, w[:, :4], response, right), r"shapes are .*wanted are hidden \(N, d\)"),
        ((hidden, ids[:-1], w, response, right), r"shapes are .*token_ids \(N,\)"),
        ((hidden, ids, w, response, right.long()), r"correct is torch\.int64; give bool"),
        ((hidden, ids + V, w, response, right), f"but the head has {V} rows"),
        ((hidden, ids * 0 + V, w, response, right), f"token ids run from {V} to {V}, but the head has {V} rows"),
        ((hidden, ids, w[0], response, right), r"shapes are \[\(\d+, 10\), .*wanted are hidden \(N, d\)"),
        (
            (hidden[:0], ids[:0], w, response[:0], right[:0]),
            "^there are no action tokens to score; leave empty .* out$",
        ),
    ]
    for arguments, message in wrong_arguments:
        with pytest.raises(AlgorithmError, match=message):
            nthr_scores(*arguments)


@pytest.mark.parametrize("method", ["exact", "vstar"])
def test_logits_that_are_not_finite_are_explained(method):
    hidden, ids, response, right = group([True, False])
    shuffle = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))  # any order of the caller's
    hidden, ids, response, right = hidden[shuffle], ids[shuffle], response[shuffle], right[shuffle]
    own = (response == response.max()).nonzero()[:, 0]
    of, bad = len(own), int(own[-1])  # the last token of a response
    hidden[bad, 0] = math.nan
    where = rf"\(one is number {of} of the {of} of its response, id {ids[bad]}\)"
    with pytest.raises(AlgorithmError, match=rf"^the logits of 1 of {len(ids)} action tokens are not finite {where}"):
        nthr_scores(hidden, ids, weight(), response, right, method=method)


def test_the_config_refuses_numbers_that_are_none():
    assert NTHRConfig(beta="-inf").beta == -math.inf and NTHRConfig(eta="0.3").eta == 0.3
    with pytest.raises(ValueError, match="beta is not a number; 1 is usual"):
        NTHRConfig(beta=math.nan)
    for eta in (math.inf, math.nan):
        with pytest.raises(ValueError, match=f"eta is {eta}; it multiplies the penalty of selected tokens"):
            NTHRConfig(eta=eta)


def test_eta_of_many_groups():
    p = torch.tensor([0.125, 0.5, 0.875])
    assert eta_values("2|0.5-p|", p).tolist() == [0.75, 0.0, 0.75]
    assert eta_values("1-p", p).tolist() == [0.875, 0.5, 0.125]


@pytest.mark.parametrize("method", ["exact", "vstar"])
def test_what_is_made_is_made_where_the_model_is(method):
    data = many(2)
    want = nthr_scores(*data, method=method, beta=0.0)
    with torch.device("meta"):  # a tensor that is made without a device holds nothing
        got = nthr_scores(*data, method=method, beta=0.0)
    assert torch.equal(got.scores, want.scores) and torch.equal(got.group_ids, want.group_ids)
    chosen, draw = want.selected, torch.rand(len(want.selected), generator=torch.Generator().manual_seed(1))
    expected = random_like(chosen, data[3], draw)
    with torch.device("meta"):
        assert torch.equal(random_like(chosen, data[3], draw), expected)


def test_a_group_may_have_one_token_of_each_kind():
    hidden, ids = torch.randn(2, D, generator=torch.Generator().manual_seed(3)), torch.tensor([4, 9])
    response, right = torch.tensor([0, 1]), torch.tensor([True, False])
    got = nthr_scores(hidden, ids, weight(), response, right, beta=-math.inf)
    assert_result(got, by_autograd(hidden, ids, weight(), response, right, beta=-math.inf))
    got = nthr_scores(hidden, ids, weight(), response, right)
    assert_result(got, by_autograd(hidden, ids, weight(), response, right))


def test_the_sample_of_auto_is_whole_groups_with_enough_incorrect_tokens():
    spans = [(5, 2, 10), (10, 4, 16), (20, 1, 22)]  # 3, 2 and 1 incorrect tokens
    assert [nthr._sample(spans, n) for n in (-1, 0, 1, 3, 4, 5, 6, 99)] == [0, 0, 10, 10, 16, 16, 22, 22]


def test_tokens_of_a_kind_keep_their_order():
    g = torch.Generator().manual_seed(4)
    response = torch.randint(0, 6, (500,), generator=g)
    layout = Layout(
        response, torch.tensor([1, 0, 1, 0, 2, 2]), torch.tensor([True, False, False, True, True, False]), 3
    )
    key = [(int(layout.group[r]), not layout.correct[r]) for r in response]
    assert layout.order().tolist() == sorted(range(500), key=lambda i: key[i])


def test_the_random_choice_is_of_the_smallest_draws():
    response, selected = torch.tensor([3, 8, 3, 8, 3]), torch.tensor([True, False, True, True, False])
    chosen = random_like(selected, response, torch.tensor([0.5, 0.9, 0.1, 0.2, 0.3]))
    assert chosen.tolist() == [False, False, True, True, True]


def test_the_softcap_reaches_the_scores_and_defaults_are_those_of_the_paper():
    hidden, ids, response, right = group([True, False, True, False])
    got = nthr_scores(hidden, ids, weight(), response, right, softcap=2.0)
    assert_result(got, by_autograd(hidden, ids, weight(), response, right, softcap=2.0, beta=1.0))
    data = many()
    one, two = (nthr_scores(*data, beta=0.0, baseline="random", **options) for options in ({}, {"seed": 0}))
    assert torch.equal(one.selected, two.selected)
    with pytest.raises(AlgorithmError, match=r"wanted are .* group_ids \(N,\)"):
        nthr_scores(hidden, ids, weight(), response, right, torch.zeros(2).long())
    with pytest.raises(AlgorithmError, match=r"; correctness belongs to the whole response$"):
        nthr_scores(hidden, ids, weight(), torch.zeros_like(response), right)


def test_a_response_without_tokens_sets_no_threshold():
    hidden, ids, response, right = group([True, False, True, False])
    rows = (100 - response) // 7
    layout = Layout(rows, torch.zeros(6).long(), torch.tensor([True, False, True, False, True, False]), 1)
    order = layout.order()
    layout = Layout(rows[order], layout.group, layout.correct, 1)
    head, hidden_, ids_ = Head(weight()), hidden[order], ids[order]
    with torch.device("meta"):  # a tensor that is made without a device holds nothing
        done, got = nthr_pass(head, hidden_, ids_, layout)
    assert done.entropy is None and got.group_ids.tolist() == [0]
    s, tau, *_ = by_autograd(hidden, ids, weight(), response, right)
    assert float(got.thresholds[0]) == pytest.approx(tau, rel=1e-4)
    assert got.scores.tolist() == pytest.approx([s[i] for i in order], abs=1e-3)


def test_a_group_whose_incorrect_response_has_no_token_is_not_mixed():
    hidden, ids, response, right = group([True, True])
    layout = Layout((100 - response) // 7, torch.zeros(3).long(), torch.tensor([True, True, False]), 1)
    _, got = nthr_pass(Head(weight()), hidden, ids, layout, beta=-math.inf)
    assert got.thresholds.isnan().all() and got.eta.tolist() == [1.0] and right.all()


def test_auto_gives_the_same_pass_in_two_parts(monkeypatch):
    hidden, y, w, response, right, ids = many()
    monkeypatch.setattr(nthr, "SMALL_VOCABULARY", V)
    data = (hidden, y, w, response, right, ids)
    assert nthr_scores(*data, method="auto").agreement is None  # as large as what counts as small
    monkeypatch.setattr(nthr, "SMALL_VOCABULARY", 0)
    monkeypatch.setattr(nthr, "SAMPLE_TOKENS", 40)
    rows = torch.unique(torch.stack([ids, response]), dim=1, return_inverse=True)
    layout = Layout(rows[1], rows[0][0], torch.tensor([bool(right[rows[1] == r][0]) for r in range(30)]), 6)
    order = layout.order()
    layout = Layout(layout.response[order], layout.group, layout.correct, 6)
    got, _ = nthr_pass(Head(w), hidden[order], y[order], layout, method="auto", entropy=True)
    want = nthr.head_pass(Head(w), hidden[order], y[order], entropy=True)
    for name in ("logprobs", "logsumexp", "entropy"):
        assert torch.allclose(getattr(got, name), getattr(want, name), atol=1e-5), name

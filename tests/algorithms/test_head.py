"""The pass over the output head against log-softmax and autograd in float64, for every route and way of splitting."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from agentrl.algorithms import head as module
from agentrl.algorithms.head import Head, blocks, column_scores, head_pass
from agentrl.errors import AlgorithmError

N, D, V = 40, 12, 700
SPANS = [(3, 5, 12), (12, 9, 25), (30, 2, 38)]  # with tokens of no group between them


def case(seed=0, *, bias=False, softcap=None, temperature=1.0, rank=0, scale=1.0):
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g)

    low_rank = (normal(rank, D) * 0.3, normal(V, rank) * 0.3) if rank else None
    head = Head(normal(V, D) * scale, normal(V) if bias else None, softcap, temperature, low_rank)
    return head, normal(N, D), torch.randint(0, V, (N,), generator=g)


def reference(head, hidden, ids, spans=SPANS):
    """log π, entropy and scores by autograd of the effective head matrix, in float64."""
    w = head.weight.double()
    if head.low_rank is not None:
        a, b = (x.double() for x in head.low_rank)
        w = w + b @ a
    w = w.clone().requires_grad_()

    def logp(t):
        z = hidden[t].double() @ w.t()
        if head.bias is not None:
            z = z + head.bias.double()
        if head.softcap:
            z = torch.tanh(z / head.softcap) * head.softcap
        return (z / head.temperature).log_softmax(-1)

    rows = torch.stack([logp(t).detach() for t in range(len(ids))])
    grads = [torch.autograd.grad(logp(t)[ids[t]], w)[0] for t in range(len(ids))]
    scores = torch.zeros(len(ids), dtype=torch.float64)
    for a, right, b in spans:
        m = sum(grads[a : a + right])
        for t in range(a, b):
            scores[t] = (grads[t] * m).sum()
    own = rows.gather(1, ids[:, None])[:, 0]
    return own, -(rows.exp() * rows).sum(1), scores


def assert_close(got, want, what):
    scale = float(want.abs().max())
    assert float((got - want).abs().max()) < 2e-5 * max(scale, 1.0), what


HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "softcap": {"softcap": 5.0},
    "temperature": {"temperature": 0.6},
    "low rank": {"rank": 3},
    "all": {"bias": True, "softcap": 8.0, "temperature": 2.0, "rank": 2},
    "confident": {"scale": 6.0},  # most probabilities are 0 or 1 in fp32
}
SPLITS = {"dense": (1 << 22, 2048), "streamed": (N * 256, 2048), "chunks": (1 << 22, 8), "both": (1, 8)}


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("gram", [True, False])
def test_one_pass_gives_everything(kind, split, gram, monkeypatch):
    elements, chunk = SPLITS[split]
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", elements)
    monkeypatch.setattr(module, "prefers_gram", lambda *a, **k: gram)
    head, hidden, ids = case(**HEADS[kind])
    logprobs, entropy, scores = reference(head, hidden, ids)
    got = head_pass(head, hidden, ids, entropy=True, spans=SPANS, chunk_tokens=chunk)
    assert_close(got.logprobs, logprobs, "log π")
    assert_close(got.entropy, entropy, "entropy")
    assert_close(got.scores, scores, "scores")
    assert got.scores.dtype == torch.float32
    assert not got.scores[:3].any() and not got.scores[25:30].any()  # outside the spans
    bare = head_pass(head, hidden, ids, chunk_tokens=chunk)
    assert bare.entropy is None and bare.scores is None
    assert_close(bare.logprobs, logprobs, "log π alone")


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("chunk", [2048, 8])
@pytest.mark.parametrize("gram", [True, False])
def test_some_columns_use_the_full_normaliser(kind, chunk, gram, monkeypatch):
    monkeypatch.setattr(module, "prefers_gram", lambda *a, **k: gram)
    head, hidden, ids = case(1, **HEADS[kind])
    columns = torch.unique(ids)
    got = column_scores(
        head, hidden, ids, head_pass(head, hidden, ids).logsumexp, 15, columns=columns, chunk_tokens=chunk
    )
    z = hidden.double() @ head.weight.double().t()
    if head.low_rank is not None:
        z = z + hidden.double() @ head.low_rank[0].double().t() @ head.low_rank[1].double().t()
    if head.bias is not None:
        z = z + head.bias.double()
    slope = torch.ones_like(z)
    if head.softcap:
        slope = 1 - torch.tanh(z / head.softcap) ** 2
        z = torch.tanh(z / head.softcap) * head.softcap
    p = (z / head.temperature).softmax(-1)
    g = ((torch.nn.functional.one_hot(ids, V) - p) * slope / head.temperature)[:, columns]
    m = g[:15].t() @ hidden[:15].double()
    assert_close(got, ((hidden.double() @ m.t()) * g).sum(1), "scores")


def test_the_routes_are_chosen_by_cost(monkeypatch):
    few = module.prefers_gram(512, 256, 151_936, 896, again=512)
    many = module.prefers_gram(8192, 6000, 151_936, 896, again=8192)
    assert few and not many
    # 12 x (n + d) multiplications against (7 + again) x n x d, with n = 6 and d = 3: 108 against 126 + 18 again
    assert module.prefers_gram(4, 3, 6, 3)
    assert module.prefers_gram(4, 4, 6, 3) and not module.prefers_gram(4, 5, 6, 3)  # 144 against 144, 180 against 162
    assert module.prefers_gram(7, 6, 6, 3, again=8) and module.prefers_gram(7, 6, 6, 3, again=9)  # 378 against 378
    assert not module.prefers_gram(7, 6, 6, 3, again=7)
    assert module.prefers_gram(6, 6, 6, 3, again=6) and not module.prefers_gram(6, 6, 6, 3)  # 324 against 324, 216
    monkeypatch.setattr(module, "GRAM_ELEMENTS", 12)
    assert module.prefers_gram(4, 3, 6, 3) and not module.prefers_gram(5, 3, 60, 30)  # 12 pairs fit, 15 do not


@pytest.mark.parametrize("elements", [1 << 22, 1])
@pytest.mark.parametrize("gram", [True, False])
def test_what_is_made_is_made_where_the_model_is(elements, gram, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", elements)
    monkeypatch.setattr(module, "prefers_gram", lambda *a, **k: gram)
    head, hidden, ids = case()
    want = head_pass(head, hidden, ids, entropy=True, spans=SPANS)
    with torch.device("meta"):  # a tensor that is made without a device holds nothing
        got = head_pass(head, hidden, ids, entropy=True, spans=SPANS)
    for name in ("logprobs", "logsumexp", "entropy", "scores"):
        assert torch.equal(getattr(got, name), getattr(want, name)), name


def test_blocks_cover_the_vocabulary_once():
    for total, rows in ((1, 5), (151_936, 512), (700, 10**9), (300, 1)):
        parts = blocks(total, rows, torch.device("cpu"))
        assert [i for p in parts for i in range(p.start, p.stop)] == list(range(total))


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = out if isinstance(out, tuple) else [out]
        self.elements = max([self.elements, *(t.numel() for t in made if isinstance(t, torch.Tensor))])
        return out


@pytest.mark.parametrize("gram", [True, False])
def test_no_tensor_grows_with_tokens_times_vocabulary(gram, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", 10_000)
    monkeypatch.setattr(module, "prefers_gram", lambda *a, **k: gram)
    head, _, _ = case()
    hidden, ids = torch.randn(400, D), torch.randint(0, V, (400,))
    for tokens in (100, 400):
        with Largest() as seen:
            head_pass(head, hidden[:tokens], ids[:tokens], entropy=True, spans=[(0, 20, tokens)], chunk_tokens=100)
        # 64 columns are taken at least; without blocks it would be tokens x V = 280,000
        assert 5_000 < seen.elements <= (25_600 if gram else 10_000), tokens


def test_logits_beyond_fp32_exponentials():
    head, hidden, ids = case(scale=200.0)  # logits in the thousands
    logprobs, entropy, _ = reference(head, hidden, ids, [])
    for elements in (1 << 22, 1):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "BLOCK_ELEMENTS", elements)
            got = head_pass(head, hidden, ids, entropy=True, spans=SPANS)
        assert_close(got.logprobs, logprobs, "log π")
        assert torch.allclose(got.entropy.double(), entropy, atol=1e-3)
        assert got.scores.isfinite().all()


def test_a_forbidden_token_does_no_harm():
    head, hidden, ids = case(bias=True)
    head.bias[::3] = float("-inf")
    ids = ids - ids % 3 + 1
    for elements in (1 << 22, 1):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "BLOCK_ELEMENTS", elements)
            got = head_pass(head, hidden, ids % V, entropy=True, spans=SPANS)
        z = hidden @ head.weight.t() + head.bias
        assert torch.allclose(got.logprobs, z.log_softmax(-1)[torch.arange(N), ids % V], atol=1e-4)
        assert torch.allclose(got.entropy, torch.special.entr(z.softmax(-1)).sum(-1), atol=1e-4)
        assert got.scores.isfinite().all()


def test_bfloat16_logits_are_the_models(monkeypatch):
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", N * 256)
    head, hidden, ids = case(2)
    half = Head(head.weight, dtype=torch.bfloat16)
    got = head_pass(half, hidden, ids, spans=SPANS)
    z = torch.nn.functional.linear(hidden.bfloat16(), head.weight.bfloat16()).float()
    assert torch.allclose(got.logprobs, z.log_softmax(-1)[torch.arange(N), ids], atol=1e-5)
    assert got.scores.dtype == torch.float32


def test_greedy_policies_have_no_gradient():
    with pytest.raises(
        AlgorithmError, match="temperature is 0; a greedy policy has no gradient: sample with one above"
    ):
        Head(torch.zeros(3, 2), temperature=0)

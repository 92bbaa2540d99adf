"""log π and entropy without all logits: values and gradients against plain torch and finite differences."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from agentrl.algorithms import head as module
from agentrl.algorithms.head import Head, head_pass
from agentrl.algorithms.logprobs import token_logprobs

N, D, V = 7, 5, 60
HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "softcap": {"softcap": 3.0},
    "temperature": {"temperature": 0.6},
    "low rank": {"rank": 2},
    "all": {"bias": True, "softcap": 4.0, "temperature": 1.7, "rank": 2},
}


def tensors(*, bias=False, rank=0, scale=1.0, dtype=torch.float64, n=N):
    """hidden, weight, bias, A, B (None where there is none), and the ids."""
    g = torch.Generator().manual_seed(0)

    def made(*shape):
        return (torch.randn(*shape, generator=g, dtype=torch.float64) * scale).to(dtype).requires_grad_()

    a, b = (made(rank, D), made(V, rank)) if rank else (None, None)
    return (made(n, D), made(V, D), made(V) if bias else None, a, b), torch.randint(0, V, (n,), generator=g)


def ours(leaves, ids, *, softcap=None, temperature=1.0, dtype=None, **more):
    hidden, weight, bias, a, b = leaves
    head = Head(weight, bias, softcap, temperature, None if a is None else (a, b), dtype)
    return torch.stack(token_logprobs(head, hidden, ids, entropy=True, **more))


def plain(leaves, ids, *, softcap=None, temperature=1.0):
    """(2, N) from the definition: all logits, log_softmax, the sum of -p log p over what can be sampled."""
    hidden, weight, bias, a, b = leaves
    z = hidden @ weight.t()
    z = z if bias is None else z + bias
    z = z if a is None else z + hidden @ a.t() @ b.t()
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    logp = (z / temperature).log_softmax(-1)
    return torch.stack([logp[torch.arange(len(ids)), ids], -(logp.exp() * logp).sum(-1)])


@pytest.mark.parametrize("elements", [1 << 20, N * 64], ids=["one block", "64 columns a block"])
@pytest.mark.parametrize("kind", HEADS)
def test_values_and_gradients_are_those_of_the_definition(kind, elements, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", elements)
    how = {k: v for k, v in HEADS[kind].items() if k in ("softcap", "temperature")}
    leaves, ids = tensors(**{k: v for k, v in HEADS[kind].items() if k in ("bias", "rank")})
    got, wanted = ours(leaves, ids, **how), plain(leaves, ids, **how)
    assert got.dtype == torch.float64 and torch.allclose(got, wanted, atol=1e-12)
    weight = torch.randn(2, N, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    given = [x for x in leaves if x is not None]
    for mine, theirs in zip(*(torch.autograd.grad((x * weight).sum(), given) for x in (got, wanted)), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-11)
    names = [i for i, x in enumerate(leaves) if x is not None]

    def values(*some):
        return ours([some[names.index(i)] if i in names else None for i in range(5)], ids, **how)

    assert torch.autograd.gradcheck(values, given)


def test_many_blocks_of_the_vocabulary_give_the_same(monkeypatch):
    (hidden, *_), ids = tensors()
    g = torch.Generator().manual_seed(3)
    weight = torch.randn(1000, D, generator=g, dtype=torch.float64).requires_grad_()
    leaves = (hidden, weight, None, None, None)
    wanted = torch.autograd.grad(plain(leaves, ids).square().sum(), (hidden, weight))
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", N * 100)
    got = torch.autograd.grad(ours(leaves, ids).square().sum(), (hidden, weight))
    assert all(torch.allclose(a, b, atol=1e-11) for a, b in zip(got, wanted, strict=True))


def test_a_tied_head_gets_the_sum_of_both_gradients():
    (_, weight, *_), ids = tensors()
    words = torch.randint(0, V, (N,), generator=torch.Generator().manual_seed(4))

    def loss(of):
        hidden = F.embedding(words, weight)
        return of((hidden, weight, None, None, None), ids)[0].sum()

    (got,), (wanted,) = (torch.autograd.grad(loss(of), weight) for of in (ours, plain))
    assert torch.allclose(got, wanted, atol=1e-12)


@pytest.mark.parametrize("below", [104.0, 150.0, 1e4, float("inf")])
def test_the_entropy_of_a_token_far_below_the_top_has_a_gradient(below):
    """exp(-104) is 0 in fp32: plain torch's entr(exp(log p)) has the gradient inf · 0 there."""
    bias = torch.zeros(V)
    bias[3:] = -below
    bias.requires_grad_()
    hidden, weight = torch.zeros(2, D, requires_grad=True), torch.zeros(V, D, requires_grad=True)
    head = Head(weight, bias)
    logp, entropy = token_logprobs(head, hidden, torch.tensor([0, 1]), entropy=True)
    assert entropy.tolist() == pytest.approx([torch.tensor(3.0).log().item()] * 2)
    grads = torch.autograd.grad((entropy + 0.5 * logp).sum(), (hidden, weight, bias))
    assert all(bool(g.isfinite().all()) for g in grads)
    # three tokens are alike: no gradient by the entropy; by log π (onehot - 1/3) / 2 of each
    assert grads[2][:4].tolist() == pytest.approx([0.5 - 1 / 3, 0.5 - 1 / 3, -1 / 3, 0.0], abs=1e-6)


def test_bfloat16_with_logits_of_forty():
    """Logits are rounded to bf16 as the model does, and fp32 from there on; the gradient is close to the exact one."""
    g = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(64, 32, generator=g), torch.randn(500, 32, generator=g)
    weight *= 40 / (hidden @ weight.t()).abs().max()
    hidden, weight = hidden.requires_grad_(), weight.requires_grad_()
    ids = (hidden @ weight.t()).detach().argmax(-1)
    z = F.linear(hidden.bfloat16(), weight.bfloat16())
    assert z.dtype == torch.bfloat16 and 39 < float(z.detach().abs().max()) < 41
    logp = z.float().log_softmax(-1)
    wanted = torch.stack([logp[torch.arange(64), ids], -(logp.exp() * logp).sum(-1)])
    got = ours((hidden, weight, None, None, None), ids, dtype=torch.bfloat16)
    assert torch.allclose(got, wanted, atol=1e-5) and got.dtype == torch.float32
    exact = plain(tuple(None if x is None else x.double() for x in (hidden, weight, None, None, None)), ids)
    for row in (0, 1):
        mine = torch.autograd.grad(got[row].sum(), (hidden, weight), retain_graph=True)
        theirs = torch.autograd.grad(exact[row].sum(), (hidden, weight), retain_graph=True)
        for a, b in zip(mine, theirs, strict=True):
            assert a.dtype == torch.float32 and float((a - b).norm() / b.norm()) < 0.1


def test_a_pass_that_was_made_is_not_made_again(monkeypatch):
    leaves, ids = tensors()
    head = Head(leaves[1])
    done = head_pass(head, leaves[0], ids, entropy=True)
    wanted = torch.autograd.grad(ours(leaves, ids).sum(), leaves[:2])
    monkeypatch.setattr("agentrl.algorithms.logprobs.head_pass", None)
    assert all(
        torch.equal(a, b)
        for a, b in zip(torch.autograd.grad(ours(leaves, ids, done=done).sum(), leaves[:2]), wanted, strict=True)
    )


def test_what_needs_no_gradient_gets_none():
    leaves, ids = tensors(bias=True)
    leaves[1].requires_grad_(False)
    token_logprobs(Head(leaves[1], leaves[2]), leaves[0], ids)[0].sum().backward()
    assert leaves[1].grad is None and leaves[0].grad is not None and leaves[2].grad is not None


def test_no_tokens_are_a_sum_of_zero_with_a_gradient_of_zero():
    (hidden, weight, *_), ids = tensors(n=0)
    token_logprobs(Head(weight), hidden, ids)[0].sum().backward()
    assert hidden.grad.shape == (0, D) and not weight.grad.any()


def test_logits_of_all_tokens_are_never_made(monkeypatch):
    seen = []
    logits = Head.logits
    monkeypatch.setattr(Head, "logits", lambda *a: seen.append(logits(*a)) or seen[-1])
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", 64 * 200)
    hidden, weight = torch.randn(200, 8, requires_grad=True), nn.Parameter(torch.randn(1000, 8))
    token_logprobs(Head(weight), hidden, torch.randint(0, 1000, (200,)))[0].sum().backward()
    assert len(seen) > 20 and max(z.numel() for z in seen) <= 64 * 200


def test_blocks_on_a_gpu_are_larger():
    """Blocks that a CPU's cache holds are done on a GPU before the next kernel is launched."""
    cpu, gpu = (len(module.blocks(151_936, 2048, torch.device(d))) for d in ("cpu", "cuda"))
    assert cpu == 149 and gpu == 10

"""The hand-written Llama and Qwen2 against the Hugging Face module; rows that begin alike are computed once."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from agentrl.engines.local import decoder
from agentrl.engines.local.cache import RowCache
from agentrl.engines.local.decoder import FastDecoder, shared_prefixes, usable
from tests.fakes import tiny_model

KINDS = ("llama", "llama with biases, untied", "qwen2")


def model_of(kind):
    torch.manual_seed(0)
    if kind == "qwen2":
        return tiny_model()
    biases = kind != "llama"
    config = LlamaConfig(
        vocab_size=300, hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=128, attention_bias=biases, mlp_bias=biases,
        tie_word_embeddings=not biases, initializer_range=0.2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 1:
                p.normal_(1.0 if not biases else 0.3, 0.3)
    return model


def rows():
    """Five rows with padding: two groups that begin alike, two equal rows, one alone."""
    ids = torch.randint(3, 299, (5, 17), generator=torch.Generator().manual_seed(0))
    ids[1, :9] = ids[0, :9]
    ids[2] = ids[0]
    ids[4, :3] = ids[3, :3]
    real = torch.arange(17) < torch.tensor([17, 12, 11, 17, 5])[:, None]
    return ids.masked_fill(~real, 0), real


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_and_gradients_agree(kind):
    model = model_of(kind).double()
    fast = FastDecoder(model)
    fast.cos, fast.sin = fast.cos.double(), fast.sin.double()
    ids, real = rows()
    own = model.model(input_ids=ids, attention_mask=real.long()).last_hidden_state
    ours = fast.hidden(ids, real)
    assert torch.allclose(own[real], ours[real], atol=2e-5)  # its norms and rotary tables are fp32
    assert bool(ours.isfinite().all())
    weight = torch.randn(own.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * real[..., None]
    names = [n for n, _ in model.model.named_parameters()]
    grads = [torch.autograd.grad((x * weight).sum(), list(model.model.parameters())) for x in (own, ours)]
    for name, a, b in zip(names, *grads, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(a.abs().max())), name


@pytest.mark.parametrize("kind", KINDS)
def test_sampling_agrees_with_a_cache_of_rows_of_different_lengths(kind):
    model = model_of(kind).eval()
    fast = FastDecoder(model)
    fast.refresh()
    cache = RowCache(torch.device("cpu"), torch.float32)
    cache.reserve(3, 40)
    ids, lengths = torch.randint(3, 299, (3, 12), generator=torch.Generator().manual_seed(2)), torch.tensor([12, 7, 10])
    plan = cache.plan([2, 0, 1], torch.zeros(3, dtype=torch.int64), lengths)
    first = fast.next_logits(ids, lengths - 1, cache, plan)
    more = torch.randint(3, 299, (3, 4), generator=torch.Generator().manual_seed(3))
    then = fast.next_logits(more, torch.full((3,), 3), cache, cache.plan([2, 0, 1], lengths, torch.full((3,), 4)))
    single = cache.plan(3, (lengths + 4)[[1, 2, 0]], torch.ones(3, dtype=torch.int64))
    last = fast.next_logits(more[[1, 2, 0], :1], torch.zeros(3, dtype=torch.int64), cache, single)[[2, 0, 1]]
    for i, n in enumerate(lengths.tolist()):
        whole = torch.cat([ids[i, :n], more[i], more[i, :1]])
        with torch.no_grad():
            own = model(whole[None]).logits[0]
        for got, at in ((first, n - 1), (then, n + 3), (last, n + 4)):
            assert torch.allclose(got[i], own[at], atol=1e-4 * float(own.abs().max()))


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_each_distinct_prefix_is_computed_once(some):
    C = max(map(len, some))
    ids = torch.tensor([r + [0] * (C - len(r)) for r in some])
    real = torch.arange(C) < torch.tensor([len(r) for r in some])[:, None]
    shared = shared_prefixes(ids, real)
    distinct = {tuple(r[: c + 1]) for r in some for c in range(len(r))}
    assert len(shared.first) == len(distinct)
    of = {}
    for b, r in enumerate(some):
        for c in range(len(r)):
            assert of.setdefault(tuple(r[: c + 1]), int(shared.place[b, c])) == int(shared.place[b, c])
    assert sorted(of.values()) == list(range(len(distinct)))
    assert sorted([*shared.first.tolist(), *shared.again.tolist()]) == real.flatten().nonzero()[:, 0].tolist()
    for at, number in zip(
        [*shared.first.tolist(), *shared.again.tolist()], [*range(len(distinct)), *shared.of.tolist()]
    ):
        assert int(shared.place.flatten()[at]) == number


def test_projections_see_each_distinct_token_once(monkeypatch):
    model, seen = model_of("llama"), []
    model.model.layers[0].mlp.up_proj.register_forward_pre_hook(lambda m, args: seen.append(len(args[0])))
    ids, real = rows()
    FastDecoder(model).hidden(ids, real)
    assert seen == [len({tuple(r[: c + 1]) for r, n in zip(ids.tolist(), real.sum(1).tolist()) for c in range(n)})]
    assert seen[0] == 17 + (12 - 9) + 17 + (5 - 3)


def test_models_that_are_something_else_go_through_their_module():
    model = model_of("llama")
    assert usable(model) and usable(model_of("qwen2"))
    model.config.hidden_size = decoder.LARGEST_WIDTH + 1
    assert not usable(model)
    for key, value in (("hidden_act", "gelu"), ("use_sliding_window", True)):
        model = model_of("llama")
        setattr(model.config, key, value)
        assert not usable(model)
    model = model_of("llama")
    model.config.rope_parameters = {"rope_type": "llama3", "rope_theta": 1e4}
    assert not usable(model)
    model = model_of("llama")
    model.model.layers[0].mlp.up_proj = torch.nn.Sequential(model.model.layers[0].mlp.up_proj)
    assert not usable(model)
    assert not usable(torch.nn.Linear(2, 2))

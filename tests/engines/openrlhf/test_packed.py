"""Packed rows are the padded ones, forward and backward, and nobody makes a mask over all of them."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from agentrl.config import ModelConfig
from agentrl.engines.openrlhf.forward import WorkerModel

SHAPE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 32, "vocab_size": 50, "max_position_embeddings": 64,
}  # fmt: skip
MODELS = {
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=16)),
    "a sliding window": lambda: Qwen2ForCausalLM(
        Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=3, max_window_layers=0)
    ),
}
LENGTHS = [37, 2, 24, 62]


class Largest(TorchDispatchMode):
    """The largest product of the last two sizes among tensors that are made."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(t, torch.Tensor) and t.dim() >= 2 and t.shape[-1] == t.shape[-2]:
                self.largest = max(self.largest, t.shape[-1])
        return out


def worker(make, packing):
    torch.manual_seed(0)
    model = make().eval()

    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.module, self.device = model, torch.device("cpu")

        def forward(self, **kwargs):
            return model(**kwargs)

    return WorkerModel(Wrapped(), ModelConfig(), micro_batch_tokens=100, packing=packing)


def batch():
    T = max(LENGTHS)
    g = torch.Generator().manual_seed(1)
    attention = torch.arange(T)[None] < torch.tensor(LENGTHS)[:, None]
    ids = torch.randint(0, 50, (len(LENGTHS), T), generator=g) * attention
    return SimpleNamespace(input_ids=ids, attention_mask=attention, action_mask=attention[:, 1:])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_rows_are_the_padded_ones(name, checkpointing):
    outs = []
    for packing in (False, True):
        w = worker(MODELS[name], packing)
        if checkpointing:
            w.module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            w.module.train()
        assert w._by_rows is packing
        logprobs, _ = w.logprobs(batch())
        logprobs.sum().backward()
        outs.append((logprobs.detach(), {n: p.grad for n, p in w.module.named_parameters()}))
    (padded, g1), (packed, g2) = outs
    assert float(padded.abs().max()) > 1
    assert torch.allclose(padded, packed, atol=1e-5)
    assert all(torch.allclose(g1[n], g2[n], atol=1e-4) for n in g1)


def test_no_mask_over_all_tokens():
    w = worker(MODELS["qwen2"], True)
    total = int(batch().attention_mask[:, :-1].sum())
    with Largest() as seen, torch.no_grad():
        w.logprobs(batch())
    assert seen.largest < total  # with the mask of transformers: all of them


def test_another_attention_is_left_alone():
    def eager():
        return Qwen2ForCausalLM._from_config(Qwen2Config(**SHAPE), attn_implementation="eager")

    w, padded = worker(eager, True), worker(eager, False)
    assert not w._by_rows and w.module.config._attn_implementation == "eager"
    assert torch.allclose(w.logprobs(batch())[0], padded.logprobs(batch())[0], atol=1e-5)

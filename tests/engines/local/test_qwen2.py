"""The hand-written Qwen2 against the Hugging Face module."""

import pytest
import torch

from agentrl.config import TinyModelConfig
from agentrl.engines.local import qwen2
from agentrl.engines.local.qwen2 import FastQwen2, usable
from agentrl.engines.shared.tiny import build_tiny_model
from tests.fakes import tiny_model, tiny_tokenizer


@pytest.mark.parametrize("short", [320, 8], ids=["explicit attention", "fused attention"])
def test_hidden_states_and_gradients_agree(monkeypatch, short):
    monkeypatch.setattr(qwen2, "SHORT", short)
    model = tiny_model().double()
    fast = FastQwen2(model)
    fast.cos, fast.sin = fast.cos.double(), fast.sin.double()
    ids = torch.randint(3, 500, (3, 21), generator=torch.Generator().manual_seed(0))
    own, ours = model.model(ids).last_hidden_state, fast.hidden(ids)
    assert torch.allclose(own, ours, atol=1e-6)  # the rotary tables are fp32
    weight = torch.randn(own.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    parameters = [p for n, p in model.named_parameters()]
    a = torch.autograd.grad((own * weight).sum(), parameters)
    b = torch.autograd.grad((ours * weight).sum(), parameters)
    for (name, _), x, y in zip(model.named_parameters(), a, b):
        assert torch.allclose(x, y, rtol=1e-5, atol=1e-5 * float(x.abs().max())), name


def test_logprobs_of_the_tiny_model_agree_to_1e_5():
    model = build_tiny_model(TinyModelConfig(), tiny_tokenizer(), seed=0).eval()
    ids = torch.randint(3, model.config.vocab_size, (4, 60), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        own = model(ids).logits.log_softmax(-1).gather(-1, ids[..., None])
        ours = model.lm_head(FastQwen2(model).hidden(ids)).log_softmax(-1).gather(-1, ids[..., None])
    assert float((own - ours).abs().mean()) < 1e-5


def test_only_plain_small_qwen2_takes_the_hand_written_path():
    model = tiny_model()
    assert usable(model)
    model.config.use_sliding_window = True
    assert not usable(model)
    assert not usable(torch.nn.Linear(2, 2))
    wide = tiny_model(hidden=576)
    assert not usable(wide)


def test_tiny_model_can_look_things_up_before_training():
    """After `a b ... a` the untrained model prefers b: the circuit is there, whatever the seed."""
    for seed in range(3):
        model = build_tiny_model(TinyModelConfig(), tiny_tokenizer(), seed=seed).eval()
        generator = torch.Generator().manual_seed(seed)
        better = 0
        for _ in range(50):
            ids = torch.randperm(400, generator=generator)[:20] + 3
            k = int(torch.randint(2, 17, (1,), generator=generator))
            asked = torch.cat([ids, ids[k - 1 : k + 1]])
            with torch.no_grad():
                logits = model(asked[None]).logits[0, -1]
            better += int((logits > logits[ids[k + 1]]).sum()) < 20
        assert better > 25, f"seed {seed}: the copied token was among the first 20 of 470 in {better} of 50 cases"


def test_tiny_model_follows_its_seed():
    config = TinyModelConfig()
    a, same, other = (build_tiny_model(config, tiny_tokenizer(), seed=s) for s in (0, 0, 1))
    assert torch.equal(a.lm_head.weight, same.lm_head.weight)
    assert not torch.equal(a.lm_head.weight, other.lm_head.weight)

"""Causal LMs of several families through their own modules: a conversation goes on in the cache as if it were whole."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

from agentrl.config import LossConfig, NTHRConfig
from tests.engines.local.test_engine import make, rollout
from tests.fakes import tiny_tokenizer

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
FAMILIES = {
    "llama": lambda v: hf.LlamaConfig(vocab_size=v, **SIZES),
    "qwen3": lambda v: hf.Qwen3Config(vocab_size=v, head_dim=16, tie_word_embeddings=True, **SIZES),
    "mistral_window": lambda v: hf.MistralConfig(vocab_size=v, sliding_window=6, **SIZES),
    "gemma2_softcap": lambda v: hf.Gemma2Config(
        vocab_size=v, head_dim=8, sliding_window=6, final_logit_softcapping=5.0, query_pre_attn_scalar=8, **SIZES
    ),
    "gpt2": lambda v: hf.GPT2Config(vocab_size=v, n_embd=32, n_layer=2, n_head=4, n_positions=256),
    "gpt_neox": lambda v: hf.GPTNeoXConfig(vocab_size=v, **{k: n for k, n in SIZES.items() if "key" not in k}),
    "phi3": lambda v: hf.Phi3Config(vocab_size=v, pad_token_id=0, **SIZES),
    "olmo2": lambda v: hf.Olmo2Config(vocab_size=v, **SIZES),
}


@pytest.fixture(params=sorted(FAMILIES))
def folder(request, tmp_path):
    tokenizer = tiny_tokenizer()
    config = FAMILIES[request.param](len(tokenizer))
    config.eos_token_id, config.pad_token_id, config.bos_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id, None
    torch.manual_seed(1)
    model = hf.AutoModelForCausalLM.from_config(config)
    for p in model.parameters():  # sharper than at initialisation, so that a wrong position or mask shows
        if p.dim() > 1:
            p.data.mul_(4.0)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_sampler_scorer_and_update(folder):
    engine = make(folder)
    assert (engine.fast is not None) == (engine.model.config.model_type == "llama")  # whose decoder is hand-written
    batch = rollout(engine)
    scored = engine.score(batch, nthr=NTHRConfig(enabled=True), entropy=True)
    assert float((scored.logprobs - batch.rollout_logprobs).abs().max()) < 1e-3
    assert scored.nthr_scores is not None and bool(scored.nthr_scores.isfinite().all())
    adv = (batch.rewards - 0.3)[:, None] * batch.action_mask
    metrics = engine.update(batch, adv, scored.logprobs, loss=LossConfig())
    assert metrics["grad_norm"] > 0 and "nonfinite" not in metrics
    engine.sync()
    again = rollout(engine)
    assert float((engine.score(again).logprobs - again.rollout_logprobs).abs().max()) < 1e-3

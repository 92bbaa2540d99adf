"""The built-in model: a plain Qwen2, small enough to learn to search on two CPU cores in a minute.

What takes a small transformer longest is to discover looking things up: attend to the previous tokens, match them
against earlier text, copy what stood there (an induction circuit). `build_tiny_model` starts with a soft version of
that circuit in the weights. Nothing else is special: `save_pretrained`, vLLM and the rest of the ecosystem take the
model as it is, and every weight is trained.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from agentrl.config import TinyModelConfig

ROPE_THETA = 1e6
PREVIOUS_TOKEN_BIAS = 8.0  # strength of the heads that look one and two tokens back
FAST = 0.1  # radians per token from which a rotary dimension tells neighbours apart; slower ones only add rounding
MATCH_GAIN = 1.5  # of the head that looks for what stood before
COPY_GAIN = 4.0  # of the values that are copied
SLOW_SPAN = 60  # tokens over which a rotary dimension must turn by less than a radian to be used for matching


def tiny_model_config(config: TinyModelConfig, tokenizer: PreTrainedTokenizerFast) -> Qwen2Config:
    """The Qwen2 config for the tokenizer's vocabulary."""
    return Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        intermediate_size=config.intermediate_size,
        max_position_embeddings=config.max_positions,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        initializer_range=config.init_std,
        attention_dropout=0.0,
        use_sliding_window=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )


def build_tiny_model(config: TinyModelConfig, tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen2ForCausalLM:
    """A freshly initialised Qwen2 for the tokenizer's vocabulary; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(tiny_model_config(config, tokenizer))
        with torch.no_grad():
            embedding = model.model.embed_tokens.weight
            embedding.normal_(0, config.embedding_std)
            embedding[tokenizer.pad_token_id] = 0
            if config.layers > 1 and config.heads > 1 and 2 * config.hidden_size // config.heads <= config.hidden_size:
                _induction_circuit(model, config)
    return model


def _induction_circuit(model: Qwen2ForCausalLM, config: TinyModelConfig) -> None:
    """Layer 0, heads 0 and 1 write the tokens one and two back into directions of their own.

    Layer 1, head 0 matches (previous, second previous) of earlier positions against (this, previous); all heads of
    layer 1 copy what they see.
    """
    d, hd = config.hidden_size, config.hidden_size // config.heads
    group = config.heads // config.kv_heads  # query heads per key head
    frequency = 1.0 / (ROPE_THETA ** (torch.arange(0, hd, 2).float() / hd))  # (hd / 2,)
    zero, bias = torch.zeros_like(frequency), PREVIOUS_TOKEN_BIAS * (frequency > FAST).float()
    first, second = model.model.layers[0].self_attn, model.model.layers[1].self_attn

    def rows(head: int) -> slice:
        return slice(head * hd, (head + 1) * hd)

    read = _orthonormal(hd, d)  # what of a token is passed on
    written = []
    for back in (1, 2):
        head = back - 1
        key = head // group
        first.k_proj.bias[rows(key)] = torch.cat([bias, zero])
        angle = -back * frequency
        first.q_proj.bias[rows(head)] = torch.cat([bias * torch.cos(angle), bias * torch.sin(angle)])
        first.v_proj.weight[rows(key)] = read * config.embedding_std
        written.append(_orthonormal(d, hd))
        first.o_proj.weight[:, rows(head)] = written[-1]
    slow = (frequency * SLOW_SPAN < 1.0).float()
    gain = MATCH_GAIN * torch.cat([slow, slow])[:, None]
    mix = _orthonormal(hd, hd)
    second.k_proj.weight[rows(0)] = gain * (written[0].t() + mix @ written[1].t())
    second.q_proj.weight[rows(0)] = gain * (read + mix @ written[0].t())
    for key in range(config.kv_heads):
        copied = _orthonormal(d, hd)
        second.v_proj.weight[rows(key)] = copied.t() * config.embedding_std
        for head in range(key * group, (key + 1) * group):
            second.o_proj.weight[:, rows(head)] = copied * COPY_GAIN


def _orthonormal(n: int, k: int) -> Tensor:
    """(n, k) with orthonormal rows or columns, whichever are fewer."""
    q = torch.linalg.qr(torch.randn(max(n, k), min(n, k)))[0]
    return q if n >= k else q.t()

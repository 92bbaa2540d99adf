"""The shape of a model that estimates need, from its config: no weights are made."""

from __future__ import annotations

from typing import Any

from agentrl.engines.kind import Shape


def shape_of(model_config: Any, lora_rank: int | None) -> Shape:
    """Of a causal LM of this transformers config, with LoRA adapters of this rank on its linear layers."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(model_config)
    parameters = trainable = sum(p.numel() for p in model.parameters())
    if lora_rank is not None:
        head = model.get_output_embeddings()
        linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
        trainable = sum(lora_rank * (m.in_features + m.out_features) for m in linear)
    c = model_config.get_text_config()
    return Shape(
        parameters,
        trainable,
        c.num_hidden_layers,
        getattr(c, "num_key_value_heads", None) or c.num_attention_heads,
        getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads,
        c.hidden_size,
        c.vocab_size,
        int(getattr(c, "max_position_embeddings", 0) or 1_000_000),
    )

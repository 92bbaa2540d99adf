"""vLLM's own layers at tensor-parallel ranks of one process: their digests add up to the trainer's."""

from contextlib import ExitStack
from unittest.mock import patch

import pytest
import torch

from agentrl.engines.openrlhf.buckets import add_bits, bits, held_parts
from agentrl.engines.openrlhf.sync import parameter_group, stale_groups

HEADS, SIZE, WIDTH, DEEP, EXPERTS = 8, 16, 64, 96, 6


def shards(kv_heads, ranks):
    """(the trainer's weights by name, vLLM's digest of every rank): Qwen3's attention, an MLP, a router."""
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.model_executor import parameter
    from vllm.model_executor.layers import linear

    generator = torch.Generator().manual_seed(0)
    weights = {}

    def make(name, *shape):
        weights["model.layers.0." + name] = torch.randn(*shape, generator=generator).bfloat16()
        return weights["model.layers.0." + name]

    qkv = {p: make(f"self_attn.{p}_proj.weight", n * SIZE, WIDTH) for p, n in zip("qkv", (HEADS, kv_heads, kv_heads))}
    out, out_bias = make("self_attn.o_proj.weight", WIDTH, HEADS * SIZE), make("self_attn.o_proj.bias", WIDTH)
    norm = make("self_attn.q_norm.weight", SIZE)
    gate, up = make("mlp.gate_proj.weight", DEEP, WIDTH), make("mlp.up_proj.weight", DEEP, WIDTH)
    router = make("mlp.gate.weight", EXPERTS, WIDTH)
    digests = []
    for rank in range(ranks):
        with ExitStack() as stack:
            stack.enter_context(set_current_vllm_config(VllmConfig()))
            for module in (linear, parameter):
                stack.enter_context(patch.object(module, "get_tensor_model_parallel_rank", lambda r=rank: r))
                stack.enter_context(patch.object(module, "get_tensor_model_parallel_world_size", lambda: ranks))
            bf16 = {"params_dtype": torch.bfloat16}
            fused = linear.QKVParallelLinear(WIDTH, SIZE, HEADS, kv_heads, bias=False, **bf16)
            for which, weight in qkv.items():
                fused.weight.weight_loader(fused.weight, weight, which)
            row = linear.RowParallelLinear(HEADS * SIZE, WIDTH, bias=True, **bf16)
            row.weight.weight_loader(row.weight, out)
            row.bias.weight_loader(row.bias, out_bias)
            merged = linear.MergedColumnParallelLinear(WIDTH, [DEEP, DEEP], bias=False, **bf16)
            for i, weight in enumerate((gate, up)):
                merged.weight.weight_loader(merged.weight, weight, i)
            same = linear.ReplicatedLinear(WIDTH, EXPERTS, bias=False, **bf16)
            same.weight.weight_loader(same.weight, router)
        plain = torch.nn.RMSNorm(SIZE, dtype=torch.bfloat16)
        plain.weight.data.copy_(norm)
        held = {
            "self_attn.qkv_proj": fused, "self_attn.o_proj": row, "self_attn.q_norm": plain,
            "mlp.gate_up_proj": merged, "mlp.gate": same,
        }  # fmt: skip
        digest = {}
        for path, module in held.items():
            for name, weight in module.named_parameters(recurse=False):
                group = digest.setdefault(parameter_group(f"model.layers.0.{path}.{name}"), {})
                for who, part in held_parts(module, name, weight):
                    group[who] = group.get(who, 0) + bits(part)
        digests.append(digest)
    return weights, digests


@pytest.mark.parametrize(("kv_heads", "ranks"), [(4, 1), (4, 2), (2, 4), (1, 2)])
def test_vllms_own_layers_add_up(kv_heads, ranks):
    weights, digests = shards(kv_heads, ranks)
    trainer = {}
    add_bits(trainer, list(weights.items()))
    assert set(trainer) == {"layer 0 attention", "layer 0 mlp"}
    assert stale_groups(trainer, digests) == []

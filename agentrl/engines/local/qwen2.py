"""A hand-written forward pass for Qwen2, over the parameters of the Hugging Face module; equal to it within 1e-5.

It exists for small models, where the cost is the number of operations: projections are fused, attention over short
sequences is two batched matrix products, and in sampling the norm weights and the rotary rotation are folded into the
projections. Left out on purpose: sliding windows, rope scaling, dropout, quantised or adapted weights. `usable` says
whether a model fits; everything else goes through its own module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agentrl.engines.local.cache import Plan, RowCache

SHORT = 320  # tokens up to which explicit attention beats the fused kernel on a CPU
LARGEST_WIDTH = 512  # beyond this the matrix products dominate and the module itself is as fast


def usable(model: Any) -> bool:
    """Whether the hand-written path computes what `model` computes."""
    config = getattr(model, "config", None)
    if type(model).__name__ != "Qwen2ForCausalLM" or config is None or config.hidden_size > LARGEST_WIDTH:
        return False
    rope = getattr(config, "rope_parameters", None) or {}
    return (
        rope.get("rope_type", "default") == "default"
        and config.hidden_act == "silu"
        and not getattr(config, "use_sliding_window", False)
        and not getattr(model, "is_gradient_checkpointing", False)
        and all(isinstance(m, nn.Linear) for m in (model.lm_head, model.model.layers[0].self_attn.q_proj))
    )


@dataclass
class _Fused:
    """Sampling weights of one layer: norms and rotary rotation folded in."""

    qkv: Tensor  # (2 (heads + kv_heads) hd + kv_heads hd, d), transposed for addmm
    qkv_bias: Tensor
    o: Tensor
    gate_up: Tensor
    down: Tensor


def rotary(config: Any, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary embedding for heads of `width`, (positions, width) each."""
    theta = (getattr(config, "rope_parameters", None) or {}).get("rope_theta", 10_000.0)
    inv = 1.0 / (theta ** (torch.arange(0, width, 2, dtype=torch.int64).float() / width))
    angle = torch.outer(torch.arange(config.max_position_embeddings).float(), inv)
    angle = torch.cat([angle, angle], -1).to(device)
    return angle.cos(), angle.sin()


class FastQwen2:
    """Functional forward passes sharing the module's parameters."""

    def __init__(self, model: Any) -> None:
        c = model.config
        self.model, self.layers = model, list(model.model.layers)
        self.heads, self.kv_heads, self.width = c.num_attention_heads, c.num_key_value_heads, c.hidden_size
        self.hd = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        self.eps = c.rms_norm_eps
        self.cos, self.sin = rotary(c, self.hd, model.device)
        self.fused: list[_Fused] = []

    # ------------------------------------------------------------------------------------------ scoring and training

    def hidden(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B, C) right-padded ids to the head's input (B, C, d); differentiable. Causal: needs no mask for padding."""
        B, C = ids.shape
        H, K, hd, eps = self.heads, self.kv_heads, self.hd, self.eps
        cos, sin = self.cos[:C, None], self.sin[:C, None]  # (C, 1, hd)
        x = F.embedding(ids, self.model.model.embed_tokens.weight)
        causal = x.new_full((C, C), float("-inf")).triu_(1) if C <= SHORT else None
        for layer in self.layers:
            a, m = layer.self_attn, layer.mlp
            y = rms_norm(x, layer.input_layernorm.weight, eps)
            weight = torch.cat([a.q_proj.weight, a.k_proj.weight, a.v_proj.weight])
            bias = torch.cat([a.q_proj.bias, a.k_proj.bias, a.v_proj.bias])
            qkv = F.linear(y, weight, bias).view(B, C, H + 2 * K, hd)
            qk, v = qkv[:, :, : H + K], qkv[:, :, H + K :]
            first, second = qk.chunk(2, -1)
            qk = qk * cos + torch.cat([-second, first], -1) * sin
            o = self._attend(qk[:, :, :H], qk[:, :, H:], v, causal)
            x = x + F.linear(o, a.o_proj.weight)
            y = rms_norm(x, layer.post_attention_layernorm.weight, eps)
            gate, up = F.linear(y, torch.cat([m.gate_proj.weight, m.up_proj.weight])).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, m.down_proj.weight)
        return rms_norm(x, self.model.model.norm.weight, eps)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, causal: Tensor | None) -> Tensor:
        """q (B, C, H, hd), k and v (B, C, K, hd) to (B, C, H hd); `causal` (C, C) for short sequences."""
        B, C, H, hd = q.shape
        K = k.shape[2]
        if causal is None:
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
            o = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=H != K)
            return o.transpose(1, 2).reshape(B, C, H * hd)
        R = H // K  # query heads per key head, folded into the query length
        q = q.view(B, C, K, R, hd).permute(0, 2, 3, 1, 4).reshape(B * K, R * C, hd)
        k = k.permute(0, 2, 3, 1).reshape(B * K, hd, C)
        v = v.permute(0, 2, 1, 3).reshape(B * K, C, hd)
        s = torch.baddbmm(causal.repeat(R, 1)[None], q, k, alpha=hd**-0.5).softmax(-1)
        return torch.bmm(s, v).view(B, K, R, C, hd).permute(0, 3, 1, 2, 4).reshape(B, C, H * hd)

    # ------------------------------------------------------------------------------------------------------ sampling

    @torch.no_grad()
    def refresh(self) -> None:
        """Fold the current weights for sampling; call after every update."""
        self.fused = []
        H, K, hd, d = self.heads, self.kv_heads, self.hd, self.width

        def rotated(w: Tensor) -> Tensor:  # rows of each head rotated, so that W_rot x = rotate_half(W x)
            first, second = w.view(-1, 2, hd // 2, w.shape[-1]).unbind(1)
            return torch.stack([-second, first], 1).view_as(w)

        for layer in self.layers:
            a, m = layer.self_attn, layer.mlp
            qk = torch.cat([a.q_proj.weight, a.k_proj.weight])
            qk_bias = torch.cat([a.q_proj.bias, a.k_proj.bias])[:, None]
            weight = torch.cat([qk, rotated(qk), a.v_proj.weight]) * layer.input_layernorm.weight
            bias = torch.cat([qk_bias, rotated(qk_bias)])[:, 0]
            assert weight.shape == (2 * (H + K) * hd + K * hd, d)
            gate_up = torch.cat([m.gate_proj.weight, m.up_proj.weight]) * layer.post_attention_layernorm.weight
            self.fused.append(
                _Fused(
                    weight.t().contiguous(),
                    torch.cat([bias, a.v_proj.bias]),
                    a.o_proj.weight.t().contiguous(),
                    gate_up.t().contiguous(),
                    m.down_proj.weight.t().contiguous(),
                )
            )
        self.head = (self.model.lm_head.weight * self.model.model.norm.weight).t().contiguous()

    @torch.no_grad()
    def next_logits(self, ids: Tensor, last: Tensor, cache: RowCache, plan: Plan) -> Tensor:
        """Feed `ids` (n, C) under `plan`; logits (n, V) fp32 after each row's token `last[i]` (n,)."""
        n, C = ids.shape
        H, K, hd, d, N = self.heads, self.kv_heads, self.hd, self.width, ids.numel()
        R, W = H // K, (H + K) * hd
        position = plan.position.reshape(-1)
        cos, sin = self.cos[position][:, None], self.sin[position][:, None]  # (N, 1, hd)
        mask = plan.mask if C == 1 else plan.mask.repeat(1, 1, R, 1)  # (n, 1, R C, length)
        x = F.embedding(ids.reshape(-1), self.model.model.embed_tokens.weight)
        scale = d**-0.5
        for i, f in enumerate(self.fused):
            y = x * torch.rsqrt(torch.linalg.vector_norm(x, dim=-1, keepdim=True).mul_(scale).square_().add_(self.eps))
            z = torch.addmm(f.qkv_bias, y, f.qkv)
            qk = z[:, :W].view(N, H + K, hd) * cos
            qk.addcmul_(z[:, W : 2 * W].view(N, H + K, hd), sin)
            kv = torch.stack([qk[:, H:], z[:, 2 * W :].view(N, K, hd)], 1).view(n, C, 2, K, hd)
            key, value = cache.write_and_read(i, kv, plan)
            q = qk[:, :H].view(n, C, K, R, hd).permute(0, 2, 3, 1, 4).reshape(n, K, R * C, hd)
            o = F.scaled_dot_product_attention(q, key, value, attn_mask=mask)
            o = o.view(n, K, R, C, hd).permute(0, 3, 1, 2, 4).reshape(N, H * hd)
            x = torch.addmm(x, o, f.o)
            y = x * torch.rsqrt(torch.linalg.vector_norm(x, dim=-1, keepdim=True).mul_(scale).square_().add_(self.eps))
            gate, up = (y @ f.gate_up).chunk(2, -1)
            x = torch.addmm(x, F.silu(gate).mul_(up), f.down)
        x = x[torch.arange(n, device=x.device) * C + last] if C > 1 else x
        return F.rms_norm(x, (d,), None, self.eps) @ self.head


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., d) over its root mean square, times `weight` (d,); fp32."""
    if not torch.is_grad_enabled():
        return F.rms_norm(x, (x.shape[-1],), weight, eps)
    return _RMSNorm.apply(x, weight, eps)  # type: ignore[no-any-return]


class _RMSNorm(torch.autograd.Function):
    """Half the time of the composite backward on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        inverse = torch.rsqrt(x.square().mean(-1, keepdim=True).add_(eps))
        normed = x * inverse
        ctx.save_for_backward(normed, inverse, weight)
        return normed * weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        normed, inverse, weight = ctx.saved_tensors
        product = grad * normed
        grad_weight = product.flatten(0, -2).sum(0)
        inner = (product @ weight)[..., None] / normed.shape[-1]
        return (grad * weight).addcmul_(normed, inner, value=-1).mul_(inverse), grad_weight, None

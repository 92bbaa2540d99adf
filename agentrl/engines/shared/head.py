"""The output head of any causal LM, and log-probabilities from hidden states without a (B, S, V) tensor in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from agentrl.algorithms.head import Head, blocks
from agentrl.algorithms.logprobs import LEAST, token_logprobs
from agentrl.errors import ModelError, nearest


@dataclass
class OutputHead:
    """logits = cap(W h + b). `module` is called, so adapters on the head take effect."""

    module: Any  # an nn.Module with `weight` (V, d), or an adapter around one
    softcap: float | None = None

    @classmethod
    def find(cls, model: Any, name: str | None = None) -> OutputHead:
        """The head of `model`: by `name` where given, else what the model itself declares."""
        if name is not None:
            try:
                module = model.get_submodule(name)
            except AttributeError as e:
                known = [n for n, m in model.named_modules() if getattr(m, "weight", None) is not None]
                hint = nearest(name, known) or f"; the last one that has a weight is {known[-1]!r}" if known else ""
                raise ModelError(f"model.head is {name!r}, but the model has no such module{hint}") from e
        else:
            module = model.get_output_embeddings()
        if module is None:
            raise ModelError(
                f"{type(model).__name__} declares no output head; name it with model.head, for example "
                "model.head: lm_head"
            )
        if getattr(module, "weight", None) is None:
            raise ModelError(
                f"the output head of {type(model).__name__}, {name or 'as it declares it'}, is a "
                f"{type(module).__name__} without a weight matrix; name the linear layer with model.head, for example "
                "model.head: lm_head"
            )
        config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
        return cls(module, getattr(config, "final_logit_softcapping", None))

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., d) to (..., V) fp32."""
        out = self.module(hidden).float()
        return torch.tanh(out / self.softcap) * self.softcap if self.softcap else out

    def matrices(self, temperature: float = 1.0, dtype: torch.dtype | None = None) -> Head | None:
        """The head as matrices, whose logits are computed in `dtype` (None: that of the weight).

        None where it is not W h + b, with or without LoRA adapters.
        """
        module: Any = self.module
        if isinstance(module, nn.Linear):
            return Head(module.weight, module.bias, self.softcap, temperature, dtype=dtype)
        base = module.get_base_layer() if hasattr(module, "get_base_layer") else None
        adapters = list(getattr(module, "active_adapters", []))
        if not isinstance(base, nn.Linear) or any(module.use_dora.get(a) for a in adapters):
            return None
        low_rank = None
        if adapters and not module.disable_adapters and not module.merged:
            a = torch.cat([module.lora_A[n].weight for n in adapters if n in module.lora_A])
            b = torch.cat([module.lora_B[n].weight * module.scaling[n] for n in adapters if n in module.lora_B], 1)
            low_rank = (a, b)
        return Head(base.weight, base.bias, self.softcap, temperature, low_rank, dtype)

    def logprobs(
        self,
        hidden: Tensor,
        targets: Tensor,
        temperature: float = 1.0,
        entropy: bool = False,
        entropy_gradient: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        """log π of `targets` (N,) from `hidden` (N, d), and the entropy when asked; both (N,).

        Differentiable, the entropy only with `entropy_gradient`. The logits of all tokens are never held at once.
        """
        autocast = torch.is_autocast_enabled(hidden.device.type)
        head = self.matrices(temperature, torch.get_autocast_dtype(hidden.device.type) if autocast else None)
        spread: Tensor | None
        if head is None:
            logp, spread = self._by_calls(hidden, targets, temperature)
        else:
            logp, spread = token_logprobs(head, hidden, targets, entropy=entropy)
        if spread is None or not entropy:
            return logp, None
        return logp, spread if entropy_gradient else spread.detach()

    def _by_calls(self, hidden: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """For a head that is not a matrix: it is called on a few tokens at a time, and again in the backward pass."""

        def one(h: Tensor, y: Tensor) -> Tensor:
            logp = F.log_softmax(self.logits(h) / temperature, -1)
            p = logp.exp()
            return torch.stack([logp.gather(-1, y[:, None])[:, 0], -(p * logp.clamp(min=LEAST)).sum(-1)])

        parts = blocks(len(targets), self.module.weight.shape[0], hidden.device) or [slice(0, 0)]
        out = [checkpoint(one, hidden[c], targets[c], use_reentrant=False) for c in parts]
        logp, spread = torch.cat(out, -1)
        return logp, spread

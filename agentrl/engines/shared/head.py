"""The output head of any causal LM, and log-probabilities from hidden states without a (B, S, V) tensor in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from agentrl.errors import ModelError, nearest

CHUNK_ELEMENTS = 64 * 1024 * 1024  # logits held at once: 256 MB in fp32


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

    def chunks(self, n: int) -> Iterator[slice]:
        """Slices of `n` tokens whose logits fit in memory."""
        size = max(1, CHUNK_ELEMENTS // self.module.weight.shape[0])
        for a in range(0, n, size):
            yield slice(a, min(n, a + size))

    def logprobs(
        self,
        hidden: Tensor,
        targets: Tensor,
        temperature: float = 1.0,
        entropy: bool = False,
        entropy_gradient: bool = True,
    ) -> Tensor:
        """log π of `targets` (N,) from `hidden` (N, d): (N,), or (2, N) with the entropy as second row.

        Differentiable, the entropy only with `entropy_gradient`; logits of more than one chunk are recomputed in the
        backward pass.
        """

        def one(h: Tensor, y: Tensor) -> Tensor:
            logits = self.logits(h)
            if temperature != 1.0:
                logits = logits / temperature
            if not entropy:
                return -F.cross_entropy(logits, y, reduction="none")
            logp = F.log_softmax(logits, -1)
            with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
                ent = torch.special.entr(logp.exp()).sum(-1)
            return torch.stack([logp.gather(-1, y[:, None])[:, 0], ent])

        parts = list(self.chunks(len(targets)))
        if len(parts) <= 1:
            return one(hidden, targets)
        if torch.is_grad_enabled() and hidden.requires_grad:
            out = [checkpoint(one, hidden[c], targets[c], use_reentrant=False) for c in parts]
        else:
            out = [one(hidden[c], targets[c]) for c in parts]
        return torch.cat(out, -1)

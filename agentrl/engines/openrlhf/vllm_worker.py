"""What runs inside vLLM's own processes, beside its worker. vLLM mixes the class into it before the model is loaded."""

from __future__ import annotations

from typing import Any

import torch

from agentrl.engines.openrlhf import cpu

cpu.inside_vllm()
from openrlhf.trainer.ray.vllm_worker_wrap import WorkerWrap  # noqa: E402

from agentrl.engines.openrlhf.sync import Digest, parameter_group  # noqa: E402


class AgentVLLMWorker(WorkerWrap):
    """OpenRLHF's extension for weights, on any device, and the sums that say whether they have arrived."""

    model_runner: Any
    model_config: Any
    device: Any

    def update_weight(self, name: str, dtype: torch.dtype, shape: Any, empty_cache: bool = False) -> None:
        """Receive one weight from rank 0 of the policy."""
        if dtype != self.model_config.dtype:
            raise TypeError(f"{name} comes as {dtype}, but vLLM's model is {self.model_config.dtype}")
        weight = torch.empty(shape, dtype=dtype, device=self.device)
        stream = torch.cuda.current_stream() if weight.is_cuda else None
        self._model_update_group.broadcast(weight, src=0, stream=stream)
        self.model_runner.model.load_weights(weights=[(name, weight)])

    @torch.no_grad()
    def weight_digest(self) -> Digest:
        """Σ|w| by parameter group of this rank."""
        out: Digest = {}
        for name, weight in self.model_runner.model.named_parameters():
            group = parameter_group(name)
            out[group] = out.get(group, 0.0) + float(weight.abs().sum(dtype=torch.float64))
        return out

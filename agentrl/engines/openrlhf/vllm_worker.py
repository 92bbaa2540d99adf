"""What runs inside vLLM's own processes, beside its worker. vLLM mixes the class into it before the model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from agentrl.engines.openrlhf import cpu

cpu.inside_vllm()
from openrlhf.trainer.ray.utils import get_physical_gpu_id  # noqa: E402
from openrlhf.trainer.ray.vllm_worker_wrap import WorkerWrap  # noqa: E402

from agentrl.engines.openrlhf.buckets import ALL, bits, held_parts, views  # noqa: E402
from agentrl.engines.openrlhf.sync import ADAPTER, ADAPTER_ID, Shard, parameter_group  # noqa: E402


class AgentVLLMWorker(WorkerWrap):
    """OpenRLHF's extension for weights, by whole buckets and on any device, and the digest of what has arrived."""

    model_runner: Any
    model_config: Any
    device: Any

    def receive(
        self,
        names: Sequence[str],
        dtype: torch.dtype,
        shapes: Sequence[Sequence[int]],
        handles: dict[Any, Any] | None = None,
        lora: dict[str, Any] | None = None,
    ) -> None:
        """A bucket from rank 0 of the policy, or, with CUDA IPC `handles`, from the rank on this GPU.

        With `lora` (rank and alpha) it is the adapter, else weights of the model.
        """
        if dtype != self.model_config.dtype:
            raise TypeError(f"{names[0]} comes as {dtype}, but vLLM's model is {self.model_config.dtype}")
        if handles is None:
            whole = torch.empty(sum(map(_numel, shapes)), dtype=dtype, device=self.device)
            stream = torch.cuda.current_stream() if whole.is_cuda else None
            self._model_update_group.broadcast(whole, src=0, stream=stream)
        else:
            function, arguments = handles[get_physical_gpu_id()]
            arguments = list(arguments)
            arguments[6] = self.device.index  # both processes may number the GPU differently
            whole = function(*arguments)
        weights = list(zip(names, views(whole, shapes), strict=True))
        if lora is None:
            self.model_runner.model.load_weights(weights=weights)
        else:
            self._set_adapter(dict(weights), lora)
        if whole.is_cuda:
            torch.cuda.synchronize()

    @torch.no_grad()
    def weight_digest(self) -> Shard:
        """The sum of bits by parameter group of this rank, its adapter's included."""
        out: Shard = {}

        def add(group: str, who: str, weight: Tensor) -> None:
            held = out.setdefault(group, {})
            held[who] = held.get(who, 0) + bits(weight)

        seen: set[int] = set()
        for path, module in self.model_runner.model.named_modules():
            for name, weight in module.named_parameters(recurse=False):
                if id(weight) in seen:  # tied
                    continue
                seen.add(id(weight))
                for who, part in held_parts(module, name, weight):
                    add(parameter_group(f"{path}.{name}" if path else name), who, part)
        for path, lora in self._adapter_layers():
            for matrices in (lora.lora_a, lora.lora_b):
                for matrix in matrices if isinstance(matrices, list) else [matrices]:
                    if matrix is not None:
                        add(ADAPTER + parameter_group(path + ".weight"), ALL, matrix)
        return out

    def _adapter_layers(self) -> list[tuple[str, Any]]:
        manager = getattr(self.model_runner, "lora_manager", None)
        adapter = None if manager is None else manager._adapter_manager.get_adapter(ADAPTER_ID)
        return [] if adapter is None else list(adapter.loras.items())

    def _set_adapter(self, tensors: dict[str, Tensor], lora: dict[str, Any]) -> None:
        """The tensors, named as peft saves them, become the adapter that every request samples with."""
        from vllm.lora.lora_model import LoRAModel
        from vllm.lora.peft_helper import PEFTHelper

        manager = self.model_runner.lora_manager
        mapper = getattr(manager._adapter_manager.model, "hf_to_vllm_mapper", None)
        made = LoRAModel.from_lora_tensors(
            ADAPTER_ID,
            {name: tensor.cpu().clone() for name, tensor in tensors.items()},
            PEFTHelper.from_dict({"r": lora["rank"], "lora_alpha": lora["alpha"], "target_modules": []}),
            device="cpu",
            dtype=manager.lora_config.lora_dtype,
            weights_mapper=None if mapper is None else mapper.get_rename_mapper(),
        )
        manager._adapter_manager.remove_adapter(ADAPTER_ID)
        manager._adapter_manager.add_adapter(made)
        manager._adapter_manager.activate_adapter(ADAPTER_ID)


def _numel(shape: Sequence[int]) -> int:
    out = 1
    for n in shape:
        out *= n
    return out

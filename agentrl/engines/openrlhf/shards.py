"""The optimiser state of one ZeRO rank, to and from one safetensors file. No pickle.

DeepSpeed keeps, per parameter group, one flat fp32 tensor: this rank's part of the weights, which AdamW's moments
belong to. A checkpoint holds them as they are and fits only the same number of workers and the same ZeRO stage; the
model beside it, in Hugging Face layout, fits anything.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from agentrl.errors import RunError


def shard_file(folder: Path, rank: int, world_size: int, zero_stage: int) -> Path:
    """Where a rank's state is."""
    return folder / f"optimizer-zero{zero_stage}-{rank:04d}-of-{world_size:04d}.safetensors"


def save_shard(optimizer: Any, file: Path) -> None:
    """`optimizer` is DeepSpeed's ZeRO optimiser, stage 2 or 3."""
    tensors: dict[str, Tensor] = {}
    for i, master in enumerate(_masters(optimizer)):
        tensors[f"{i}|master"] = _plain(master)
        for key, value in optimizer.optimizer.state.get(master, {}).items():
            tensors[f"{i}|{key}"] = _plain(torch.as_tensor(value))
    save_file(tensors, str(file))


def load_shard(optimizer: Any, file: Path) -> None:
    """The inverse of `save_shard`; the weights that the model computes with are loaded by the caller."""
    if not file.is_file():
        found = sorted(p.name for p in file.parent.glob("optimizer*"))
        raise RunError(
            f"{file.parent} has no {file.name} (it has {', '.join(found) or 'no optimiser state'}): the checkpoint is "
            "of another engine, another number of policy workers or another openrlhf.zero_stage. Set them back, or "
            f"start a new run from its weights with --set model.path={file.parent / 'model'}"
        )
    tensors = load_file(str(file))
    masters = _masters(optimizer)
    with torch.no_grad():
        for i, master in enumerate(masters):
            saved = tensors.pop(f"{i}|master")
            if saved.shape != master.shape:
                raise RunError(
                    f"{file} holds {saved.numel()} weights for a group of {master.numel()}: the model or the config "
                    "was changed since; resume with the config that the run began with"
                )
            master.copy_(saved)
            optimizer.optimizer.state[master] = {}
    for name, value in tensors.items():
        index, key = name.split("|")
        master = masters[int(index)]
        if value.dim() == 1 and value.numel() == 1 and key == "step":
            optimizer.optimizer.state[master][key] = value[0].cpu()
        else:
            optimizer.optimizer.state[master][key] = value.to(master.device)


def _masters(optimizer: Any) -> list[Tensor]:
    """This rank's flat fp32 weights, in the order of the parameter groups."""
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        return list(optimizer.fp32_partitioned_groups_flat)
    return list(optimizer.single_partition_of_fp32_groups)


def _plain(value: Tensor) -> Tensor:
    return value.detach().cpu().reshape(-1 if value.dim() == 0 else value.shape).contiguous().clone()

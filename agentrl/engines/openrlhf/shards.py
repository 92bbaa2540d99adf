"""The optimiser state of ZeRO ranks, to and from safetensors files, one a rank. No pickle.

DeepSpeed keeps, per parameter group, one flat fp32 tensor: this rank's part of the weights, which AdamW's moments
belong to. Stage 2 cuts the group end to end, stage 3 every parameter. A file holds what the rank has of each parameter
by name, with its place in the parameter: any number of workers and either stage reads what any other has written.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from agentrl.errors import RunError

MASTER = "master"  # the fp32 weights themselves, beside the optimiser's own keys
STEP = "step"

Group = Sequence[tuple[str, int]]  # name and number of weights of each parameter


@dataclass(frozen=True)
class Piece:
    """`length` weights of a parameter, from its `start` on: in the rank's flat tensor number `flat`, from `at` on."""

    name: str
    flat: int
    at: int
    start: int
    length: int
    numel: int  # of the parameter


def pieces_end_to_end(groups: Sequence[Group], sizes: Sequence[int], rank: int) -> list[Piece]:
    """Stage 2: the parameters of a group in one row, cut into as many parts of `sizes[group]` as there are ranks."""
    out = []
    for flat, (group, size) in enumerate(zip(groups, sizes, strict=True)):
        begin, end, offset = rank * size, (rank + 1) * size, 0
        for name, numel in group:
            low, high = max(begin, offset), min(end, offset + numel)
            if low < high:
                out.append(Piece(name, flat, low - begin, low - offset, high - low, numel))
            offset += numel
    return out


def pieces_by_parameter(groups: Sequence[Group], rank: int, ranks: int) -> list[Piece]:
    """Stage 3: every parameter is cut into `ranks` parts of one size, the last ones padded."""
    out = []
    for flat, group in enumerate(groups):
        at = 0
        for name, numel in group:
            size = -(-numel // ranks)
            length = min(size, numel - rank * size)
            if length > 0:
                out.append(Piece(name, flat, at, rank * size, length, numel))
            at += size
    return out


def pieces_of(optimizer: Any, names: dict[int, str], rank: int, ranks: int) -> list[Piece]:
    """What this rank of DeepSpeed's ZeRO optimiser holds; `names` by the identity of the parameters."""
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        groups = [[(names[id(p)], int(p.ds_numel)) for p in group] for group in optimizer.fp16_groups]
        return pieces_by_parameter(groups, rank, ranks)
    groups = [[(names[id(p)], p.numel()) for p in group] for group in optimizer.round_robin_bit16_groups]
    return pieces_end_to_end(groups, [m.numel() for m in _masters(optimizer)], rank)


def shard_file(folder: Path, rank: int, ranks: int) -> Path:
    """Where a rank's state is."""
    return folder / f"optimizer-{rank:04d}-of-{ranks:04d}.safetensors"


def save_shard(optimizer: Any, pieces: Sequence[Piece], file: Path) -> None:
    """`optimizer` is DeepSpeed's ZeRO optimiser, stage 2 or 3, and `pieces` what it holds."""
    masters = _masters(optimizer)
    tensors: dict[str, Tensor] = {}
    for piece in pieces:
        master = masters[piece.flat]
        for key, value in {MASTER: master, **optimizer.optimizer.state.get(master, {})}.items():
            tensor = torch.as_tensor(value).detach()
            if key != STEP:
                tensor = tensor.reshape(-1)[piece.at : piece.at + piece.length]
            tensors[f"{piece.name}|{key}"] = tensor.reshape(-1).cpu().contiguous().clone()
    places = {p.name: [p.start, p.length, p.numel] for p in pieces}
    save_file(tensors, str(file), metadata={"pieces": json.dumps(places)})


def load_shards(optimizer: Any, pieces: Sequence[Piece], folder: Path) -> None:
    """What `save_shard` of all ranks has written into `folder`, as far as this rank holds it.

    The weights that the model computes with are loaded by the caller. RunError where the files lack something.
    """
    masters = _masters(optimizer)
    state: dict[int, dict[str, Any]] = {i: {} for i in range(len(masters))}
    with ExitStack() as stack, torch.no_grad():
        saved = _Saved(folder, stack)
        for piece in pieces:
            master = masters[piece.flat]
            for key in saved.keys_of(piece):
                if key == STEP:
                    state[piece.flat][STEP] = _step(saved.scalar(piece.name, STEP), optimizer.optimizer, master)
                    continue
                if key != MASTER:
                    whole = state[piece.flat].setdefault(key, torch.zeros_like(master, requires_grad=False))
                else:
                    whole = master
                whole[piece.at : piece.at + piece.length] = saved.read(piece, key).to(master.device)
    for i, master in enumerate(masters):
        optimizer.optimizer.state[master] = state[i]


class _Saved:
    """The files of all ranks of a checkpoint, open for reading."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.places: dict[str, list[tuple[int, int, int, Any]]] = {}  # name -> start, length, numel, file
        self.keys: dict[str, list[str]] = {}
        files = sorted(folder.glob("optimizer*.safetensors"))
        if not files:
            raise RunError(
                f"{folder} has no optimiser state of a cluster's workers: the checkpoint is of another engine. Set "
                f"engine back, or {self._fresh()}"
            )
        for path in files:
            file = stack.enter_context(safe_open(str(path), "pt"))
            places = json.loads((file.metadata() or {}).get("pieces", "null"))
            if places is None:
                raise RunError(
                    f"{path} was written by an older version of agentrl and cannot be resumed; {self._fresh()}"
                )
            for name, (start, length, numel) in places.items():
                self.places.setdefault(name, []).append((start, length, numel, file))
            for entry in file.keys():  # noqa: SIM118  # not a dict
                name, _, key = entry.rpartition("|")
                if key not in self.keys.setdefault(name, []):
                    self.keys[name].append(key)

    def _fresh(self) -> str:
        return f"start a new run from its weights with --set model.path={self.folder / 'model'}"

    def keys_of(self, piece: Piece) -> list[str]:
        """What is saved of a parameter. RunError where it is another one."""
        numels = {numel for _, _, numel, _ in self.places.get(piece.name, [])}
        if numels != {piece.numel}:
            found = ", ".join(map(str, sorted(numels))) or "nothing"
            raise RunError(
                f"{self.folder} holds {found} of {piece.name}, which has {piece.numel} weights: the model or the "
                "config was changed since; resume with the config that the run began with"
            )
        return self.keys[piece.name]

    def scalar(self, name: str, key: str) -> Tensor:
        """A value that all parts of a parameter share, shape ()."""
        return self.places[name][0][3].get_tensor(f"{name}|{key}")[0]

    def read(self, piece: Piece, key: str) -> Tensor:
        """(length,): put together from whatever files hold a part of it."""
        out = torch.empty(piece.length, dtype=torch.float32)
        covered = 0
        for start, length, _, file in self.places[piece.name]:
            low, high = max(start, piece.start), min(start + length, piece.start + piece.length)
            if low < high:
                part = file.get_slice(f"{piece.name}|{key}")[low - start : high - start]
                out[low - piece.start : high - piece.start] = part
                covered += high - low
        if covered != piece.length:
            raise RunError(
                f"{self.folder} lacks a part of the optimiser state of {piece.name}: a worker's file is missing. "
                f"Resume from an earlier checkpoint with --checkpoint, or {self._fresh()}"
            )
        return out


def _step(value: Tensor, optimizer: Any, master: Tensor) -> Any:
    """A count of steps where the optimiser keeps it: fused and capturable ones beside the weights, others in memory."""
    if not value.is_floating_point():  # DeepSpeed's Adam on the CPU counts in plain integers
        return int(value)
    beside = any(optimizer.param_groups[0].get(key) for key in ("fused", "capturable"))
    return value.to(master.device) if beside else value.cpu()


def _masters(optimizer: Any) -> list[Tensor]:
    """This rank's flat fp32 weights, in the order of the parameter groups."""
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        return list(optimizer.fp32_partitioned_groups_flat)
    return list(optimizer.single_partition_of_fp32_groups)

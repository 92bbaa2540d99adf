"""Key/value storage of many conversations of different lengths, one row each.

`RowCache` is both: the buffers of the hand-written path, and (through `hf_cache`) a transformers `Cache` that writes
each row at its own position, so that any model continues a conversation without seeing its past again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


@dataclass
class Plan:
    """One forward pass over part of the rows.

    rows: (n,) indices, or None for the first n rows as a view without a copy.
    position: (n, C) where each new token stands in its conversation (for rotary angles and the mask).
    slot: (n, C) where its key and value are written; padding goes to the scratch slot.
    length: keys looked at. mask: (n, 1, C, length) additive, 0 or -inf.
    """

    n: int
    rows: Tensor | None
    position: Tensor
    slot: Tensor
    length: int
    mask: Tensor
    write_rows: Tensor  # (n, 1)
    fresh: bool = False  # no row has a past: what is written is all there is to read


class RowCache:
    """Per layer one buffer (R, 2, kv_heads, T + 1, head_dim); slot T is scratch."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.layers: list[Tensor | None] = []
        self.n_rows = 0
        self.capacity = 0  # T

    @property
    def bytes(self) -> int:
        """Of all buffers."""
        return sum(buffer.nbytes for buffer in self.layers if buffer is not None)

    def reserve(self, rows: int, length: int) -> None:
        """Make room; both sizes grow by half again, so that growing is rare."""
        grow_rows = rows > self.n_rows
        grow_length = length > self.capacity
        if not grow_rows and not grow_length:
            return
        new_rows = max(rows, int(self.n_rows * 1.5)) if grow_rows else self.n_rows
        new_cap = max(length, int(self.capacity * 1.5)) if grow_length else self.capacity
        for i, old in enumerate(self.layers):
            if old is None:
                continue
            new = old.new_zeros(new_rows, 2, old.shape[2], new_cap + 1, old.shape[4])
            new[: old.shape[0], :, :, : self.capacity] = old[:, :, :, : self.capacity]
            self.layers[i] = new
        self.n_rows, self.capacity = new_rows, new_cap

    def layer(self, i: int, kv_heads: int, head_dim: int) -> Tensor:
        """The buffer of layer `i`, made on first use."""
        while len(self.layers) <= i:
            self.layers.append(None)
        buffer = self.layers[i]
        if buffer is None:
            shape = (self.n_rows, 2, kv_heads, self.capacity + 1, head_dim)
            buffer = torch.zeros(shape, device=self.device, dtype=self.dtype)
            self.layers[i] = buffer
        return buffer

    def keep(self, rows: list[int], length: int) -> None:
        """Drop all rows but these, which become rows 0, 1, ...; nothing beyond `length` is copied."""
        index = torch.tensor(rows, device=self.device)
        for buffer in self.layers:
            if buffer is not None:
                buffer[: len(rows), :, :, :length] = buffer[:, :, :, :length].index_select(0, index)

    def copy(self, source: int, rows: list[int], length: int) -> None:
        """Give `rows` the first `length` keys and values of row `source`."""
        index = torch.tensor(rows, device=self.device)
        for buffer in self.layers:
            if buffer is not None:
                buffer[index, :, :, :length] = buffer[source, :, :, :length]

    def clear(self) -> None:
        """Free the memory."""
        self.layers, self.n_rows, self.capacity = [], 0, 0

    def plan(self, rows: list[int] | int, start: Tensor, count: Tensor) -> Plan:
        """For `rows` (a list, or n for the first n): `count[i]` new tokens after `start[i]` known ones; both (n,).

        A row with count 0 is idle: it computes something that nobody reads and writes to the scratch slot.
        """
        C = max(int(count.max()), 1)
        step = torch.arange(C, device=self.device)
        position = start[:, None] + step
        real = step[None] < count[:, None]
        slot = torch.where(real, position, self.capacity)
        length = max(int((start + count).max()), 1)
        position = torch.minimum(position, torch.full_like(position, length - 1))
        hidden = torch.arange(length, device=self.device)[None, None] > position[:, :, None]
        mask = torch.zeros(hidden.shape, dtype=self.dtype, device=self.device).masked_fill_(hidden, float("-inf"))
        if isinstance(rows, int):
            n, index, write = rows, None, torch.arange(rows, device=self.device)
        else:
            n, index = len(rows), torch.tensor(rows, device=self.device)
            write = index
        fresh = C > 1 and not bool(start.any())
        return Plan(n, index, position, slot, length, mask[:, None], write[:, None], fresh)

    def write_and_read(self, i: int, kv: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
        """Store `kv` (n, C, 2, kv_heads, head_dim) of layer `i`; returns keys and values (n, kv_heads, length, hd)."""
        buffer = self.layer(i, kv.shape[3], kv.shape[4])
        if buffer.dtype != kv.dtype:
            kv = kv.to(buffer.dtype)
        buffer[plan.write_rows, :, :, plan.slot] = kv
        if plan.fresh:
            return kv[:, :, 0].transpose(1, 2), kv[:, :, 1].transpose(1, 2)
        view = buffer[:, :, :, : plan.length]  # before the rows are copied, not after
        view = view[: plan.n] if plan.rows is None else view.index_select(0, plan.rows)
        return view[:, 0], view[:, 1]

    def hf_cache(self, n_layers: int, plan: Plan) -> Cache:
        """A transformers cache for one forward pass under `plan`."""
        return Cache(layers=[_HFLayer(self, i, plan) for i in range(n_layers)])


class _HFLayer(CacheLayerMixin):
    """Adapter of one layer; the attention mask is given explicitly, so the sizes asked for masks are not used."""

    is_sliding = False

    def __init__(self, cache: RowCache, index: int, plan: Plan) -> None:
        super().__init__()
        self._cache, self._index, self._plan = cache, index, plan
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        pass

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        kv = torch.stack([key_states, value_states], 2).permute(0, 3, 2, 1, 4)  # (n, C, 2, kv_heads, hd)
        keys, values = self._cache.write_and_read(self._index, kv, self._plan)
        return keys.to(key_states.dtype), values.to(value_states.dtype)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._plan.length, 0

    def get_seq_length(self) -> int:
        return self._plan.length - self._plan.position.shape[1]

    def get_max_length(self) -> int:
        return self._cache.capacity

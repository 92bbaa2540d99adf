"""Row of a passage by its id: hashes with their rows, sorted, memory-mapped and searched by halves.

16 bytes a passage on disk and none in memory; a look-up reads about 25 of them among 21 million.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

from agentrl.retriever.errors import IndexOpenError
from agentrl.retriever.store import PassageStore

IDS = "ids.u64"
_ENTRY = struct.Struct("<QQ")


def hash_of(identifier: str) -> int:
    """The 64-bit hash that stands for an id in the table."""
    return int.from_bytes(
        hashlib.blake2b(identifier.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little"
    )


def write_ids(store: PassageStore, folder: Path) -> Iterator[tuple[str, int, int]]:
    """Write the table of `store` to `folder`; yields (id, first row, later row) for each id that comes again."""
    import numpy as np

    table = np.empty((len(store), 2), dtype="<u8")
    for row in range(len(store)):
        table[row] = hash_of(store.uncached(row).id), row
    table = table[np.lexsort((table[:, 1], table[:, 0]))]
    with (folder / IDS).open("wb") as file:
        table.tofile(file)
    for at in np.flatnonzero(table[1:, 0] == table[:-1, 0]):
        first, later = int(table[at, 1]), int(table[at + 1, 1])
        if store[first].id == store[later].id:  # another id of the same hash is none
            yield store[later].id, first, later


class IdTable:
    """Finds the row of an id. Safe to use from several threads."""

    def __init__(self, folder: Path, store: PassageStore) -> None:
        """Map the table in `folder`; `IndexOpenError` where it does not match `store`."""
        path = folder / IDS
        try:
            with path.open("rb") as file:
                self._table = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise IndexOpenError(f"{path}: {error}; build the index anew") from error
        if len(self._table) != _ENTRY.size * len(store):
            raise IndexOpenError(
                f"{path} has {len(self._table) // _ENTRY.size} ids, {len(store)} passages are stored; "
                "the index was copied in part or damaged: build it anew"
            )
        self._store = store

    def find(self, identifier: str) -> int | None:
        """The row of the first passage with this id, or `None`."""
        wanted = hash_of(identifier)
        low, high = 0, len(self._store)
        while low < high:
            middle = (low + high) // 2
            if _ENTRY.unpack_from(self._table, 16 * middle)[0] < wanted:
                low = middle + 1
            else:
                high = middle
        while low < len(self._store):
            hash_, row = _ENTRY.unpack_from(self._table, 16 * low)
            if hash_ != wanted:
                return None
            if row < len(self._store) and self._store[row].id == identifier:
                return int(row)
            low += 1
        return None

"""Passages on disk: a JSONL file that is itself a corpus, and the byte offset of each of its lines.

Both are memory-mapped, so that 21 million passages cost no memory until they are read and opening takes no time.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Self

from agentrl.retriever.corpus import Passage
from agentrl.retriever.errors import IndexOpenError

PASSAGES, OFFSETS = "passages.jsonl", "offsets.u64"
_CACHED_PASSAGES = 16_384  # of about 1 kB each
_encode = json.JSONEncoder(ensure_ascii=False).encode
_PAIR = struct.Struct("<QQ")  # where a line begins, and where the next one does


class PassageWriter:
    """Appends passages to the two files in `folder`; closing it flushes them to the disk."""

    def __init__(self, folder: Path) -> None:
        self._lines = (folder / PASSAGES).open("wb", buffering=1 << 20)
        self._offsets = (folder / OFFSETS).open("wb", buffering=1 << 20)
        self._offsets.write(bytes(8))
        self._position = 0

    def append(self, passage: Passage) -> None:
        """Write one passage; its row is the number of passages written before it."""
        row = {"id": passage.id, "title": passage.title, "text": passage.text}
        line = _encode(row).encode("utf-8") + b"\n"
        self._lines.write(line)
        self._position += len(line)
        self._offsets.write(self._position.to_bytes(8, "little"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in (self._lines, self._offsets):
            with file:
                if error is None:
                    file.flush()
                    os.fsync(file.fileno())


class PassageStore:
    """Reads passages by row. Safe to use from several threads and after a fork."""

    def __init__(self, folder: Path, count: int) -> None:
        """Map the files of `folder`, which should hold `count` passages; `IndexOpenError` where they do not."""
        self._folder, self._count = folder, count
        try:
            self._lines, self._offsets = _map(folder / PASSAGES), _map(folder / OFFSETS)
        except (OSError, ValueError) as error:
            raise IndexOpenError(f"{folder}: {error}; build the index anew") from error
        expected = 8 * (count + 1)
        if len(self._offsets) != expected:
            raise IndexOpenError(
                f"{folder / OFFSETS} has {len(self._offsets)} bytes, {count} passages need {expected}; "
                "the index was copied in part or damaged: build it anew"
            )
        end = int.from_bytes(self._offsets[-8:], "little")
        if end != len(self._lines):
            raise IndexOpenError(
                f"{folder / PASSAGES} has {len(self._lines)} bytes, its offsets end at {end}; "
                "the index was copied in part or damaged: build it anew"
            )
        self._read_cached = lru_cache(maxsize=_CACHED_PASSAGES)(self._read)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: int) -> Passage:
        return self._read_cached(row)

    def _read(self, row: int) -> Passage:
        if not 0 <= row < self._count:
            raise IndexError(row)
        start, end = _PAIR.unpack_from(self._offsets, 8 * row)
        try:
            fields = json.loads(self._lines[start:end].decode("utf-8"))
            return Passage(fields["id"], fields["title"], fields["text"])
        except (ValueError, KeyError, TypeError) as error:
            raise IndexOpenError(
                f"{self._folder / PASSAGES}, line {row + 1} is damaged; build the index anew"
            ) from error


def _map(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

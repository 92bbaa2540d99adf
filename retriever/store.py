"""Passages on disk: a JSONL file that is itself a corpus, and the byte offset of each of its lines.

Both are memory-mapped, so that 21 million passages cost no memory until they are read and opening takes no time. The
JSONL file may also be somebody else's, where it stands (`index_lines`).
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from agentrl.retriever.corpus import Passage, parse_passage
from agentrl.retriever.errors import CorpusError, IndexOpenError

PASSAGES, OFFSETS = "passages.jsonl", "offsets.u64"
_CACHED_PASSAGES = 16_384  # of about 1 kB each
_encode = json.JSONEncoder(ensure_ascii=False).encode
_PAIR = struct.Struct("<QQ")  # where a line begins, and where the next one does


class PassageWriter:
    """Appends passages to the two files in `folder`; `flush` and closing it bring them to the disk.

    `rows` and `size`, of an earlier writer's `flush`, go on from there: what was written after it is cut off.
    """

    def __init__(self, folder: Path, rows: int = 0, size: int = 0) -> None:
        self.rows, self.size = rows, size  # passages, and the bytes of their lines
        self._lines, self._offsets = _reopened(folder / PASSAGES, size), _reopened(folder / OFFSETS, 8 * (rows + 1))
        if rows == 0:
            self._offsets.seek(0)
            self._offsets.write(bytes(8))

    def append(self, passage: Passage) -> None:
        """Write one passage; its row is the number of passages written before it."""
        row: dict[str, Any] = {"id": passage.id, "title": passage.title, "text": passage.text}
        if passage.given is not None:
            row["contents"] = passage.given
        line = _encode(row).encode("utf-8") + b"\n"
        self._lines.write(line)
        self.size += len(line)
        self.rows += 1
        self._offsets.write(self.size.to_bytes(8, "little"))

    def flush(self) -> None:
        """Bring all that was appended to the disk."""
        for file in (self._lines, self._offsets):
            file.flush()
            os.fsync(file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.flush()
        finally:
            for file in (self._lines, self._offsets):
                try:
                    file.close()
                except OSError:
                    if error is None:
                        raise


class PassageStore:
    """Reads passages by row. Safe to use from several threads and after a fork."""

    def __init__(self, folder: Path, count: int, *, corpus: Path | None = None) -> None:
        """Map the files of `folder`, or `corpus` with the offsets in `folder`, which should hold `count` passages.

        `IndexOpenError` where they do not.
        """
        self.path, self._count = corpus or folder / PASSAGES, count
        try:
            self._lines, self._offsets = _map(self.path), _map(folder / OFFSETS)
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
                f"{self.path} has {len(self._lines)} bytes, its offsets end at {end}; "
                "the index was copied in part or damaged: build it anew"
            )
        self._read_cached = lru_cache(maxsize=_CACHED_PASSAGES)(self._read)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: int) -> Passage:
        return self._read_cached(row)

    def uncached(self, row: int) -> Passage:
        """As `store[row]`, for whoever reads every row once."""
        return self._read(row)

    def _read(self, row: int) -> Passage:
        if not 0 <= row < self._count:
            raise IndexError(row)
        start, end = _PAIR.unpack_from(self._offsets, 8 * row)
        try:
            return parse_passage(json.loads(self._lines[start:end].decode("utf-8-sig")))
        except (ValueError, RecursionError) as error:
            raise IndexOpenError(f"{self.path}, line {row + 1} is damaged; build the index anew") from error


def index_lines(corpus: Path, offsets: Path) -> int:
    """Write to `offsets` where each passage of the JSONL file `corpus` begins, and return how many there are.

    Blank lines belong to the passage before them. The lines themselves are read when they are asked for.
    """
    rows = position = 0
    with corpus.open("rb") as lines, offsets.open("wb", buffering=1 << 20) as out:
        for line in lines:
            if not line.isspace():
                if rows == 0 and position == 0 and line[:2] == b"\x1f\x8b":
                    raise CorpusError(f"{corpus}: is gzipped; unpack it, so that its passages can be read in place")
                out.write(position.to_bytes(8, "little") if rows else bytes(8))
                rows += 1
            position += len(line)
        out.write(position.to_bytes(8, "little"))
        out.flush()
        os.fsync(out.fileno())
    return rows


def _reopened(path: Path, size: int) -> BinaryIO:
    path.touch()
    os.truncate(path, size)
    file = path.open("r+b", buffering=1 << 20)
    file.seek(size)
    return file


def _map(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

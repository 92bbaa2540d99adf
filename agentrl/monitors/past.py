"""What has been read of a log, remembered in a few bytes a row, so that a log that is written anew is not news.

A log grows (a trainer appends), is written anew with the same beginning (pandas' `to_csv`, an atomic writer), is cut
back and goes on differently (a resume), or is replaced by another run. The rows show which it is, whatever the format:
`Rows` compares them with those that were read before. `Marks` says that the bytes may be others: the file's identity
and a checksum of its last bytes.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from array import array
from collections.abc import Iterable
from enum import Enum
from pathlib import Path

from agentrl.monitors.sources.base import Row

ANCHOR = 256  # bytes under a checksum
COMMON = 3  # rows that two runs may share by chance (an evaluation before training, for example)


class Found(Enum):
    """What a row is to the rows that were read before."""

    NEW = "behind all that was read"
    SEEN = "read before"
    CHANGED = "the run goes on differently from here: it was resumed"
    OTHER = "another run"


class Rows:
    """One hash a row. `reread` says that the log is read from its start again."""

    def __init__(self) -> None:
        self._hashes = array("Q")
        self._at: int | None = None  # place in `_hashes`, while rows are read again

    def __len__(self) -> int:
        return len(self._hashes)

    def reread(self) -> None:
        """The next row is the first one of the log."""
        self._at = 0 if self._hashes else None

    def take(self, row: Row) -> Found:
        """What `row` is. After CHANGED and OTHER only what `clear` leaves may follow: read from the start."""
        one = fingerprint(row)
        if self._at is None:
            self._hashes.append(one)
            return Found.NEW
        if one == self._hashes[self._at]:
            return self._seen(self._at)
        if self._at == 0:  # a log that keeps its last rows only begins in the middle of what was read
            try:
                return self._seen(self._hashes.index(one))
            except ValueError:
                return Found.OTHER
        return Found.CHANGED if self._at >= min(COMMON, len(self._hashes)) else Found.OTHER

    def _seen(self, place: int) -> Found:
        self._at = place + 1 if place + 1 < len(self._hashes) else None
        return Found.SEEN

    def clear(self) -> None:
        """Forget all rows."""
        self._hashes, self._at = array("Q"), None


def fingerprint(row: Row) -> int:
    """64 bits of a row's step and values; without NaN, which is how a new column fills older rows."""
    values = row.values
    names = [k for k in sorted(values) if values[k] == values[k]]
    text = f"{row.step}\0" + "\0".join(names)
    numbers = array("d", [values[k] for k in names]).tobytes()
    whole = text.encode("utf-8", "surrogatepass") + b"\0\0" + numbers
    return int.from_bytes(hashlib.blake2b(whole, digest_size=8).digest(), "big")


class Mark:
    """A file as it was: identity, size, and a checksum of its last bytes then."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with open(path, "rb") as file:
            self._set(file.fileno(), os.fstat(file.fileno()))

    def _set(self, fd: int, stat: os.stat_result) -> None:
        self._identity, self._size = (stat.st_dev, stat.st_ino), stat.st_size
        self._sum = _checksum(fd, self._size)

    def holds(self, renew: bool = False) -> bool:
        """Whether the file is still that one, or has only grown; `renew`: note how it is now.

        FileNotFoundError where it is gone.
        """
        with open(self.path, "rb") as file:
            stat = os.fstat(file.fileno())
            same = (stat.st_dev, stat.st_ino) == self._identity and stat.st_size >= self._size
            same = same and _checksum(file.fileno(), self._size) == self._sum
            if renew:
                self._set(file.fileno(), stat)
            return same


class Marks:
    """The marks of all files of a source."""

    def __init__(self) -> None:
        self._marks: dict[Path, Mark] = {}

    def renew(self, files: Iterable[Path]) -> bool:
        """`hold`, and note how the files are now, those in `files` among them."""
        held = all([mark.holds(renew=True) for mark in self._marks.values()])
        for path in files:
            if path not in self._marks and path.is_file():  # a pipe has no past
                self._marks[path] = Mark(path)
        return held

    def hold(self) -> bool:
        """Whether none was replaced, cut or written anew. FileNotFoundError where one is gone."""
        return all([mark.holds() for mark in self._marks.values()])

    def clear(self) -> None:
        """Forget all files."""
        self._marks = {}


def _checksum(fd: int, end: int) -> int:
    size = min(ANCHOR, end)
    return zlib.crc32(os.pread(fd, size, end - size))

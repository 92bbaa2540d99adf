"""What is not a plain file yet: standard input and gzip, copied to a temporary file that the formats can read."""

from __future__ import annotations

import contextlib
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from agentrl.errors import RunError

LARGEST = 4 << 30  # bytes that a compressed file may become: a small one can hold a very large one
CHUNK = 1 << 20


class Spool:
    """Copies a stream to a file. `close` removes the file."""

    def __init__(self, suffix: str = "") -> None:
        import tempfile  # a plain file needs none

        self._file = tempfile.NamedTemporaryFile(prefix="agentrl-watch-", suffix=suffix)  # noqa: SIM115  closed by `close`
        self.path = Path(self._file.name)
        self._ended = threading.Event()
        self.problem: str | None = None

    def copy(self, stream: BinaryIO, largest: int | None = None) -> Spool:
        """Everything in `stream`, now."""
        size = 0
        try:
            for chunk in _chunks(stream):
                self._file.write(chunk)
                self._file.flush()
                size += len(chunk)
                if largest is not None and size > largest:
                    self.problem = f"only the first {largest >> 30} GiB were unpacked"
                    break
        except (EOFError, OSError, zlib.error) as error:
            self.problem = f"the input is damaged or cut: {error}"
        self._ended.set()
        return self

    @property
    def done(self) -> bool:
        """Whether the stream has ended."""
        return self._ended.is_set()

    def wait(self) -> None:
        """Until the stream has ended."""
        self._ended.wait()

    def follow(self, stream: BinaryIO) -> Spool:
        """The same from a thread, as it comes."""
        threading.Thread(target=self.copy, args=(stream,), daemon=True, name="watch-stdin").start()
        return self

    def close(self) -> None:
        """Remove the file."""
        with contextlib.suppress(OSError):
            self._file.close()


def _chunks(stream: BinaryIO) -> Iterator[bytes]:
    read = getattr(stream, "read1", stream.read)
    while chunk := read(CHUNK):
        yield chunk


def standard_input() -> Spool:
    """What is piped in."""
    return Spool().follow(sys.stdin.buffer)


def unpacked(path: Path) -> Spool:
    """The content of a gzip file. RunError where nothing of it can be unpacked."""
    import gzip

    spool = Spool(Path(path.stem).suffix)
    with gzip.open(path, "rb") as stream:
        spool.copy(stream, LARGEST)  # type: ignore[arg-type]
    if spool.problem and not spool.path.stat().st_size:
        raise RunError(f"{path}: {spool.problem}")
    return spool

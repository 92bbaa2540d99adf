"""Files that are never left half-written: atomic replacement, appends that undo themselves, strict JSON, a run's lock.

Left out on purpose: an fsync per appended row. A kill loses nothing without it, and a power cut at most the rows after
the last checkpoint, which a resume writes again (`checkpoint.save_checkpoint` makes the rows before it durable).
No torch.
"""

from __future__ import annotations

import datetime
import errno
import json
import math
import os
import re
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agentrl.errors import RunError

try:
    import fcntl
except ImportError:  # no POSIX: two processes that start on one run in the same millisecond are not told apart
    fcntl = None  # type: ignore[assignment]

# ----------------------------------------------------------------------------------------------------------- errors


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the file system refuses inside the block into a RunError with the remedy."""
    try:
        yield
    except RunError:
        raise
    except Exception as error:  # safetensors and torch report a full disk with error types of their own
        message = _explained(error, path)
        if message is None:
            raise
        raise RunError(message) from error


#: What a full disk is called, by kind. The errors' texts are not read: they depend on the library and the language.
_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk is full for this user: the quota is used up",
    errno.EFBIG: "a file would become larger than is allowed here (`ulimit -f`, or the file system's own limit)",
}
_RUST_NUMBER = re.compile(r"\(os error (\d+)\)")  # how safetensors and other Rust libraries report the kind


def _explained(error: Exception, path: Path) -> str | None:
    number = _number_of(error)
    if number is None and isinstance(error, RuntimeError) and not isinstance(error, RecursionError):
        number = _refused(path)  # torch says "file write failed" whatever the kind: ask the disk
        number = number if number in _FULL else None
    if number in _FULL:
        free = ""
        with suppress(OSError):
            free = f" ({shutil.disk_usage(_existing(path)).free / 2**20:,.0f} MiB free)"
        return f"{path}: {_FULL[number]}{free}. What was written before is intact: free some space"
    if number in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"{path}: cannot be written ({error}). Choose a folder you may write to: --set log.runs_dir=..."
    if isinstance(error, OSError):
        return f"{path}: {error.strerror or error}"
    return None


def _number_of(error: BaseException) -> int | None:
    """The errno of an error or of what caused it; None where nobody gives one."""
    seen: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in seen:
        seen.append(at)
        number = getattr(at, "errno", None)
        if isinstance(number, int):
            return number
        if m := _RUST_NUMBER.search(str(at)):
            return int(m[1])
        at = at.__cause__ or at.__context__
    return None


def _refused(path: Path) -> int | None:
    """The errno that a write beside `path` gets now; None where it succeeds."""
    folder = next(p for p in (path, *path.absolute().parents) if p.is_dir())
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x" * (1 << 20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno
    return None


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.absolute().parents) if p.exists())


# ----------------------------------------------------------------------------------------------------------- writing


def atomic_write(path: Path, data: bytes | str, *, durable: bool = True) -> None:
    """Replace `path` so that a reader, or a crash, sees the old content or the new one. Raises RunError.

    `durable`: also after a power cut.
    """
    raw = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    with writing(path):
        try:
            with temporary.open("wb") as file:
                file.write(raw)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Add one JSON line. If it cannot be written whole, the file is cut back to what it was and RunError raised."""
    data = (strict_json(row) + "\n").encode()
    with writing(path):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            size = os.fstat(fd).st_size
            if size and os.pread(fd, 1, size - 1) != b"\n":  # a writer was killed here: its torn line stays alone
                data = b"\n" + data
            written = 0
            try:
                while written < len(data):
                    written += os.write(fd, data[written:])
            except OSError:
                if os.fstat(fd).st_size == size + written:  # nobody else has appended since
                    os.ftruncate(fd, size)
                raise
        finally:
            os.close(fd)


def fsync_path(path: Path) -> None:
    """Make a file's content, or a folder's list of names, survive a power cut. Nothing where that is not supported.

    Network file systems say here that the disk is full: OSError.
    """
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):  # some have no fsync of folders
            raise
    finally:
        os.close(fd)


# -------------------------------------------------------------------------------------------------------------- JSON


def strict_json(value: Any) -> str:
    """One line of JSON that any parser reads, whatever `value` holds: nothing is refused.

    NaN and infinities become null, numpy and torch numbers plain ones, and what JSON has no form for (a date, a
    decimal, bytes, an object of somebody's own) a text.
    """
    try:
        return json.dumps(value, default=_plain, allow_nan=False)
    except (ValueError, TypeError, RecursionError):  # NaN, a key that is no text, a circle
        return json.dumps(finite(value), allow_nan=False)


def finite(value: Any, depth: int = 0) -> Any:
    """The same structure as plain JSON, with None in place of every float that is not finite.

    Keys become texts; below 60 levels (a structure that holds itself) there is an ellipsis.
    """
    if depth > 60:
        return "…"
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k if isinstance(k, str) else str(_plain(k)): finite(v, depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v, depth + 1) for v in value]
    if isinstance(value, bool | str | None):
        return value
    if isinstance(value, int):
        return value if value.bit_length() < 4096 else hex(value)  # Python prints no more than 4300 digits
    return finite(_plain(value), depth + 1)


def _plain(value: Any) -> Any:
    """What JSON has no form for, in one that it has: numbers of numpy and torch, and texts."""
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, set | frozenset):
        try:
            return sorted(value)
        except TypeError:  # of several types
            return sorted(map(_text, value))
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if hasattr(value, "tolist"):
        with suppress(Exception):  # nobody knows whose method it is
            return value.tolist()
    return _text(value)


def _text(value: Any) -> str:
    """A short text of anything: str where the type has one of its own, else its repr without a memory address."""
    kind = type(value)
    try:
        text = repr(value) if kind.__str__ is object.__str__ else str(value)
    except Exception:  # nobody knows whose method it is
        return f"<{kind.__name__}>"
    return _ADDRESS.sub("", text)[:500]


_ADDRESS = re.compile(r" at 0x[0-9A-Fa-f]+")  # differs from process to process


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file; lines that are torn or no objects are passed over, a missing file is empty."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    rows = (parse_line(line) for line in data.split(b"\n"))
    return [row for row in rows if row is not None]


def read_last_lines(path: Path, n: int) -> list[dict[str, Any]]:
    """The last `n` objects of a JSONL file, read from its end."""
    if n <= 0:
        return []
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            block, data = 1 << 14, b""
            while end > 0 and data.count(b"\n") <= n + 1:
                start = max(0, end - block)
                file.seek(start)
                data = file.read(end - start) + data
                end, block = start, block * 2
    except FileNotFoundError:
        return []
    lines = data.split(b"\n")[1 if end > 0 else 0 :]
    rows = [row for row in map(parse_line, lines) if row is not None]
    return rows[-n:] if len(rows) >= n or end == 0 else read_lines(path)[-n:]


def parse_line(line: bytes) -> dict[str, Any] | None:
    """The object on one line, or None where there is none."""
    try:
        row = json.loads(line) if line.strip() else None
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where the file is missing or unreadable."""
    try:
        row = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return row if isinstance(row, dict) else {}


# -------------------------------------------------------------------------------------------------------------- lock


@dataclass(frozen=True)
class Holder:
    """The process that writes to a run. `started` tells a process from a later one with the same id."""

    pid: int
    host: str
    started: str | None

    @classmethod
    def this_process(cls) -> Holder:
        """Who we are."""
        return cls(os.getpid(), socket.gethostname(), _start_time(os.getpid()))

    def alive(self) -> bool:
        """False where the process is known to be gone; one on another machine counts as alive."""
        if self.host != socket.gethostname():
            return True
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return self.started is None or self.started == _start_time(self.pid)


def lock_holder(path: Path) -> Holder | None:
    """The living process whose name is in the lock file `path`, if there is one."""
    row = read_json(path)
    try:
        holder = Holder(int(row["pid"]), str(row["host"]), row["started"])
    except (KeyError, TypeError, ValueError):
        return None
    return holder if holder.alive() else None


class RunLock:
    """One writer at a time. The file names the process, so that a killed one leaves no lock behind.

    A kernel lock is held only while the file is read and written: held for the whole run, it would live on in worker
    processes forked from a writer that was killed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.held = False

    def acquire(self, what: str) -> None:
        """Take the lock or raise RunError that names the holder. `what` is the run, for the message."""
        with writing(self.path), self.path.open("a+") as file:
            if fcntl is not None:
                with suppress(OSError):  # not supported on this file system
                    fcntl.flock(file, fcntl.LOCK_EX)
            holder = lock_holder(self.path)
            if holder is not None:
                raise RunError(
                    f"{what} is in use by process {holder.pid} on {holder.host}: wait for it or stop it. "
                    f"If that process is gone, delete {self.path}"
                )
            file.truncate(0)
            file.write(json.dumps(asdict(Holder.this_process())))
        self.held = True

    def release(self) -> None:
        """Give it back; harmless when it is not held."""
        if self.held:
            self.held = False
            with suppress(OSError):
                self.path.write_text("")


def _start_time(pid: int) -> str | None:
    """Clock ticks from boot to the start of a process, where the system tells (Linux)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return stat.rpartition(")")[2].split()[19]

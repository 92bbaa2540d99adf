"""The card, or the machine's memory, that trainer and vLLM share: how much is free, and who else samples on it."""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path
from typing import IO

import torch

from agentrl.errors import ConfigError


def free_bytes(device: torch.device, held: float) -> float | None:
    """What trainer and vLLM may share: free memory and the `held` bytes that the model has taken of it already.

    None where the system does not say.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return float(free + torch.cuda.memory_reserved(device))
    free_main = main_memory(Path("/proc/meminfo"), Path("/sys/fs/cgroup"))
    return None if free_main is None else free_main + held


def main_memory(meminfo: Path, cgroup: Path) -> float | None:
    """Bytes of main memory that this process may still take, of a container's limit too; None where unknown."""
    try:
        rows = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        found = 1024.0 * int(rows["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return None
    try:
        limit, used = ((cgroup / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        cache = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        reclaimable = float(cache.get("inactive_file", 0))
        return found if limit == "max" else min(found, float(limit) - float(used) + reclaimable)
    except (OSError, ValueError):
        return found


class CardLock:
    """One vLLM sampler on a card: a second one, of this or another process, is refused.

    The lock ends with the process that holds it, however it ends.
    """

    def __init__(self, card: str, folder: Path | None = None) -> None:
        """Take it. ConfigError with the other's process id where it is taken."""
        name = "".join(c if c.isalnum() or c == "-" else "_" for c in card)
        path = (folder or Path(tempfile.gettempdir())) / f"agentrl-vllm-{os.getuid()}-{name}.lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        self.file: IO[str] = os.fdopen(descriptor, "r+")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = self.file.read().strip() or "unknown"
            self.file.close()
            raise ConfigError(
                [
                    f"rollout.sampler is vllm, and process {holder} samples with vLLM on this card ({card}) already: "
                    "two would share its memory and both be slow; end that one, take another card with "
                    "CUDA_VISIBLE_DEVICES, or set rollout.sampler to torch"
                ]
            ) from None
        self.file.truncate(0)
        self.file.write(str(os.getpid()))
        self.file.flush()

    def release(self) -> None:
        """Give it back."""
        self.file.close()


def name_of(device: torch.device) -> str | None:
    """What tells this card from others on this machine; None for the CPU, which many samplers may share."""
    if device.type != "cuda":
        return None
    return str(getattr(torch.cuda.get_device_properties(device), "uuid", device))

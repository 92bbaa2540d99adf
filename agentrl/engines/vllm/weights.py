"""The trainer's weights under the names that a checkpoint would give them, and its adapters as files."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

SHARED_MEMORY = Path("/dev/shm")


def base_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Hugging Face name and tensor of every weight of the model, adapters left out; a tied one comes once."""
    prefix = "base_model.model."
    for name, weight in model.named_parameters():
        if ".lora_" in name:
            continue
        yield name.removeprefix(prefix).replace(".base_layer.", "."), weight.detach()


def with_adapter_files(model: Any, use: Callable[[str], None]) -> None:
    """Call `use` with a folder of the model's adapters, in memory where the system has such a place."""
    where = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="agentrl-adapter-", dir=where) as folder:
        model.save_pretrained(folder, safe_serialization=True)
        use(folder)

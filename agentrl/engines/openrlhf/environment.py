"""Which environment variables the driver's workers get, and how many threads an optimiser in main memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from agentrl.engines.openrlhf import cpu as cpu_shim

#: beginnings of names that decide how a worker computes, finds its model or reaches the others
FORWARDED = (
    "VLLM_", "NCCL_", "GLOO_", "DS_", "TORCH_", "TORCHDYNAMO_", "TORCHINDUCTOR_", "PYTORCH_", "CUDA_LAUNCH_BLOCKING",
    "CUDA_MODULE_LOADING", "HF_", "TRANSFORMERS_", "TOKENIZERS_", "OMP_", "UCX_", "FI_",
)  # fmt: skip
SECRET = {"TOKEN", "KEY", "SECRET", "PASSWORD"}  # Ray shows what workers get to whoever sees its dashboard


def worker_environment(environ: Mapping[str, str], *, cpu: bool, own: Iterable[str] = ()) -> dict[str, str]:
    """What every worker gets of the driver's `environ`, and on which device it computes.

    `own` are variables that the driver has set for itself. A token of the hub is not among them: what needs one must
    be in the cache (HF_HOME) or in the environment of `ray start`.
    """
    out = {
        name: value
        for name, value in environ.items()
        if name.startswith(FORWARDED) and not SECRET & set(name.split("_")) and name not in set(own)
    }
    return out | (cpu_shim.ENVIRONMENT if cpu else {cpu_shim.DEVICE: "cuda"})


def offload_threads(cores: int, sharing: int | None) -> int | None:
    """Threads for AdamW in main memory, of a node's `cores` that as many workers share; None: leave it as it is.

    Ray gives an actor one thread where OMP_NUM_THREADS is not set, with which an update of a large model takes minutes.
    """
    return None if sharing is None else max(1, cores // sharing)

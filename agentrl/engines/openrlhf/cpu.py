"""What OpenRLHF and vLLM need on a machine without CUDA. With a GPU, only flash-attn is stood in for.

The driver decides once whether its workers compute on CUDA or on the CPU, and says so in their environment (`DEVICE`):
a worker that finds no CUDA where it should have it names its node, instead of going on with the CPU in silence.

`before_import` and `after_import` surround the import of OpenRLHF in the driver and in policy workers, `inside_vllm`
runs in vLLM's processes before the model is loaded. What they replace, and why:

- flash_attn, imported by OpenRLHF when it is loaded, on any machine where it is not installed: a stub that refuses when
  it is used, and is taken away once OpenRLHF is loaded. With openrlhf.attention sdpa nothing uses it
- torch.cuda.{current_device, set_device, synchronize, empty_cache, current_stream}: the CPU, or nothing
- init_device_mesh("cuda") in the DeepSpeed strategy: "cpu"
- the PyNccl group between trainer and vLLM: a gloo group with the same `broadcast`
- OpenRLHF's replay buffer, which asks for a CUDA device and is not used here: nothing
- DeepSpeed's asynchronous collective calls: waited for. ZeRO-3 waits for the last of several alone, which is enough on
  a CUDA stream; gloo finishes them in any order, and under load a late gather overwrote weights just loaded
- DeepSpeed's all-reduce through shared memory: none, gloo does it. It is C++ that every new machine would compile for
  minutes behind a lock file that a killed process leaves behind, and its ranks spin without a deadline for a dead one
- vLLM's packed linear weights: plain ones. Packed ones cannot be loaded again, and tied heads keep the old copy

Not covered, and refused by `preflight`: sleep mode, flash attention, NCCL, CUDA IPC.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import socket
import sys
import types
from typing import Any

import torch

from agentrl.errors import RunError

DEVICE = "AGENTRL_CLUSTER_DEVICE"  # cpu or cuda, in the environment of every worker

#: for every process of a cluster without GPUs
ENVIRONMENT = {
    DEVICE: "cpu",
    "DS_ACCELERATOR": "cpu",
    "OMP_NUM_THREADS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine's own process runs the model: one process less to start
}

_WAITED = (
    "all_gather", "all_gather_coalesced", "all_gather_into_tensor", "all_reduce", "broadcast", "reduce_scatter_tensor",
)  # fmt: skip


#: variables that `before_import` has set in this process, and that mean nothing for others
set_here: set[str] = set()


def needed() -> bool:
    """Whether this process computes without CUDA: as its driver has decided, and in the driver by what torch sees."""
    decided = os.environ.get(DEVICE)
    return decided == "cpu" if decided else not torch.cuda.is_available()


def check_device() -> None:
    """In a worker: RunError where the driver has decided for CUDA, and this node has none."""
    if os.environ.get(DEVICE) == "cuda" and not torch.cuda.is_available():
        raise RunError(
            f"node {socket.gethostname()} should compute on CUDA and torch {torch.__version__} sees none there: look "
            "at nvidia-smi and at torch's build on that node, or start Ray without its GPUs (ray start --num-gpus=0)"
        )


def before_import() -> None:
    """Call before anything of openrlhf is imported."""
    if importlib.util.find_spec("flash_attn") is None:
        _stub_flash_attn()
    if not needed():
        return
    for name in ("DS_ACCELERATOR", "TORCHDYNAMO_DISABLE"):
        if name not in os.environ:
            os.environ[name] = ENVIRONMENT[name]
            set_here.add(name)
    cpu = torch.device("cpu")
    replaced: dict[str, Any] = {
        "current_device": lambda: cpu,
        "set_device": lambda device: None,
        "synchronize": lambda device=None: None,
        "empty_cache": lambda: None,
        "current_stream": lambda device=None: None,
    }
    for name, function in replaced.items():
        setattr(torch.cuda, name, function)


def after_import() -> None:
    """Call once openrlhf's modules that this process uses are imported."""
    for name in [n for n, m in sys.modules.items() if "agentrl_stub" in getattr(m, "__dict__", {})]:
        del sys.modules[name]  # vLLM and transformers look whether it is there
    if not needed():
        return
    strategy: Any = sys.modules.get("openrlhf.utils.deepspeed.deepspeed")
    if strategy is not None and not hasattr(strategy, "agentrl_cpu"):
        mesh = strategy.init_device_mesh
        strategy.init_device_mesh = lambda device, *a, **k: mesh("cpu", *a, **k)
        strategy.agentrl_cpu = True
    backend: Any = sys.modules.get("deepspeed.comm.torch")
    if backend is not None and not hasattr(backend, "agentrl_cpu"):
        backend.build_shm_op = lambda: None
        for name in _WAITED:
            setattr(backend.TorchBackend, name, _waited(getattr(backend.TorchBackend, name)))
        backend.agentrl_cpu = True
    for name in ("openrlhf.utils.distributed_util", "openrlhf.trainer.ray.ppo_actor"):
        module: Any = sys.modules.get(name)
        if module is not None:
            module.stateless_init_process_group = GlooGroup
            if hasattr(module, "NaiveReplayBuffer"):
                module.NaiveReplayBuffer = lambda *a, **k: None


def inside_vllm() -> None:
    """Call in a vLLM worker's process before it loads the model."""
    before_import()
    import openrlhf.trainer.ray.vllm_worker_wrap
    import openrlhf.utils.distributed_util  # noqa: F401

    after_import()
    if needed():
        from agentrl.engines.vllm.core import unpacked_linears

        unpacked_linears()


class GlooGroup:
    """Stands in for vLLM's PyNcclCommunicator: rank 0 broadcasts tensors to all others."""

    def __init__(self, host: str, port: int, rank: int, world_size: int, device: Any) -> None:
        from vllm.distributed.utils import stateless_init_torch_distributed_process_group

        self.group = stateless_init_torch_distributed_process_group(host, port, rank, world_size, backend="gloo")

    def broadcast(self, tensor: torch.Tensor, src: int, stream: Any = None) -> None:
        """In place, from rank `src`; returns when it is done."""
        options = torch.distributed.BroadcastOptions()
        options.rootRank, options.rootTensor = src, 0
        self.group.broadcast([tensor], options).wait()


def _waited(collective: Any) -> Any:
    """The collective call, complete when it returns, whatever `async_op`."""

    def call(*args: Any, **kwargs: Any) -> Any:
        handle = collective(*args, **kwargs)
        if hasattr(handle, "wait"):
            handle.wait()
        return handle

    return call


def _stub_flash_attn() -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("flash_attn is not installed: set openrlhf.attention to sdpa")

    def stub(name: str, **attributes: Any) -> None:
        module: Any = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        module.__path__ = []
        module.agentrl_stub = True
        module.__dict__.update(attributes)
        sys.modules[name] = module

    stub("flash_attn")
    stub("flash_attn.utils")
    stub("flash_attn.utils.distributed", all_gather=refuse)
    names = ("index_first_axis", "pad_input", "rearrange", "unpad_input")
    stub("flash_attn.bert_padding", **dict.fromkeys(names, refuse))

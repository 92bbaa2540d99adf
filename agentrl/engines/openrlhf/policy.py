"""The policy workers: OpenRLHF's `PolicyModelActor` and `ReferenceModelActor` with our scoring, loss and checkpoints.

What OpenRLHF does: distributed set-up, loading, DeepSpeed, backward and optimiser steps, saving weights, the connection
to vLLM. What is added: NTHR inside the scoring pass over whole groups, a loss with the divisor of the
whole mini-batch over all ranks and micro-batches, checkpoints without pickle, weights to vLLM in buckets and LoRA
adapters as adapters, and fp32 for tests on the CPU.

A rank is handed its own rows; none is dropped, and ranks with fewer micro-batches make empty passes.
"""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import ray
import torch
from torch import Tensor
from torch import distributed as dist

from agentrl.engines.openrlhf import cpu

cpu.before_import()
import openrlhf.utils.utils as openrlhf_utils  # noqa: E402
from openrlhf.trainer.ray.launcher import ReferenceModelActor  # noqa: E402
from openrlhf.trainer.ray.ppo_actor import PolicyModelActor  # noqa: E402
from openrlhf.utils.deepspeed import DeepspeedStrategy  # noqa: E402

cpu.after_import()

from agentrl.algorithms.losses import Metric, Metrics  # noqa: E402
from agentrl.batch import TokenBatch, micro_batches  # noqa: E402
from agentrl.config import LoraConfig, ModelConfig, NTHRConfig  # noqa: E402
from agentrl.engines.base import ScoreResult  # noqa: E402
from agentrl.engines.openrlhf.arguments import undecorated  # noqa: E402
from agentrl.engines.openrlhf.buckets import Named, add_bits, buckets, flat, shape  # noqa: E402
from agentrl.engines.openrlhf.environment import offload_threads  # noqa: E402
from agentrl.engines.openrlhf.forward import WorkerModel  # noqa: E402
from agentrl.engines.openrlhf.shards import Piece, load_shards, pieces_of, save_shard, shard_file  # noqa: E402
from agentrl.engines.openrlhf.sync import ADAPTER, Digest  # noqa: E402
from agentrl.engines.shared.loading import is_adapter, load_weights  # noqa: E402
from agentrl.engines.shared.scoring import score_batch  # noqa: E402
from agentrl.engines.shared.updates import Update, loss_of_rows, without_dropout  # noqa: E402

QUIET_PORTS = range(20000, 32000)  # above Ray's workers' own, below those of outgoing connections (Linux: from 32768)
CPU_BUCKET = 5_000_000  # gradients summed at once; DeepSpeed's 500 million are 2 GB of memory in every process


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker needs beside OpenRLHF's arguments."""

    model: ModelConfig
    micro_batch_tokens: int
    packing: bool
    zero_stage: int
    timeout_s: float
    sharing: int | None = None  # workers that share this node's cores for an optimiser in main memory; None: no say


class Strategy(DeepspeedStrategy):
    """OpenRLHF's, with a deadline for collective calls, and torch's fused AdamW: DeepSpeed's needs nvcc."""

    timeout_s = 3600.0

    def setup_distributed(self, timeout: timedelta | None = None) -> None:
        """See DeepspeedStrategy."""
        super().setup_distributed(timeout=timedelta(seconds=self.timeout_s))

    def get_ds_train_config(self, optim_dict: dict[str, Any] | None = None, **kwargs: Any) -> dict[str, Any]:
        """See DeepspeedStrategy."""
        if optim_dict is not None:
            optim_dict["params"] |= {"torch_adam": True, "fused": True}
        config = super().get_ds_train_config(optim_dict=optim_dict, **kwargs)
        config["zero_force_ds_cpu_optimizer"] = False  # torch's is fused on a CPU, too
        if cpu.needed():
            config["zero_optimization"]["reduce_bucket_size"] = CPU_BUCKET
        return config


def make_strategy(arguments: Any, timeout_s: float) -> Strategy:
    """What OpenRLHF's `get_strategy` makes, of our class."""
    strategy = Strategy(
        seed=arguments.train.seed,
        max_norm=arguments.actor.max_norm,
        micro_train_batch_size=arguments.train.micro_batch_size,
        train_batch_size=arguments.train.batch_size,
        zero_stage=arguments.ds.zero_stage,
        args=arguments,
    )
    strategy.timeout_s = timeout_s
    return strategy


def sum_in_fp32(optimizer: Any) -> None:
    """Micro-batches' gradients of DeepSpeed's ZeRO-2 are added in `grad_accum_dtype`.

    DeepSpeed 0.19 keeps the first gradient as it came, in bf16, and adds the others to it.
    """
    gradients = optimizer.get_all_grad_tensors
    optimizer.get_all_grad_tensors = lambda tensors, dtype: [g.to(dtype) for g in gradients(tensors, dtype)]


class _Scoring:
    """Scoring of a rank's rows; `model` is set by the actor."""

    model: WorkerModel

    @staticmethod
    def _get_free_port() -> int:
        """For the ranks to meet at, seconds later: from a range that the system gives to nobody meanwhile."""
        for port in random.SystemRandom().sample(QUIET_PORTS, 100):
            with suppress(OSError), socket.socket() as s:
                s.bind(("", port))
                return port
        raise OSError(f"no free port was found among {QUIET_PORTS}")

    @torch.no_grad()
    def score(
        self, batch: TokenBatch | None, temperature: float, nthr: NTHRConfig | None, entropy: bool, reference: bool
    ) -> ScoreResult | None:
        """`engines.base.Engine.score` for this rank's rows, whole groups. `reference`: adapters are switched off."""
        model = self.model
        base = model.module.disable_adapter() if reference and hasattr(model.module, "disable_adapter") else None
        head = model.whole_head() if nthr is not None else nullcontext()
        with base or nullcontext(), head, model.together():
            return None if batch is None else score_batch(model, batch, temperature, nthr, entropy)

    def _made(self, wrapped: Any, settings: WorkerSettings) -> None:
        self.settings = settings
        wrapped.module.eval()
        without_dropout(wrapped.module)
        self.model = WorkerModel(
            wrapped,
            settings.model,
            micro_batch_tokens=settings.micro_batch_tokens,
            packing=settings.packing,
            zero_stage=settings.zero_stage,
        )


class AgentReference(_Scoring, undecorated(ReferenceModelActor)):  # type: ignore[misc]
    """The frozen initial policy of a KL term."""

    def start(self, arguments: Any, settings: WorkerSettings, path: str) -> None:
        """Join the other ranks and load the model in the folder or of the hub id `path`."""
        cpu.check_device()
        with _fp32_allowed():
            self.init_model_from_pretrained(make_strategy(arguments, settings.timeout_s), path)
        self._made(self.model.model, settings)  # type: ignore[attr-defined]  # OpenRLHF's Actor until here


class AgentPolicy(_Scoring, undecorated(PolicyModelActor)):  # type: ignore[misc]
    """One rank of the policy."""

    def start(self, arguments: Any, settings: WorkerSettings, path: str, adapter: str | None, engines: list) -> int:
        """Join the other ranks, load `path` and a saved LoRA `adapter`, connect to vLLM. Number of parameters."""
        cpu.check_device()
        threads = offload_threads(len(os.sched_getaffinity(0)), settings.sharing)
        if threads is not None:
            torch.set_num_threads(threads)
        strategy = make_strategy(arguments, settings.timeout_s)
        with _fp32_allowed():
            self.init_model_from_pretrained(strategy, path, max_steps=1_000_000_000, vllm_engines=engines)
        self._made(self.actor.model, settings)
        self.actor_optim.check_grad_overflow = True
        if settings.zero_stage == 2:
            sum_in_fp32(self.actor_optim)
        if adapter is not None:
            load_weights(self.model.module, Path(adapter))
        return sum(getattr(p, "ds_numel", p.numel()) for p in self.model.module.parameters())

    # ------------------------------------------------------------------------------------------------------- updates

    def update(self, part: Update | None, lr: float) -> tuple[list[Metrics], dict[str, float]]:
        """One optimiser step; the sums behind the metrics of this rank's rows (`part`), and norm, lr, `nonfinite`."""
        model = self.model
        index = [] if part is None else micro_batches(part.batch.lengths(), model.micro_batch_tokens)
        passes = int(self.strategy.all_reduce(float(len(index)), "max"))
        model.module.train(self.settings.model.gradient_checkpointing)
        model.gradient.zero_()
        sums: list[Metrics] = []
        for i in range(passes):
            model.wrapped.set_gradient_accumulation_boundary(is_boundary=i == passes - 1)
            if part is not None and i < len(index):
                loss, metrics = loss_of_rows(model, part, index[i])
                sums.append({name: _on_cpu(metric) for name, metric in metrics.items()})
            else:
                loss = model.nothing()
            # DeepSpeed takes the mean over ranks; the divisor has counted all of them
            self.strategy.backward(loss * dist.get_world_size(), self.actor, self.actor_optim)
        model.module.eval()
        if not self.strategy.all_reduce(float(model.gradient), "max"):  # see LocalEngine.optimizer_step
            self._drop_gradients()
            return sums, {"grad_norm": 0.0, "lr": lr}
        return sums, self._step(lr)

    def _drop_gradients(self) -> None:
        """Weights and optimiser state stay as they are: what DeepSpeed does where a gradient is not finite."""
        optimizer = self.actor_optim
        if self.settings.zero_stage == 3:
            optimizer._overflow_clean_up(optimizer.loss_scale)
            return
        optimizer.check_overflow = lambda *args, **kwargs: setattr(optimizer, "overflow", True)
        try:
            self.strategy.optimizer_step(optimizer, self.actor, None)
        finally:
            del optimizer.check_overflow  # the class has its own

    def _step(self, lr: float) -> dict[str, float]:
        """Clip, check, step. A gradient that is not finite on any rank skips the step on all."""
        optimizer = self.actor_optim
        for group in optimizer.param_groups:
            group["lr"] = lr
        if self.settings.zero_stage == 3:  # DeepSpeed looks only in fp16 there
            optimizer.check_overflow()
            if optimizer.overflow:
                optimizer._overflow_clean_up(optimizer.loss_scale)
                return {"grad_norm": float("nan"), "lr": lr, "nonfinite": 1.0}
        self.strategy.optimizer_step(optimizer, self.actor, None)
        if optimizer.overflow:
            return {"grad_norm": float("nan"), "lr": lr, "nonfinite": 1.0}
        return {"grad_norm": float(self.strategy.get_grad_norm(self.actor)), "lr": lr}

    # --------------------------------------------------------------------------------------------- weights, to vLLM

    @torch.no_grad()
    def broadcast(self) -> Digest:
        """Current weights to all vLLM engines, bucket by bucket; rank 0 returns the digest of what vLLM should hold.

        With LoRA vLLM has the base model from disk, and the adapters are sent.
        """
        out: Digest = {}
        first = dist.get_rank() == 0
        if first and self.strategy.args.vllm.enable_prefix_caching:
            caches = [engine.reset_prefix_cache.remote() for engine in self.vllm_engines]
        torch.cuda.empty_cache()
        lora = self.settings.model.lora
        for bucket in buckets(self._named_weights()):
            with self._gathered([weight for _, weight in bucket]):  # once, for the digest and for sending
                if first:
                    add_bits(out, bucket)
                if lora is None:
                    self._send(bucket)
        if lora is not None:
            adapter = list(self._named_adapters())
            if first:
                add_bits(out, _as_vllm_keeps_it(adapter, lora), ADAPTER)
            self._send(adapter, {"rank": lora.rank, "alpha": lora.alpha})
        if first and self.strategy.args.vllm.enable_prefix_caching:
            ray.get(caches)
        torch.cuda.empty_cache()
        dist.barrier()
        return out

    def _send(self, bucket: list[Named], lora: dict[str, Any] | None = None) -> None:
        """One bucket to all engines: from rank 0 by broadcast, or on shared GPUs from every rank by CUDA IPC."""
        first, shared = dist.get_rank() == 0, self.trainer.use_cuda_ipc
        if not (first or shared):
            return
        whole = flat(bucket)
        about = ([name for name, _ in bucket], whole.dtype, [shape(weight) for _, weight in bucket])
        handles = _ipc_handles(whole) if shared else None
        if first:
            sent = [engine.receive.remote(*about, handles, lora) for engine in self.vllm_engines]
            if not shared:
                stream = torch.cuda.current_stream()
                self.trainer._model_update_group.broadcast(whole, src=0, stream=stream)
            ray.get(sent)
        if shared:
            dist.barrier()  # `whole` is read by other processes until here

    def connect(self, engines: list) -> None:
        """A new group for weights, after an engine was started again."""
        self.vllm_engines = self.trainer.vllm_engines = engines
        if dist.get_rank() == 0 and not self.trainer.use_cuda_ipc:
            self.trainer._init_vllm_sync_group(self.strategy.args.vllm.sync_backend)
        dist.barrier()

    @torch.no_grad()
    def probe(self, texts: list[list[int]], last: list[int]) -> list[list[float]]:
        """log π at temperature 1 of the `last` tokens of each text."""
        device, longest = self.model.device, max(map(len, texts))
        ids = torch.zeros(len(texts), longest, dtype=torch.int64)
        attention = torch.zeros(len(texts), longest, dtype=torch.bool)
        action = torch.zeros(len(texts), longest - 1, dtype=torch.bool)
        for row, (text, n) in enumerate(zip(texts, last, strict=True)):
            ids[row, : len(text)] = torch.tensor(text)
            attention[row, : len(text)] = True
            action[row, len(text) - 1 - n : len(text) - 1] = True
        nothing = torch.zeros(0)
        batch = TokenBatch(
            input_ids=ids, attention_mask=attention, action_mask=action, turn_ids=nothing, answer_mask=nothing,
            rollout_logprobs=nothing, rewards=nothing, correct=nothing, group_ids=nothing,
        ).to(device)  # fmt: skip
        logprobs = self.model.logprobs(batch)[0].cpu()
        return [row[mask].tolist() for row, mask in zip(logprobs, action, strict=True)]

    def _named_weights(self) -> Iterator[Named]:
        """Names and parameters of the plain model, as vLLM names them; without adapters."""
        for name, parameter in self.model.module.named_parameters():
            if "lora_" not in name:
                yield name.replace(".base_layer", "").removeprefix("base_model.model."), parameter

    def _named_adapters(self) -> Iterator[Named]:
        """Names and parameters of the LoRA adapters, as peft saves them."""
        for name, parameter in self.model.module.named_parameters():
            if "lora_" in name:
                yield name.replace(".default.weight", ".weight"), parameter

    def _gathered(self, parameters: list[Tensor], modifier: int | None = None) -> Any:
        if self.settings.zero_stage != 3:
            return nullcontext()
        import deepspeed

        return deepspeed.zero.GatheredParameters(parameters, modifier_rank=modifier)

    # --------------------------------------------------------------------------------------------------- checkpoints

    def save_weights(self, folder: str) -> None:
        """The model in Hugging Face layout, or its adapters; written by rank 0."""
        self.strategy.save_model(self.actor, self.tokenizer, folder)
        adapter = Path(folder) / "adapter_model.bin"
        if adapter.exists():  # never left behind
            raise RuntimeError(f"OpenRLHF wrote a pickle, {adapter}")

    def save(self, folder: str) -> None:
        """Weights and this rank's optimiser state."""
        self.save_weights(str(Path(folder) / "model"))
        file = shard_file(Path(folder), dist.get_rank(), dist.get_world_size())
        save_shard(self.actor_optim, self._pieces(), file)
        dist.barrier()

    @torch.no_grad()
    def load(self, folder: str, weights: bool) -> None:
        """This rank's optimiser state, whoever saved it, and the weights unless the model was made from them."""
        if weights:
            self._load_weights(Path(folder) / "model")
        load_shards(self.actor_optim, self._pieces(), Path(folder))
        dist.barrier()

    def _load_weights(self, folder: Path) -> None:
        module = self.model.module
        if self.settings.zero_stage != 3 or is_adapter(folder):
            load_weights(module, folder)
            return
        from safetensors import safe_open

        files: dict[str, str] = {}
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(str(file), "pt") as f:
                files |= dict.fromkeys(f.keys(), str(file))
        for name, parameter in module.named_parameters():
            with self._gathered([parameter], modifier=0):
                if dist.get_rank() == 0:
                    with safe_open(files[name], "pt") as f:
                        parameter.copy_(f.get_tensor(name))

    def _pieces(self) -> list[Piece]:
        names = {id(parameter): name for name, parameter in self.model.module.named_parameters()}
        return pieces_of(self.actor_optim, names, dist.get_rank(), dist.get_world_size())

    # --------------------------------------------------------------------------------------------------- shared GPUs

    def offload(self) -> None:
        """Optimiser state to main memory while an engine samples on this GPU."""
        self.offload_states()

    def reload(self) -> None:
        """The inverse of `offload`."""
        self.reload_states()


def _as_vllm_keeps_it(adapter: list[Named], lora: LoraConfig) -> list[Named]:
    """vLLM multiplies B by alpha / rank once, in the adapter's own precision."""
    scale = lora.alpha / lora.rank
    return [(n, w if scale == 1 or ".lora_A." in n else w.detach() * scale) for n, w in adapter]


def _ipc_handles(tensor: Tensor) -> dict[str, Any]:
    """GPU to the handle of the tensor that its rank holds, of all ranks."""
    from openrlhf.trainer.ray.utils import get_physical_gpu_id
    from torch.multiprocessing.reductions import reduce_tensor

    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, {get_physical_gpu_id(): reduce_tensor(tensor)})
    return {gpu: handle for one in every for gpu, handle in one.items()}


def _on_cpu(metric: Metric) -> Metric:
    return Metric(metric.total.detach().cpu(), None if metric.weight is None else metric.weight.detach().cpu())


@contextmanager
def _fp32_allowed() -> Iterator[None]:
    """OpenRLHF knows bf16 and fp16 alone; on the CPU tests compare with the local engine in fp32."""
    known = openrlhf_utils.convert_to_torch_dtype

    def convert(name: str) -> torch.dtype:
        return torch.float32 if name == "fp32" else known(name)

    openrlhf_utils.convert_to_torch_dtype = convert
    try:
        yield
    finally:
        openrlhf_utils.convert_to_torch_dtype = known

"""vLLM's own engine in this process: started quietly, given requests, stepped, given weights.

vLLM was made for a process of its own. Its start sets the seeds of torch, numpy and random, puts a library before those
that children load, and on a CPU replaces `torch.set_num_threads`: all of that is put back here. Its weights begin as
random numbers (no file is read); the first hand-over brings the trainer's.
"""

from __future__ import annotations

import copy
import gc
import os
import random
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from agentrl.errors import ModelError

#: what vLLM reads when it is imported or started
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
NOT_FOR_CHILDREN = ("LD_PRELOAD", "LD_LIBRARY_PATH", "LOCAL_WORLD_SIZE")


class Token(NamedTuple):
    """One sampled token of a request."""

    request: str
    token: int
    logprob: float  # nats, of the distribution sampled from


@dataclass(frozen=True)
class Settings:
    """How vLLM is started."""

    dtype: str
    positions: int
    sequences: int
    cache_bytes: int
    seed: int
    lora_rank: int | None = None  # what it keeps room for
    sleep: bool = False
    prefix_caching: bool = True
    enforce_eager: bool = False
    memory_share: float = 0.5  # of a GPU, for its own check at the start
    trust_remote_code: bool = False


class Core:
    """See the module docstring."""

    def __init__(self, model: Any, settings: Settings) -> None:
        """`model` is the trainer's, for its config. ModelError where vLLM refuses it."""
        self.settings = settings
        self.engine: Any = None
        self.model: Any = None
        self._adapter: int = 0
        self._lora: Any = None
        with tempfile.TemporaryDirectory(prefix="agentrl-vllm-") as folder:
            _write_config(model, Path(folder))
            try:
                with undisturbed():
                    self.engine = _start(folder, settings, cpu=not torch.cuda.is_available())
                    self._try_one_token()
            except Exception as error:
                self.close()
                raise ModelError(
                    f"rollout.sampler is vllm, and vLLM {_version()} refuses this model "
                    f"({type(model).__name__}, {settings.dtype}): {_first_line(error)}; set rollout.sampler to torch"
                ) from error
        self.model = self.engine.model_executor.driver_worker.model_runner.model

    def _try_one_token(self) -> None:
        """Some shapes are refused only when they are computed (heads that an attention kernel does not take)."""
        self.add("start", [1, 1], 1, 1.0, 0)
        while not self.step():
            continue
        self.engine.reset_prefix_cache()

    # ------------------------------------------------------------------------------------------------------ sampling

    def add(self, request: str, ids: list[int], max_tokens: int, temperature: float, seed: int) -> None:
        """A turn to be continued by at most `max_tokens`; who ends it before, aborts it."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        parameters = SamplingParams(
            temperature=temperature,
            max_tokens=max_tokens,
            seed=seed,
            logprobs=0,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        self.engine.add_request(request, {"prompt_token_ids": ids}, parameters, lora_request=self._lora)

    def step(self) -> list[Token]:
        """One round: a token of every request that is being decoded."""
        out = []
        for found in self.engine.step():
            for done in found.outputs:
                out += [
                    Token(found.request_id, token, entry[token].logprob)
                    for token, entry in zip(done.token_ids, done.logprobs or [])
                ]
        return out

    def abort(self, requests: list[str]) -> None:
        """Forget these; unknown ones are ignored."""
        if requests:
            self.engine.abort_request(requests)

    # ------------------------------------------------------------------------------------------------------- weights

    @torch.no_grad()
    def load(self, weights: Iterable[tuple[str, Tensor]]) -> list[str]:
        """Put weights in place, by their Hugging Face names; the names of vLLM's parameters that got none."""
        self.engine.reset_prefix_cache()
        loaded = {_plain(n) for n in self.model.load_weights(weights) or ()}
        return sorted({_plain(n) for n, _ in self.model.named_parameters()} - loaded)

    def load_adapter(self, folder: str) -> None:
        """Saved LoRA adapters in place of the last ones."""
        from vllm.lora.request import LoRARequest

        if self._lora is not None:
            self.engine.remove_lora(self._adapter)
        self._adapter += 1
        self._lora = LoRARequest(f"version-{self._adapter}", self._adapter, folder)
        self.engine.add_lora(self._lora)
        self.engine.reset_prefix_cache()

    def sleep(self) -> None:
        """Give the memory of weights and cache back; both are lost."""
        if self.settings.sleep:
            self.engine.sleep(level=2)

    def wake_up(self) -> None:
        """Take the memory again; weights must be loaded before anything is sampled."""
        if self.settings.sleep:
            torch.cuda.empty_cache()  # what the trainer's allocator keeps for its next pass
            self.engine.wake_up()

    def close(self) -> None:
        """Give everything back, so that another one may be started in this process."""
        if self.engine is not None:
            with suppress(Exception):  # of an engine that has failed
                self.engine.engine_core.shutdown()
        self.engine = self.model = None
        _leave()


def _start(folder: str, s: Settings, *, cpu: bool) -> Any:
    from vllm import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    extra: dict[str, Any] = {}
    if cpu:
        unpacked_linears()
        # A prefill in parts with a seed ends vLLM there: a CPU generator has no offset to set back.
        extra = {"enable_chunked_prefill": False, "max_num_batched_tokens": max(2048, s.positions)}
    if s.lora_rank is not None:
        extra |= {"enable_lora": True, "max_lora_rank": s.lora_rank, "max_loras": 1}
    arguments = EngineArgs(
        model=folder,
        skip_tokenizer_init=True,
        load_format="dummy",
        generation_config="vllm",
        dtype=s.dtype,
        seed=s.seed,
        trust_remote_code=s.trust_remote_code,
        max_model_len=s.positions,
        max_num_seqs=s.sequences,
        kv_cache_memory_bytes=s.cache_bytes,
        gpu_memory_utilization=s.memory_share,
        enable_prefix_caching=s.prefix_caching,
        enforce_eager=s.enforce_eager or cpu,
        enable_sleep_mode=s.sleep,
        distributed_executor_backend="uni",
        logprobs_mode="processed_logprobs",  # of the distribution sampled from
        max_logprobs=1,
        disable_log_stats=True,
        **extra,
    )
    return LLMEngine.from_engine_args(arguments)


def unpacked_linears() -> None:
    """On a CPU vLLM packs linear weights; packed ones cannot be loaded again, and tied heads keep the old copy."""
    import vllm.model_executor.layers.utils as layers

    def plain(layer: Any, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    layers.dispatch_cpu_unquantized_gemm = plain


@contextmanager
def undisturbed() -> Iterator[None]:
    """What vLLM's start changes in the process that it is a guest of is put back; its own variables are set before."""
    for name, value in ENVIRONMENT.items():
        if name in ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_HOST_IP"):
            os.environ[name] = value
        else:
            os.environ.setdefault(name, value)
    if not torch.cuda.is_available():  # small functions of vLLM's would be compiled for seconds at the first step
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    variables = {name: os.environ.get(name) for name in NOT_FOR_CHILDREN}
    seeds = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_cards = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    threads, set_threads = torch.get_num_threads(), torch.set_num_threads
    precision, dtype = torch.get_float32_matmul_precision(), torch.get_default_dtype()
    try:
        yield
    finally:
        for name, before in variables.items():
            if before is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = before
        random.setstate(seeds[0])
        np.random.set_state(seeds[1])
        torch.set_rng_state(seeds[2])
        if on_cards:
            torch.cuda.set_rng_state_all(on_cards)
        torch.set_num_threads = set_threads
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        torch.set_default_dtype(dtype)


def _write_config(model: Any, folder: Path) -> None:
    """The model's config alone, as a Hugging Face folder."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = copy.deepcopy(base.config)
    config.architectures = [type(base).__name__]
    config.save_pretrained(folder)


def _leave() -> None:
    """vLLM's process groups, so that another engine may be started."""
    with suppress(Exception):
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        cleanup_dist_env_and_memory()
    gc.collect()


def _plain(name: str) -> str:
    """A parameter's name without the layer that LoRA has put around it."""
    return name.replace(".base_layer.", ".")


def _version() -> str:
    from agentrl.engines.vllm.preflight import version

    return version() or "?"


def _first_line(error: Exception) -> str:
    """The sentence that says why; pydantic puts a count of errors and the field's name before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.endswith("VllmConfig") and "validation error" not in line]
    text = next((line for line in told if " " in line), "") or (lines[0] if lines else "")
    return f"{type(error).__name__}: {text.partition(' [type=')[0]}"

"""The cluster engine's part of the configuration. No torch."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from agentrl.config.base import Part, PositiveInt, Share


class OpenRLHFConfig(Part):
    """The cluster engine (`engine: openrlhf`): OpenRLHF's workers on Ray, DeepSpeed for updates, vLLM for sampling.

    One worker is one GPU. `nodes` x `gpus_per_node` workers hold the policy; `engines` x `tensor_parallel` GPUs sample.
    """

    nodes: PositiveInt = Field(1, description="machines with policy workers")
    gpus_per_node: PositiveInt = Field(1, description="policy workers on each of them")
    engines: PositiveInt = Field(1, description="vLLM engines")
    tensor_parallel: PositiveInt = Field(1, description="GPUs per vLLM engine")
    colocate: bool = Field(False, description="engines sleep on the policy's GPUs while it trains")
    zero_stage: Literal[2, 3] = Field(2, description="2 splits gradients and optimiser, 3 the weights too")
    adam_offload: bool = Field(False, description="optimiser state in main memory")
    attention: Literal["sdpa", "eager", "flash_attention_2"] = Field(
        "sdpa", description="of the trained model; flash_attention_2 needs the package flash-attn"
    )
    packing: bool = Field(False, description="no padding in forward passes: the rows of a micro-batch in one")
    prefix_caching: bool = Field(True, description="a conversation's next turn feeds only its new tokens")
    gpu_memory: Share = Field(0.85, description="share of a GPU's memory that a vLLM engine may take")
    enforce_eager: bool = Field(False, description="no CUDA graphs: starts sooner, samples slower")
    max_sequences: PositiveInt = Field(256, description="episodes that one vLLM engine decodes at once")
    asynchronous: bool = Field(False, description="sample the next step while this one trains; needs loss.tis_cap")
    staleness: int = Field(1, ge=1, le=8, description="asynchronous: versions that a sample may be behind")
    sync_tolerance: float | None = Field(
        None, gt=0, description="mean nats between vLLM and trainer on the probe; default 2.5 x the first hand-over's"
    )
    ray_address: str | None = Field(None, description="of a running cluster; default RAY_ADDRESS, else a local one")
    object_store_gb: float | None = Field(None, gt=0, description="of a local Ray; default a third of main memory")
    restarts: int = Field(3, ge=0, description="vLLM engines that may be started again in a run")
    check_versions: bool = Field(True, description="refuse versions that were not tested together")
    start_timeout_s: float = Field(1800.0, gt=0, description="for all workers to load the model")
    sample_timeout_s: float = Field(600.0, gt=0, description="for one turn")
    step_timeout_s: float = Field(3600.0, gt=0, description="for one pass over a batch, or a checkpoint")
    sync_timeout_s: float = Field(600.0, gt=0, description="for handing new weights to vLLM")
    warn_after_s: float = Field(60.0, gt=0, description="then the watchdog says who waits for whom")

    @property
    def workers(self) -> int:
        """Policy workers, one GPU each."""
        return self.nodes * self.gpus_per_node

    @property
    def gpus(self) -> int:
        """GPUs in all."""
        sampling = self.engines * self.tensor_parallel
        return max(self.workers, sampling) if self.colocate else self.workers + sampling

    @model_validator(mode="after")
    def _sane(self) -> Self:
        if self.colocate and self.engines * self.tensor_parallel != self.workers:
            raise ValueError(
                f"colocate shares every GPU, but engines x tensor_parallel = {self.engines} x {self.tensor_parallel} "
                f"and there are {self.workers} policy workers; set engines to "
                f"{max(1, self.workers // self.tensor_parallel)}"
            )
        if self.colocate and self.asynchronous:
            raise ValueError(
                "colocate and asynchronous exclude each other: an engine on a training GPU sleeps; switch one off"
            )
        if self.staleness > 1 and not self.asynchronous:
            raise ValueError(f"staleness is {self.staleness} but asynchronous is off; switch it on, or drop staleness")
        return self

"""The cluster engine's part of the configuration, and what a whole configuration must not ask of it. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from agentrl.config.base import Part, PositiveInt, Share

if TYPE_CHECKING:
    from agentrl.config import RunConfig


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
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    packing: bool = Field(False, description="no padding in forward passes: the rows of a micro-batch in one")
    prefix_caching: bool = Field(True, description="a conversation's next turn feeds only its new tokens")
    gpu_memory: Share = Field(0.85, description="share of a GPU's memory that a vLLM engine may take")
    enforce_eager: bool = Field(False, description="no CUDA graphs: starts sooner, samples slower")
    max_sequences: PositiveInt = Field(256, description="episodes that one vLLM engine decodes at once")
    asynchronous: bool = Field(False, description="sample the next step while this one trains; needs loss.tis_cap")
    staleness: int = Field(1, ge=1, le=8, description="asynchronous: versions that a sample may be behind")
    sync_tolerance: float | None = Field(
        None, gt=0, description="nats between vLLM and trainer on the probe; default 0.2 in bfloat16, 0.01 in float32"
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


def cluster_problems(run: RunConfig) -> list[str]:
    """What the cluster engine cannot do, each with a value that would work."""
    c, out = run.openrlhf, []
    responses = run.rollout.prompts_per_step * run.rollout.group_size
    rows = responses // run.train.mini_batches
    if rows < c.workers:
        out.append(
            f"a mini-batch has {rows} responses ({run.rollout.prompts_per_step} x {run.rollout.group_size} in "
            f"{run.train.mini_batches} mini-batches) but openrlhf has {c.workers} policy workers: set "
            f"train.mini_batches to {max(1, responses // c.workers)} or less"
        )
    if run.rollout.prompts_per_step < c.workers and run.algorithm.nthr.enabled:
        out.append(
            f"NTHR scores whole groups and rollout.prompts_per_step = {run.rollout.prompts_per_step} leaves some "
            f"of the {c.workers} policy workers without one: set rollout.prompts_per_step to {c.workers} or more"
        )
    if run.model.lora is not None and c.zero_stage == 3:
        out.append("model.lora with openrlhf.zero_stage 3 is not supported: set openrlhf.zero_stage to 2")
    if c.adam_offload and c.colocate:
        out.append("openrlhf.adam_offload is of no use with openrlhf.colocate, which offloads all: set it to false")
    if c.asynchronous and run.algorithm.loss.tis_cap is None:
        out.append(
            "openrlhf.asynchronous trains on samples of older weights, which truncated importance weights correct: "
            "set algorithm.loss.tis_cap to 2.0"
        )
    if c.asynchronous and run.guard.enabled and run.guard.on_critical == "rollback":
        out.append(
            "guard.on_critical rollback would go back behind samples that are already in flight: "
            "set guard.on_critical to stop, or openrlhf.asynchronous to false"
        )
    return out

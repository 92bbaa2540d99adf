"""The part of the configuration of vLLM as the sampler of the one-process engine. No torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from agentrl.config.base import Part, PositiveInt


class VLLMConfig(Part):
    """vLLM beside the trainer, in one process on one card (`rollout.sampler: vllm`)."""

    kv_cache_gb: float | None = Field(
        None, gt=0, description="fixed key/value memory; null: room for every episode in flight"
    )
    max_sequences: PositiveInt = Field(256, description="episodes decoded at once; further ones wait")
    sleep: Literal["auto", "on", "off"] = Field(
        "auto", description="give weights and cache back while the model trains (CUDA); auto: where memory is short"
    )
    prefix_caching: bool = Field(True, description="a conversation's next turn feeds only its new tokens")
    enforce_eager: bool = Field(False, description="no CUDA graphs: starts sooner, samples slower")
    sync_tolerance: float | None = Field(
        None, gt=0, description="mean nats between vLLM and trainer; null: 2.5 times that of the run's first hand-over"
    )
    check_versions: bool = Field(True, description="refuse versions that were not tested")

"""The cluster engine, before there is one (`engines.kind.EngineKind`). Neither torch nor Ray until it is built."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from agentrl.config import RunConfig
from agentrl.engines.kind import INITIAL, Estimate, Parts, Shape, Table
from agentrl.engines.openrlhf.memory import memory_rows
from agentrl.engines.openrlhf.placement import LORA_RANKS, batch_rows, placement_rows

if TYPE_CHECKING:
    from agentrl.engines.openrlhf.engine import OpenRLHFEngine


class OpenRLHFKind:
    """See `engines.kind.EngineKind`."""

    warms_up_with: str | None = "local"  # a cluster starts from files

    def rules(self, config: RunConfig) -> Iterator[str]:
        """What the cluster engine cannot do."""
        c = config.openrlhf
        responses = config.rollout.prompts_per_step * config.rollout.group_size
        rows = responses // config.train.mini_batches
        if rows < c.workers:
            yield (
                f"a mini-batch has {rows} responses ({config.rollout.prompts_per_step} x {config.rollout.group_size} "
                f"in {config.train.mini_batches} mini-batches) but openrlhf has {c.workers} policy workers: set "
                f"train.mini_batches to {max(1, responses // c.workers)} or less"
            )
        if config.rollout.prompts_per_step < c.workers and config.algorithm.nthr.enabled:
            yield (
                f"NTHR scores whole groups and rollout.prompts_per_step = {config.rollout.prompts_per_step} leaves "
                f"some of the {c.workers} policy workers without one: set rollout.prompts_per_step to {c.workers} or "
                "more"
            )
        if config.model.lora is not None and c.zero_stage == 3:
            yield "model.lora with openrlhf.zero_stage 3 is not supported: set openrlhf.zero_stage to 2"
        if config.model.lora is not None and config.model.lora.rank > LORA_RANKS[-1]:
            yield (
                f"model.lora.rank = {config.model.lora.rank}, and vLLM takes adapters up to rank {LORA_RANKS[-1]}: set "
                f"it to {LORA_RANKS[-1]} or less"
            )
        if c.adam_offload and c.zero_stage == 2 and config.model.dtype == "bfloat16":
            yield (
                "openrlhf.adam_offload with zero_stage 2 adds up micro-batches in bfloat16 (DeepSpeed 0.19): set "
                "openrlhf.zero_stage to 3, or adam_offload to false"
            )
        if c.adam_offload and c.colocate:
            yield "openrlhf.adam_offload is of no use with openrlhf.colocate, which offloads all: set it to false"
        if c.asynchronous and config.algorithm.loss.tis_cap is None:
            yield (
                "openrlhf.asynchronous trains on samples of older weights, which truncated importance weights correct: "
                "set algorithm.loss.tis_cap to 2.0"
            )
        if c.asynchronous and config.guard.enabled and config.guard.on_critical == "rollback":
            yield (
                "guard.on_critical rollback would go back behind samples that are already in flight: "
                "set guard.on_critical to stop, or openrlhf.asynchronous to false"
            )

    def problems(self, config: RunConfig) -> list[str]:
        """Packages, GPUs, the cluster's address, its object store: what does not depend on the model."""
        from agentrl.engines.openrlhf import preflight

        return preflight.early(config)

    def placement(self, config: RunConfig) -> list[Table]:
        """GPUs and the processes on them; what a step is cut into."""
        return [placement_rows(config), batch_rows(config)]

    def estimate(self, config: RunConfig, shape: Shape) -> Estimate:
        """Memory per GPU."""
        return Estimate(memory_rows(config, shape))

    def build(self, parts: Parts) -> OpenRLHFEngine:
        """Starts the workers."""
        from agentrl.engines.openrlhf.engine import OpenRLHFEngine
        from agentrl.engines.shared.loading import BUILTIN, load_model

        config, folder = parts.config, (parts.run_dir / INITIAL).absolute()
        if config.model.path == BUILTIN and not folder.is_dir():
            plain = config.model.model_copy(update={"lora": None})
            load_model(plain, parts.tokenizer, config.seed).save_pretrained(folder)
            parts.tokenizer.save_pretrained(folder)
        initial = str(folder) if folder.is_dir() else config.model.path
        own = parts.adapter is None and parts.model.path != BUILTIN
        return OpenRLHFEngine(
            config,
            parts.tokenizer,
            model_path=parts.model.path if own else initial,
            adapter=parts.adapter,
            reference_path=initial,
            total_steps=parts.total_steps,
            say=parts.say,
            turn_ends=parts.turn_ends,
        )


ENGINE = OpenRLHFKind()

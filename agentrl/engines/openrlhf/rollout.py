"""The vLLM actor: OpenRLHF's `RolloutRayActor`, asked for one turn at a time with token ids in and out."""

from __future__ import annotations

from typing import Any

from agentrl.engines.openrlhf import cpu

cpu.before_import()
from openrlhf.trainer.ray.vllm_engine import RolloutRayActor  # noqa: E402
from vllm import SamplingParams  # noqa: E402

cpu.after_import()

from agentrl.engines.openrlhf.arguments import undecorated  # noqa: E402
from agentrl.engines.openrlhf.sync import Digest  # noqa: E402

Turn = tuple[list[int], list[float], bool]  # ids, their log-probabilities, whether a stop string or token ended it


class AgentRollout(undecorated(RolloutRayActor)):  # type: ignore[misc]
    """One vLLM engine."""

    async def turn(self, ids: list[int], parameters: dict[str, Any]) -> Turn:
        """Continue `ids`. Every call has sampling parameters of its own, which nobody else changes."""
        out = await self.generate(ids, SamplingParams(**parameters, logprobs=0))
        done = out.outputs[0]
        chosen = [entry[token].logprob for token, entry in zip(done.token_ids, done.logprobs)]
        return list(done.token_ids), chosen, done.finish_reason == "stop"

    async def weight_digest(self) -> list[Digest]:
        """Of every tensor-parallel rank."""
        return await self.llm.collective_rpc("weight_digest")

    async def ready(self) -> str:
        """Answers once the model is loaded: vLLM's version."""
        import vllm

        return vllm.__version__

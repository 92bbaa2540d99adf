"""The vLLM actor: OpenRLHF's `RolloutRayActor`, asked for one turn at a time with token ids in and out.

vLLM computes in processes of its own below the actor's. They live and die together: an actor whose engine has died
ends, so that callers see a dead actor and nothing else, and an actor that is killed takes its engine, and the GPU
memory it holds, with it.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from typing import Any

import psutil

from agentrl.engines.openrlhf import cpu

cpu.before_import()
from openrlhf.trainer.ray.vllm_engine import RolloutRayActor  # noqa: E402
from vllm import SamplingParams  # noqa: E402
from vllm.inputs import TokensPrompt  # noqa: E402
from vllm.lora.request import LoRARequest  # noqa: E402
from vllm.sampling_params import RequestOutputKind  # noqa: E402
from vllm.utils import random_uuid  # noqa: E402
from vllm.v1.engine.exceptions import EngineDeadError  # noqa: E402

cpu.after_import()

from agentrl.engines.openrlhf.arguments import undecorated  # noqa: E402
from agentrl.engines.openrlhf.sync import ADAPTER_ID, Shard  # noqa: E402

Turn = tuple[list[int], list[float], bool]  # ids, their log-probabilities, whether a stop string or token ended it
LOOK_S = 0.5  # between looks at the engine
REAPER = 'cat >/dev/null; exec kill -9 "$@" 2>/dev/null'  # its input ends when the actor does, however it does


class AgentRollout(undecorated(RolloutRayActor)):  # type: ignore[misc]
    """One vLLM engine."""

    async def __init__(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[misc]  # Ray awaits it
        cpu.check_device()
        await super().__init__(*args, **kwargs)
        # `vllm_worker` has put it there: the path is never read
        self._adapter = LoRARequest("policy", ADAPTER_ID, "memory") if kwargs.get("enable_lora") else None
        below = [str(p.pid) for p in psutil.Process().children(recursive=True)]
        self._reaper = subprocess.Popen(
            ["/bin/sh", "-c", REAPER, "sh", *below], stdin=subprocess.PIPE, start_new_session=True
        )
        self._watching = asyncio.create_task(self._end_with_engine())

    async def turn(self, ids: list[int], parameters: dict[str, Any]) -> Turn:
        """Continue `ids`. Every call has sampling parameters of its own, which nobody else changes."""
        asked = SamplingParams(**parameters, logprobs=0, output_kind=RequestOutputKind.FINAL_ONLY)
        out = None
        try:
            async for out in self.llm.generate(  # noqa: B007  # the last one is all that comes
                TokensPrompt(prompt_token_ids=ids), asked, request_id=random_uuid(), lora_request=self._adapter
            ):
                pass
        except EngineDeadError:
            os._exit(1)
        assert out is not None
        done = out.outputs[0]
        chosen = [entry[token].logprob for token, entry in zip(done.token_ids, done.logprobs)]
        return list(done.token_ids), chosen, done.finish_reason == "stop"

    async def receive(self, *arguments: Any) -> None:
        """See `AgentVLLMWorker.receive`."""
        await self.llm.collective_rpc("receive", args=arguments)

    async def weight_digest(self) -> list[Shard]:
        """Of every tensor-parallel rank."""
        return await self.llm.collective_rpc("weight_digest")

    async def ready(self) -> str:
        """Answers once the model is loaded, and as long as the engine lives: vLLM's version."""
        import vllm

        if self.llm.errored:
            os._exit(1)

        return vllm.__version__

    async def _end_with_engine(self) -> None:
        while not self.llm.errored:
            await asyncio.sleep(LOOK_S)
        os._exit(1)

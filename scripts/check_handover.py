"""Hand-overs of a real model to vLLM: how far apart the two sides are, false alarms, and stale weights.

    python scripts/check_handover.py MODEL [--times 50] [--dtype bfloat16] [--set KEY=VALUE ...]

Starts the cluster engine as a run does, hands the same weights over again and again with probes of other seeds, then
puts 2 % of noise on vLLM's weights and looks whether the digest and the probe see it.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from agentrl.config.files import load_config
from agentrl.engines.openrlhf.sync import SyncError, stale_groups
from agentrl.train.build import build_job


def spoil(actor: Any, share: float) -> None:
    """Runs in vLLM's actor, beside its event loop: every weight is multiplied by 1 + share x a normal number."""

    def noise(worker: Any) -> None:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in worker.model_runner.model.parameters():
                draw = torch.randn(weight.shape, generator=generator).to(weight.device)
                weight.mul_((1 + share * draw).to(weight.dtype))

    loop = actor.llm.output_handler.get_loop()
    asyncio.run_coroutine_threadsafe(actor.llm.collective_rpc(noise), loop).result(300)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        changes = [
            f"model.path={args.model}", "warm_start=null", f"model.dtype={args.dtype}", "openrlhf.gpus_per_node=1",
            f"log.runs_dir={folder}", "rollout.max_context=512", *args.set,
        ]  # fmt: skip
        config = load_config("cluster_tiny", changes).config
        engine = build_job(config, Path(folder), say=print).engine
        handover = engine.handover
        gaps, alarms = [handover.gap], 0
        print(f"baseline {handover.limit.baseline:.4f} nats, at most {handover.limit.nats:.4f}", flush=True)
        for n in range(1, args.times):
            try:
                engine.sync()
            except SyncError as error:
                alarms += 1
                print(f"false alarm: {error}", flush=True)
            gaps.append(handover.gap)
            print(f"hand-over {n + 1}: {handover.gap:.4f}", flush=True)
        spread = f"mean {statistics.mean(gaps):.4f}, largest {max(gaps):.4f}"
        print(f"{len(gaps)} hand-overs: {spread}, false alarms {alarms}", flush=True)
        import ray

        ray.get(engine.cluster.engines[0].__ray_call__.remote(spoil, 0.02), timeout=600)
        stale = stale_groups(handover._sent, handover._engines("weight_digest")[0])
        print(f"2 % of noise: the digest names {len(stale)} of {len(handover._sent)} groups")
        print(f"2 % of noise: probe {max(handover._probe(seed=10**6)):.4f} nats, at most {handover.limit.nats:.4f}")
        engine.close()


if __name__ == "__main__":
    main()

"""A model in one process with vLLM as its sampler: two training steps, then many hand-overs, then stale weights.

python scripts/check_vllm_sampler.py MODEL [--dtype bfloat16] [--times 50]

Prints the mean gap between vLLM and trainer at every tenth hand-over, false alarms, and whether weights with 2 % of
noise that were not handed over are caught. Exit code 1 for a false alarm or stale weights that pass.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from agentrl.batch import pack
from agentrl.config import LossConfig, RunConfig
from agentrl.errors import SamplerError
from agentrl.train.build import build_job
from agentrl.types import Sample, Trajectory, Turn

QUESTION = "What is the capital of France? Answer:"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--times", type=int, default=50)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        engine = build_job(_config(args.model, args.dtype), Path(folder)).engine
        try:
            return _check(engine, args.times)
        finally:
            engine.close()


def _config(model: str, dtype: str) -> RunConfig:
    return RunConfig.model_validate(
        {
            "model": {"path": model, "dtype": dtype},
            "world": {"people": 24, "companies": 10, "cities": 8, "regions": 6, "hops": [1]},
            "rollout": {"sampler": "vllm", "prompts_per_step": 2, "group_size": 4},
            "optim": {"lr": 1e-5},
            "train": {"mini_batches": 1, "micro_batch_tokens": 256},
            "eval": {"questions": 0},
        }
    )


def _check(engine: Any, times: int) -> int:
    ids = engine.tokenizer.encode(QUESTION, add_special_tokens=False)
    gaps: list[float] = []
    for k in range(times):
        try:
            samples = _ask(engine, ids, 4 if k < 2 else 1)
        except SamplerError as error:
            print(f"false alarm at hand-over {k + 1}: {error}")
            return 1
        gaps.append(engine.sampler.gap)
        if k < 2:
            _train(engine, ids, samples, k)
        else:
            _noise(engine, 1e-3, k)
        engine.sync()
        if k % 10 == 9:
            print(f"hand-over {k + 1}: {gaps[-1]:.4f} nats, {engine.sampler.hand_over_s:.2f} s", flush=True)
    limit = engine.sampler.limit.nats
    mean = sum(gaps) / len(gaps)
    measured = f"first {gaps[0]:.4f}, mean {mean:.4f}, max {max(gaps):.4f}, limit {limit:.4f}"
    print(f"{times} hand-overs, no false alarm: {measured}", flush=True)

    _ask(engine, ids, 1)
    engine.sampler.hand_over = lambda: None
    _noise(engine, 0.02, 99)
    engine.sync()
    try:
        _ask(engine, ids, 1)
    except SamplerError as error:
        print(f"2 % of noise that was not handed over: {error}")
        return 0
    print(f"2 % of noise that was not handed over has passed, with {engine.sampler.gap:.4f} nats")
    return 1


def _ask(engine: Any, ids: list[int], n: int) -> list[Sample]:
    async def go() -> list[Sample]:
        return await asyncio.gather(*[engine.sample(ids, max_tokens=16, session=k) for k in range(n)])

    return asyncio.run(go())


def _train(engine: Any, ids: list[int], samples: list[Sample], step: int) -> None:
    episodes = [
        Trajectory(
            str(k), "0", "x", 0, (Turn(ids, s.ids, s.logprobs, s.text, "", float(k % 2), s.stop),),
            float(k % 2), k % 2 == 1, True, False,
        )
        for k, s in enumerate(samples)
    ]  # fmt: skip
    batch = pack(episodes, engine.tokenizer.pad_token_id)
    begun = time.perf_counter()
    old = engine.score(batch).logprobs
    gap = float((old - batch.rollout_logprobs)[batch.action_mask].abs().mean())
    signs = torch.tensor([-1.0, 1.0] * (len(samples) // 2))[:, None]
    out = engine.update(batch, signs * batch.action_mask, old, loss=LossConfig())
    seconds = time.perf_counter() - begun
    print(
        f"step {step}: sampler to trainer {gap:.4f} nats, gradient norm {out['grad_norm']:.3g}, {seconds:.1f} s",
        flush=True,
    )


@torch.no_grad()
def _noise(engine: Any, share: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in engine.model.parameters():
        p.add_(torch.randn(p.shape, generator=generator).to(p.device) * share * p.std())
    if engine.fast is not None:
        engine.fast.refresh()


if __name__ == "__main__":
    sys.exit(main())

"""A policy worker inside the test's own process: one rank, gloo, no Ray and no vLLM. Starts in a tenth of a second."""

import os
import socket

from agentrl.algorithms import LossNormalizer, MetricSums
from agentrl.engines.openrlhf import cpu

cpu.before_import()

from agentrl.engines.openrlhf.arguments import openrlhf_arguments  # noqa: E402
from agentrl.engines.openrlhf.policy import AgentPolicy, WorkerSettings  # noqa: E402
from agentrl.engines.shared.updates import Update  # noqa: E402


def policy(config, path, adapter=None):
    """A worker that has loaded `path`."""
    import torch

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    port = int(os.environ.get("MASTER_PORT", port)) if torch.distributed.is_initialized() else port
    worker = AgentPolicy(1, 0, "127.0.0.1", port)
    c = config.openrlhf
    settings = WorkerSettings(
        model=config.model,
        micro_batch_tokens=config.train.micro_batch_tokens,
        packing=c.packing,
        zero_stage=c.zero_stage,
        timeout_s=60.0,
    )
    worker.start(openrlhf_arguments(config, cpu=True), settings, str(path), adapter, None)
    return worker


def update(worker, batch, advantages, old, *, loss, lr, reference=None, temperature=1.0):
    """One optimiser step, as the engine asks for it; the metrics."""
    normalizer = LossNormalizer.of(batch.action_mask, correct=batch.correct)
    part = Update(batch, advantages, old, reference, loss, normalizer, temperature)
    sums, stepped = worker.update(part, lr)
    totals = MetricSums()
    for metrics in sums:
        totals.add(metrics)
    return {**totals.result(), **stepped}


def weights(worker):
    """Name to full fp32 tensor of the model as vLLM would get it."""
    out = {}
    for name, weight in worker._named_weights():
        with worker._gathered([weight]):
            out[name] = weight.detach().clone()
    return out

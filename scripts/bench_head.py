"""Memory and time of log π of N tokens, with gradients of hidden states and head, by four ways.

blocks    agentrl's: blocks of the vocabulary, computed again in the backward pass (`agentrl.algorithms.logprobs`)
chunks    rows in chunks of 64M logits, each under torch's checkpoint
slices    all logits (N, V) at once, softmax in slices of rows under torch's checkpoint
plain     all logits, log_softmax, gather

Each way runs in a process of its own. Memory is the peak of the process (on CUDA of the allocator) above that with
hidden states, weight and its gradient alone; seconds are of the CPU (on CUDA of the clock), the median of the rounds.

usage: python scripts/bench_head.py [--device cpu] [--rows 512] [--vocabulary 151936] [--widths 896 3584] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

WAYS = ("blocks", "chunks", "slices", "plain")
CHUNK = 64 * 1024 * 1024


def way_of(name: str) -> Callable[[Any, Any, Any], Any]:
    """hidden (N, d), weight (V, d), ids (N,) to log π (N,)."""
    import torch
    from torch.nn import functional as F
    from torch.utils.checkpoint import checkpoint

    from agentrl.algorithms.head import Head
    from agentrl.algorithms.logprobs import token_logprobs

    def of_logits(z: Any, y: Any) -> Any:
        return -F.cross_entropy(z.float(), y, reduction="none")

    def blocks(h: Any, w: Any, y: Any) -> Any:
        return token_logprobs(Head(w), h, y)[0]

    def chunks(h: Any, w: Any, y: Any) -> Any:
        n = max(1, CHUNK // len(w))
        return torch.cat(
            [
                checkpoint(lambda a, b: of_logits(F.linear(a, w), b), h[i : i + n], y[i : i + n], use_reentrant=False)
                for i in range(0, len(h), n)
            ]
        )

    def slices(h: Any, w: Any, y: Any) -> Any:
        n, z = max(1, CHUNK // len(w)), F.linear(h, w)
        return torch.cat(
            [checkpoint(of_logits, z[i : i + n], y[i : i + n], use_reentrant=False) for i in range(0, len(h), n)]
        )

    def plain(h: Any, w: Any, y: Any) -> Any:
        return F.linear(h, w).float().log_softmax(-1).gather(-1, y[:, None])[:, 0]

    return {"blocks": blocks, "chunks": chunks, "slices": slices, "plain": plain}[name]


def measure(args: argparse.Namespace) -> dict[str, float]:
    """One way, in this process: bytes above the start, and seconds of each round."""
    import torch

    torch.manual_seed(0)
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    h = torch.randn(args.rows, args.width, device=device, dtype=dtype).requires_grad_()
    w = (torch.randn(args.vocabulary, args.width, device=device, dtype=dtype) * args.width**-0.5).requires_grad_()
    y = torch.randint(0, args.vocabulary, (args.rows,), device=device)
    of, cuda = way_of(args.way), device.type == "cuda"
    of(h[:2], w, y[:2]).sum().backward()  # the gradients exist, and libraries are loaded
    w.grad.zero_()
    before = torch.cuda.memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds, checksum = [], 0.0
    for _ in range(args.rounds):
        if cuda:
            torch.cuda.synchronize()
        start = time.perf_counter() if cuda else time.process_time()
        out = of(h, w, y)
        out.backward(torch.linspace(-1, 1, args.rows, device=device))
        if cuda:
            torch.cuda.synchronize()
        seconds.append((time.perf_counter() if cuda else time.process_time()) - start)
        checksum = float(out.detach().double().mean())
        h.grad = None
        del out
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"bytes": peak - before, "seconds": statistics.median(seconds), "mean": checksum}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--widths", type=int, nargs="+", default=[896, 3584])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--width", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(measure(args)))
        return
    print(f"{args.rows} rows, vocabulary {args.vocabulary:,}, {args.dtype} on {args.device}, "
          f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'not set')}")  # fmt: skip
    for width in args.widths:
        for way in WAYS:
            done = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--way", way, "--width", str(width)],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode:
                print(f"d = {width:5}  {way:7} failed: {(done.stderr.strip().splitlines() or ['killed'])[-1]}")
                continue
            r = json.loads(done.stdout)
            mean = f"mean log π {r['mean']:.6f}"
            print(f"d = {width:5}  {way:7} {r['bytes'] / 1e6:8.0f} MB  {r['seconds']:7.2f} s  {mean}", flush=True)


if __name__ == "__main__":
    main()

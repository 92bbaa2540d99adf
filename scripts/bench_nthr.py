"""What NTHR costs beside the output head: time as a ratio to its forward and log-softmax, and extra memory.

One group of 8 responses, half of them correct, with random weights of a real head's shape. `whole` is the scoring pass
with NTHR (log π of the token and NTHR scores), `extra` is what NTHR adds to the pass without it, both divided by the
time of `F.linear(hidden, weight).float().log_softmax(-1)` in the same run. `memory` is the peak above weights, hidden
states and results; the plain head's own is shown for comparison. Repetitions are interleaved, the fastest counts.

A second table is of a training job: how often V* selects what exact selects, and the share of a training step that NTHR
takes, both in CPU time. Without a GPU only the smallest head is measured, since a larger one takes minutes on a CPU.

usage: python scripts/bench_nthr.py [--tokens 512] [--repeat 5] [--threads 2] [--device auto] [--json]
       python scripts/bench_nthr.py [--job search_tiny|none] [--steps 20] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "2000")

HEADS = {"0.5B": (896, 151_936), "1.5B": (1536, 151_936), "3B": (2048, 151_936)}  # of Qwen2.5: d, V
GOALS = {("vstar", "extra"): {"float32": 0.02, "bfloat16": 0.02}, ("exact", "whole"): {"float32": 1.9, "bfloat16": 1.4}}
RESPONSES = 8
AGREEMENT_GOAL = 0.995


class Case:
    """A head, one group's hidden states, and the passes to be timed."""

    def __init__(self, size: str, dtype: str, tokens: int, device: str) -> None:
        import torch
        from torch.nn import functional as F

        from agentrl.algorithms.head import Head
        from agentrl.algorithms.nthr import Layout

        d, V = HEADS[size]
        g = torch.Generator(device).manual_seed(0)
        kind = getattr(torch, dtype)
        self.weight = torch.randn(V, d, generator=g, device=device).mul_(0.1).to(kind)
        self.hidden = torch.randn(tokens, d, generator=g, device=device).to(kind)
        self.ids = torch.cat(  # drawn from the softmax, so that some tokens occur more than once
            [torch.multinomial(F.linear(h, self.weight).float().softmax(-1), 1, generator=g)[:, 0]
             for h in self.hidden.split(64)]
        )  # fmt: skip
        response = torch.arange(tokens, device=device) * RESPONSES // tokens
        correct = torch.arange(RESPONSES, device=device) < RESPONSES // 2
        self.layout = Layout(response, torch.zeros_like(correct, dtype=torch.int64), correct, 1)
        self.head, self.device = Head(self.weight), device
        self.passes: dict[str, Callable[[], Any]] = {
            "head": self.plain,
            "pass": lambda: self.scored(None),
            "exact": lambda: self.scored("exact"),
            "vstar": lambda: self.scored("vstar"),
            "vstar alone": self.vstar,
        }
        self.logsumexp = self.scored(None).logsumexp

    def plain(self) -> Any:
        """The output head's forward and log-softmax."""
        from torch.nn import functional as F

        z = F.linear(self.hidden, self.weight).float()
        return z.log_softmax(-1).gather(1, self.ids[:, None])

    def scored(self, method: str | None) -> Any:
        """The scoring pass, with NTHR by `method` or without."""
        from agentrl.algorithms.head import head_pass
        from agentrl.algorithms.nthr import nthr_pass

        if method is None:
            return head_pass(self.head, self.hidden, self.ids)
        return nthr_pass(self.head, self.hidden, self.ids, self.layout, method=method)

    def vstar(self) -> Any:
        """What V* adds to the pass, by itself: a difference of two long times would be mostly noise."""
        import torch

        from agentrl.algorithms.head import column_scores

        right = int(self.layout.correct[self.layout.response].sum())
        columns = torch.unique(self.ids)
        return column_scores(self.head, self.hidden, self.ids, self.logsumexp, right, columns=columns)

    def timed(self, name: str) -> float:
        """Seconds of one call."""
        import torch

        self.wait()
        start = time.perf_counter()
        with torch.no_grad():
            self.passes[name]()
        self.wait()
        return time.perf_counter() - start

    def wait(self) -> None:
        """For the device."""
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()

    def memory(self, name: str) -> float:
        """Peak MB during one call above what was held before; on a CPU only true in a fresh process."""
        import torch

        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.timed(name)
            return (torch.cuda.max_memory_allocated() - before) / 2**20
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak to what is held now
        before = status_mb("VmRSS")
        self.timed(name)
        return status_mb("VmHWM") - before


def measure(size: str, dtype: str, args: argparse.Namespace, device: str) -> dict[str, Any]:
    """One row per pass."""
    case = Case(size, dtype, args.tokens, device)
    for name in case.passes:
        case.timed(name)  # warm up
    best = dict.fromkeys(case.passes, float("inf"))
    for _ in range(args.repeat):
        for name in case.passes:
            best[name] = min(best[name], case.timed(name))
    extra = {"exact": best["exact"] - best["pass"], "vstar": best.pop("vstar alone")}
    rows = {}
    for name, seconds in best.items():
        memory = case.memory(name) if device == "cuda" else memory_in_child(name, size, dtype, args)
        rows[name] = {
            "ms": seconds * 1e3,
            "whole": seconds / best["head"],
            "extra": extra[name] / best["head"] if name in extra else None,
            "memory_mb": memory,
        }
    return {"size": size, "dtype": dtype, "tokens": args.tokens, "device": device, "rows": rows}


def memory_in_child(name: str, size: str, dtype: str, args: argparse.Namespace) -> float:
    """Peak memory of a pass in a process of its own, after a warm-up on a small head."""
    command = [sys.executable, __file__, "--child", name, size, dtype, "--tokens", str(args.tokens)]
    command += ["--threads", str(args.threads)]
    # Freed blocks go back to the system at once: what the set-up has left over would be used by the pass unseen.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    return float(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)


def child(args: argparse.Namespace) -> None:
    """Print the MB that one pass needs."""
    name, size, dtype = args.child
    HEADS["warm-up"] = (64, 4096)
    warm = Case("warm-up", dtype, 64, "cpu")
    warm.timed(name)  # libraries and thread pools are not NTHR's
    case = Case(size, dtype, args.tokens, "cpu")
    print(case.memory(name))


def status_mb(key: str) -> float:
    """A line of /proc/self/status in MB."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key + ":"))
    return int(line.split()[1]) / 1024


def on_job(args: argparse.Namespace) -> dict[str, Any]:
    """Agreement of V* with exact on the rollouts of a training run, and NTHR's share of a step.

    Every step is scored again without NTHR, by exact and by V*; that time is not counted as the step's.
    """
    from agentrl.config import NTHRConfig
    from agentrl.config.files import load_config
    from agentrl.engines.local.engine import LocalEngine
    from agentrl.train.start import train_run

    score = LocalEngine.score
    tokens: list[tuple[int, int]] = []  # per step: incorrect tokens of mixed groups, and those decided alike
    seconds: list[dict[str, float]] = []  # of CPU time

    def measured(self: LocalEngine, batch: Any, *, nthr: Any = None, **rest: Any) -> Any:
        if nthr is None:
            return score(self, batch, **rest)
        exact, vstar = (NTHRConfig(enabled=True, method=m) for m in ("exact", "vstar"))
        took = {"start": time.process_time()}
        results = {}
        for name, config in {"off": None, "exact": exact, "vstar": vstar}.items():
            best = float("inf")
            for _ in range(3):
                begin = time.process_time()
                results[name] = score(self, batch, nthr=config, **rest)
                best = min(best, time.process_time() - begin)
            took[name] = best
        mixed = [g in results["exact"].gwhes for g in batch.group_ids.tolist()]
        wrong = batch.action_mask & ~batch.correct[:, None] & batch.correct.new_tensor(mixed)[:, None]
        same = (results["exact"].nthr_selected == results["vstar"].nthr_selected) & wrong
        tokens.append((int(wrong.sum()), int(same.sum())))
        took["end"] = time.process_time()
        seconds.append(took)
        return score(self, batch, nthr=nthr, **rest)

    overrides = [f"train.steps={args.steps}", "eval.questions=0", "algorithm.nthr.enabled=true"]
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(args.job, [*overrides, f"log.runs_dir={folder}", f"seed={args.seed}"]).config
        LocalEngine.score = measured  # type: ignore[method-assign]
        try:
            train_run(config, quiet=True)
        finally:
            LocalEngine.score = score  # type: ignore[method-assign]
    step = sum(b["start"] - a["end"] for a, b in pairwise(seconds)) / max(1, len(seconds) - 1)
    of = {name: sum(t[name] for t in seconds) / len(seconds) for name in ("off", "exact", "vstar")}
    return {
        "job": args.job,
        "seed": args.seed,
        "steps": len(seconds),
        "incorrect_tokens": sum(n for n, _ in tokens),
        "agreement": sum(s for _, s in tokens) / max(1, sum(n for n, _ in tokens)),
        "step_cpu_s": step,
        "score_cpu_s": of["off"],
        "exact_share_of_step": (of["exact"] - of["off"]) / step,
        "vstar_share_of_step": (of["vstar"] - of["off"]) / step,
    }


def show(results: list[dict[str, Any]]) -> None:
    """The table."""
    for r in results:
        d, V = HEADS[r["size"]]
        print(f"\n{r['size']} head (d = {d}, V = {V}), {r['dtype']}, {r['tokens']} tokens, {r['device']}")
        print(f"{'':28}{'ms':>9}{'whole':>8}{'extra':>8}{'memory':>10}   goal")
        names = {"head": "forward + log-softmax", "pass": "log π, no NTHR", "exact": "NTHR exact", "vstar": "NTHR V*"}
        for name, row in r["rows"].items():
            extra = "" if row["extra"] is None else f"{row['extra']:.3f}"
            goal = ", ".join(
                f"{column} ≤ {limits[r['dtype']]:g} {'met' if row[column] <= limits[r['dtype']] else 'MISSED'}"
                for (method, column), limits in GOALS.items()
                if method == name
            )
            print(f"{names[name]:28}{row['ms']:9.1f}{row['whole']:8.3f}{extra:>8}{row['memory_mb']:7.0f} MB   {goal}")


def show_job(job: dict[str, Any]) -> None:
    """The second table."""

    def goal(met: bool, text: str) -> str:
        return f"{text} {'met' if met else 'MISSED'}"

    agreement, exact, vstar = job["agreement"], job["exact_share_of_step"], job["vstar_share_of_step"]
    print(f"\n{job['job']}, seed {job['seed']}, {job['steps']} steps, CPU time of a step {job['step_cpu_s']:.2f} s")
    print(f"{'NTHR exact, share of a step':40}{exact:8.2%}   {goal(exact <= 0.02, '≤ 2 %')}")
    print(f"{'NTHR V*, share of a step':40}{vstar:8.2%}   {goal(vstar <= 0.02, '≤ 2 %')}")
    alike = f"V* decides as exact, of {job['incorrect_tokens']:,} tokens"
    print(f"{alike:40}{agreement:8.2%}   {goal(agreement >= AGREEMENT_GOAL, '≥ 99.5 %')}")
    print("method auto: exact where V* agrees less than that, and where the vocabulary has up to 4,096 tokens")


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--job", default="search_tiny", help="a config's name or path, or none (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    import torch

    torch.set_num_threads(args.threads)
    if args.child:
        child(args)
        return
    cuda = torch.cuda.is_available() if args.device == "auto" else args.device == "cuda"
    results = [
        measure(size, dtype, args, "cuda" if cuda else "cpu")
        for size in (HEADS if cuda else ["0.5B"])
        for dtype in ("float32", "bfloat16")
    ]
    if not args.json:
        show(results)
        if not cuda:
            why = "--device cpu" if args.device == "cpu" else "torch sees no CUDA device"
            print(f"\n1.5B and 3B heads, and all on CUDA: skipped, {why}")
    job = on_job(args) if args.job != "none" else None
    if args.json:
        print(json.dumps({"heads": results, "job": job}))
    elif job is not None:
        show_job(job)


if __name__ == "__main__":
    main()

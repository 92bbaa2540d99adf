"""`lab spiral`: several methods from one checkpoint with the same seed under a harsh setting (LLDS Fig. 2-4, 7)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentrl.config import RunConfig
from agentrl.lab.methods import method_config
from agentrl.lab.plots import SERIES, figure, legend_above, save
from agentrl.runs.log import RunLog
from agentrl.runs.read import read_metrics
from agentrl.train.build import build_job
from agentrl.train.trainer import Trainer
from agentrl.types import StepRecord

PANELS = {
    "reward": "reward",
    "logprob_correct": "log π of correct responses, per token",
    "entropy": "entropy, nats",
    "grad_norm": "gradient norm",
}
#: Few responses per step and many updates on them, at the run's learning rate; put over its config, below `--set`.
HARSH = ("rollout.prompts_per_step=8", "train.mini_batches=4", "train.epochs=2", "train.delta_every=1")


LAST = 20  # steps whose mean reward is the final one


@dataclass
class SpiralResult:
    """Metrics per method and step."""

    rows: dict[str, list[dict[str, Any]]]

    def table(self) -> list[tuple[str, ...]]:
        """Rows of text: peak and final reward, whether it fell below half of its peak, and the share of Δ ≤ 0."""
        out: list[tuple[str, ...]] = [("method", "peak", f"last {LAST}", "mean", "half-fall at", "steps with Δ < 0")]
        for method, rows in self.rows.items():
            reward = [r["reward"] for r in rows if r.get("reward") is not None]
            smooth = [sum(reward[max(0, i - 4) : i + 1]) / min(i + 1, 5) for i in range(len(reward))]
            delta = [r["delta_correct"] for r in rows if r.get("delta_correct") is not None]
            share = f"{sum(d < 0 for d in delta) / len(delta):.2f}" if delta else "–"
            tail = reward[-LAST:]
            fall = half_fall(reward)
            out.append(
                (method, f"{max(smooth):.2f}", f"{sum(tail) / len(tail):.2f}", f"{sum(reward) / len(reward):.2f}",
                 "–" if fall is None else str(fall), share)
            )  # fmt: skip
        return out


def half_fall(reward: Sequence[float], window: int = 5, floor: float = 0.15) -> int | None:
    """First step at which the `window`-step mean reward is below half its running peak, once that is above `floor`,
    and stays so for the median of the ten steps that follow."""
    means = [sum(reward[i - window + 1 : i + 1]) / window for i in range(window - 1, len(reward))]
    peak = 0.0
    for i, value in enumerate(means):
        peak = max(peak, value)
        ahead = sorted(means[i : i + 10])
        if peak > floor and value < 0.5 * peak and ahead[len(ahead) // 2] < 0.5 * peak:
            return i + window - 1
    return None


def run_spiral(
    config: RunConfig,
    model_path: Path,
    out: Path,
    methods: Sequence[str],
    *,
    steps: int,
    say: Callable[[str], None] = print,
) -> SpiralResult:
    """Train every method for `steps` steps from the weights in `model_path` (fresh optimiser), one run each.

    `config` is the setting, `HARSH` included where it is wanted; the method alone differs between the runs.
    """
    rows = {}
    for method in methods:
        values = config.model_dump()
        values["algorithm"] = method_config(config.algorithm, method).model_dump()
        values["train"]["steps"] = steps
        values["eval"]["questions"] = 0
        values["warm_start"] = None
        values["log"].update(checkpoint_every=0, name=method, runs_dir=str(out))
        one = RunConfig.model_validate(values)
        with RunLog.create(out, method, one, force=True) as run:
            job = build_job(one, run.path, model_path=model_path, say=say)
            trainer = Trainer(job, run, progress=_progress(say, method))
            try:
                trainer.train()
            finally:
                trainer.close()
                job.engine.close()
        rows[method] = list(read_metrics(out / method))
    return SpiralResult(rows)


def _progress(say: Callable[[str], None], method: str) -> Callable[[StepRecord, int], None]:
    def show(record: StepRecord, steps: int) -> None:
        if record.step % 10 == 9:
            reward = record.metrics.get("reward", float("nan"))
            say(f"{method}: step {record.step + 1}/{steps}, reward {reward:.2f}")

    return show


def plot_spiral(result: SpiralResult, out: Path) -> list[Path]:
    """Four panels over steps, one line per method: raw values faint, their 5-step mean strong."""
    written = []
    for theme in ("light", "dark"):
        fig, axes, colors = figure(theme, 2, 2, size=(9.6, 5.4))
        for ax, (name, title) in zip(axes, PANELS.items()):
            for k, (method, rows) in enumerate(result.rows.items()):
                points = [(r["step"], r[name]) for r in rows if r.get(name) is not None]
                steps, values = [p[0] for p in points], [p[1] for p in points]
                mean = [sum(values[max(0, i - 4) : i + 1]) / min(i + 1, 5) for i in range(len(values))]
                ax.plot(steps, values, color=SERIES[theme][k % 9], lw=0.6, alpha=0.25)
                ax.plot(steps, mean, color=SERIES[theme][k % 9], lw=1.6, label=method)
            ax.set_title(title, fontsize=10, color=colors["fg"], loc="left")
            if name == "grad_norm":  # a spike would flatten everything else
                ax.set_yscale("log")
                ax.yaxis.set_major_formatter("{x:g}")
                ax.minorticks_off()
        legend_above(fig, axes[0], colors)
        for ax in axes[2:]:
            ax.set_xlabel("step", color=colors["fg"])
        written += save(fig, out, theme, top=0.96 - 0.04 * ((len(result.rows) - 1) // 6))
    return written

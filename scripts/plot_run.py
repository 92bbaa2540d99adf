"""Draw a run's reward and held-out accuracy over steps, light and dark, as PNG and SVG.

usage: python scripts/plot_run.py RUN [RUN ...] --out docs/images/quickstart
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

THEMES = {
    "light": {"bg": "#ffffff", "fg": "#24292f", "grid": "#e4e7eb", "a": "#0072b2", "b": "#d55e00"},
    "dark": {"bg": "#0d1117", "fg": "#d7dde3", "grid": "#2a3038", "a": "#56b4e9", "b": "#e69f00"},
}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file; nothing where the file is missing."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def smooth(values: list[float], width: int = 5) -> list[float]:
    """Trailing mean."""
    return [sum(values[max(0, i - width + 1) : i + 1]) / min(i + 1, width) for i in range(len(values))]


def draw(runs: list[Path], out: Path, theme: str, measure: str) -> None:
    """One figure of all runs."""
    c = THEMES[theme]
    fig, ax = plt.subplots(figsize=(7.2, 3.4), dpi=160, facecolor=c["bg"])
    ax.set_facecolor(c["bg"])
    for k, run in enumerate(runs):
        rows = [r for r in read_lines(run / "metrics.jsonl") if r.get("reward") is not None]
        evals = [r for r in read_lines(run / "evals.jsonl") if r.get("em") is not None]
        step, reward = [r["step"] for r in rows], [r["reward"] for r in rows]
        first = k == 0
        ax.plot(step, reward, color=c["a"], lw=0.7, alpha=0.3)
        ax.plot(step, smooth(reward), color=c["a"], lw=1.8, label="reward of the training batch" if first else None)
        label = measure if first else None
        ax.plot([r["step"] for r in evals], [r["em"] for r in evals], "o-", color=c["b"], lw=1.4, ms=5, label=label)
    ax.set_ylim(0, 1)
    ax.set_xlabel("training step", color=c["fg"])
    ax.grid(color=c["grid"], lw=0.8)
    ax.tick_params(colors=c["fg"], length=0)
    for side in ax.spines.values():
        side.set_visible(False)
    legend = ax.legend(frameon=False, loc="lower right")
    for text in legend.get_texts():
        text.set_color(c["fg"])
    fig.tight_layout()
    for kind in ("png", "svg"):
        fig.savefig(f"{out}-{theme}.{kind}", facecolor=c["bg"])
    plt.close(fig)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="path without suffix")
    parser.add_argument("--measure", default="held-out exact match", help="name of what was evaluated")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for theme in THEMES:
        draw(args.runs, args.out, theme, args.measure)
        print(f"{args.out}-{theme}.png")


if __name__ == "__main__":
    main()

"""Draw runs that collapse beside the same runs with the guard: reward, likelihood, entropy, alarms. Light and dark.

usage: python scripts/plot_collapse.py --plain RUN [RUN ...] --guarded RUN [RUN ...] --out docs/images/collapse

Thin lines are runs (trailing mean of five steps), thick lines their mean over the steps that all have.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from plot_run import read_lines, smooth

THEMES = {
    "light": {"bg": "#ffffff", "fg": "#24292f", "grid": "#e4e7eb", "plain": "#c2410c", "guarded": "#0072b2"},
    "dark": {"bg": "#0d1117", "fg": "#d7dde3", "grid": "#2a3038", "plain": "#f0883e", "guarded": "#56b4e9"},
}
ROWS = (
    ("reward", "reward"),
    ("logprob_correct", "log π of correct responses\nnats per token"),
    ("entropy", "entropy\nnats per token"),
)
MARKS = {"warn": ("v", "first warning"), "critical": ("X", "critical"), "guard": ("D", "the guard acts")}
ABOVE = {"warn": 0.1, "critical": 0.0, "guard": 0.0}  # a warning and the guard's act are at the same step


def series(run: Path, name: str) -> dict[int, float]:
    """Step -> trailing mean; steps without the value are left out."""
    rows = [r for r in read_lines(run / "metrics.jsonl") if r.get(name) is not None]
    return dict(zip([r["step"] for r in rows], smooth([r[name] for r in rows])))


def marks(run: Path) -> list[tuple[str, int]]:
    """What is shown on a run's reward: the first warning and the first critical alarm, or every act of the guard."""
    acts = [("guard", r["step"]) for r in read_lines(run / "guard.jsonl")]
    raised: dict[str, int] = {}
    for alarm in read_lines(run / "alarms.jsonl"):
        if alarm.get("rule") == "collapse" and alarm["level"] in ("warn", "critical"):
            raised.setdefault(alarm["level"], alarm["step"])
    return acts or sorted(raised.items())


def draw(plain: list[Path], guarded: list[Path], out: Path, theme: str) -> None:
    """One figure: a row per signal, both kinds of run in each."""
    c = THEMES[theme]
    fig, axes = plt.subplots(3, 1, figsize=(7.6, 7.0), dpi=160, sharex=True, facecolor=c["bg"], height_ratios=[5, 3, 3])
    for ax, (name, label) in zip(axes, ROWS):
        ax.set_facecolor(c["bg"])
        for kind, runs in (("plain", plain), ("guarded", guarded)):
            lines = [series(run, name) for run in runs]
            for line in lines:
                ax.plot(list(line), list(line.values()), color=c[kind], lw=0.8, alpha=0.55)
            common = sorted(set.intersection(*(set(line) for line in lines)))
            mean = [sum(line[s] for line in lines) / len(lines) for s in common]
            text = {"plain": "without the guard", "guarded": "with the guard"}[kind]
            ax.plot(common, mean, color=c[kind], lw=2.4, label=text)
            if name == "reward":
                for run, line in zip(runs, lines):
                    for mark, step in marks(run):
                        y, shape = line[step] + ABOVE[mark], MARKS[mark][0]
                        ax.plot(step, y, shape, color=c[kind], ms=7, mec=c["bg"], mew=1, zorder=5)
        ax.set_ylabel(label, color=c["fg"])
        ax.grid(color=c["grid"], lw=0.8)
        ax.tick_params(colors=c["fg"], length=0)
        for side in ax.spines.values():
            side.set_visible(False)
    axes[0].set_ylim(0, 1.02)
    axes[2].set_ylim(bottom=0)
    axes[2].set_xlabel("training step", color=c["fg"])
    handles: list[Any] = axes[0].get_legend_handles_labels()[0]
    for mark, (shape, text) in MARKS.items():
        color = c["guarded" if mark == "guard" else "plain"]
        handles.append(plt.Line2D([], [], ls="", marker=shape, ms=8, color=color, mec=c["bg"], label=text))
    legend = axes[0].legend(handles=handles, frameon=False, loc="lower left", ncols=2, bbox_to_anchor=(0.18, 0.0))
    for text in legend.get_texts():
        text.set_color(c["fg"])
    fig.align_ylabels()
    fig.tight_layout()
    fig.savefig(f"{out}-{theme}.png", facecolor=c["bg"])
    plt.close(fig)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plain", nargs="+", type=Path, required=True)
    parser.add_argument("--guarded", nargs="+", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="path without suffix")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for theme in THEMES:
        draw(args.plain, args.guarded, args.out, theme)
        print(f"{args.out}-{theme}.png")


if __name__ == "__main__":
    main()

"""Matplotlib figures in two themes, as PNG and SVG; the colours stay apart for colour-blind readers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

THEMES = {
    "light": {"bg": "#ffffff", "fg": "#24292f", "grid": "#e4e7eb", "good": "#0072b2", "bad": "#d55e00"},
    "dark": {"bg": "#0d1117", "fg": "#d7dde3", "grid": "#2a3038", "good": "#56b4e9", "bad": "#e69f00"},
}
#: Okabe and Ito's colours, darker on white and lighter on black where they would not stand out.
SERIES = {
    "light": ("#0072b2", "#d55e00", "#00875f", "#b3589a", "#8a6d00", "#7f7f7f", "#6a51a3", "#2b8cbe", "#b2182b"),
    "dark": ("#56b4e9", "#e69f00", "#3ecf8e", "#e08fc4", "#f0e442", "#b0b0b0", "#b3a2e0", "#9ecae1", "#ff7f6e"),
}


def figure(
    theme: str, rows: int, columns: int, *, size: tuple[float, float], sharey: bool = False
) -> tuple[Any, list[Any], dict[str, str]]:
    """A figure, its axes in reading order, and the theme's colours."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colors = THEMES[theme]
    fig, grid = plt.subplots(rows, columns, figsize=size, dpi=160, facecolor=colors["bg"], sharey=sharey, squeeze=False)
    axes = list(grid.flat)
    for ax in axes:
        ax.set_facecolor(colors["bg"])
        ax.grid(color=colors["grid"], lw=0.7, axis="y")
        ax.set_axisbelow(True)
        ax.tick_params(colors=colors["fg"], length=0, labelsize=8)
        for side in ax.spines.values():
            side.set_visible(False)
    return fig, axes, colors


def legend(ax: Any, colors: dict[str, str], **kw: Any) -> None:
    """A legend without a frame, in the theme's text colour."""
    for text in ax.legend(frameon=False, fontsize=8, **kw).get_texts():
        text.set_color(colors["fg"])


def legend_above(fig: Any, ax: Any, colors: dict[str, str]) -> None:
    """One legend for all panels, in rows of six over them; `save` must leave room with `top`."""
    handles, labels = ax.get_legend_handles_labels()
    fig.legend(handles, labels, frameon=False, fontsize=9, labelcolor=colors["fg"], loc="upper left", ncol=6)


def save(fig: Any, out: Path, theme: str, top: float = 1.0) -> list[Path]:
    """`out`-light.png, `out`-light.svg and the dark ones; closes the figure. The panels end at the share `top`."""
    import matplotlib.pyplot as plt

    out.parent.mkdir(parents=True, exist_ok=True)
    fig.tight_layout(rect=(0, 0, 1, top))
    paths = [out.with_name(f"{out.name}-{theme}.{kind}") for kind in ("png", "svg")]
    for path in paths:
        fig.savefig(path, facecolor=fig.get_facecolor())
    plt.close(fig)
    return paths

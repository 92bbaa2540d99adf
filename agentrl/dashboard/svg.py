"""A line chart as SVG text, for the report."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 420, 190
LEFT, RIGHT, TOP, BOTTOM = 52, 8, 8, 22
PHASE_COLORS = {
    "warmup": "#f4f5f7",
    "learning": "#e7f3ef",
    "plateau": "#f0f1f3",
    "I": "#fbf1c6",
    "II": "#fbdcb8",
    "III": "#f3c9c1",
}
ALARM_COLORS = {"info": "#0b5cab", "warn": "#8a5a00", "critical": "#b3361c"}


@dataclass(frozen=True)
class Line:
    """`points`: (x, y), x ascending, y finite."""

    label: str
    color: str
    points: Sequence[tuple[float, float]]


def chart(
    title: str, lines: Sequence[Line], bands: Sequence[dict[str, Any]] = (), alarms: Sequence[dict[str, Any]] = ()
) -> str:
    """The chart; `bands` are {"phase", "from", "to"}, `alarms` {"step", "level", "rule"}. ValueError without points."""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    if not xs:
        raise ValueError(f"{title}: no points to draw")
    x0, x1 = min(xs), max(max(xs), min(xs) + 1)
    ticks = nice_ticks(min(ys), max(ys))
    y0, y1 = min(ticks[0], min(ys)), max(ticks[-1], max(ys))

    def px(x: float) -> str:
        return f"{LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT):.1f}"

    def py(y: float) -> str:
        return f"{TOP + (y1 - y) / (y1 - y0) * (HEIGHT - TOP - BOTTOM):.1f}"

    inner = HEIGHT - TOP - BOTTOM
    out = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">']
    for band in bands:
        left, right = float(px(max(band["from"], x0))), float(px(min(band["to"] + 1, x1)))
        if right > left:
            fill = PHASE_COLORS.get(band["phase"], "#fff")
            out.append(f'<rect x="{left}" y="{TOP}" width="{right - left:.1f}" height="{inner}" fill="{fill}"/>')
    for tick in ticks:
        out.append(f'<path d="M{LEFT} {py(tick)}H{WIDTH - RIGHT}" stroke="#dde1e8"/>')
        out.append(f'<text x="{LEFT - 5}" y="{float(py(tick)) + 3.5:.1f}" text-anchor="end">{_label(tick)}</text>')
    for x, anchor in ((x0, "start"), ((x0 + x1) / 2, "middle"), (x1, "end")):
        out.append(f'<text x="{px(x)}" y="{HEIGHT - 6}" text-anchor="{anchor}">{_label(round(x))}</text>')
    for alarm in alarms:
        if x0 <= alarm["step"] <= x1:
            color = ALARM_COLORS.get(str(alarm.get("level")), "#566070")
            name = html.escape(f"{alarm.get('level')} {alarm.get('rule')} at step {alarm['step']}")
            mark = f'<path d="M{px(alarm["step"])} {TOP}v{inner}" stroke="{color}" stroke-dasharray="3 3"/>'
            out.append(f"<g><title>{name}</title>{mark}</g>")
    most = max(len(line.points) for line in lines)
    for line in lines:
        path = "L".join(f"{px(x)} {py(y)}" for x, y in line.points)
        name = html.escape(line.label)
        out.append(
            f'<path d="M{path}" fill="none" stroke="{line.color}" stroke-width="1.4"><title>{name}</title></path>'
        )
        if 3 * len(line.points) < most or len(line.points) == 1:  # measured now and then: the points say when
            out += [f'<circle cx="{px(x)}" cy="{py(y)}" r="2.2" fill="{line.color}"/>' for x, y in line.points]
    out.append("</svg>")
    keys = "".join(f'<span><i style="background:{line.color}"></i>{html.escape(line.label)}</span>' for line in lines)
    return "".join(out) + f'<p class="legend">{keys}</p>'


def nice_ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers, at least two, that cover [low, high]; a constant gets an interval around it."""
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-290):
        half = 0.5 * (abs(low) if abs(low) > 1e-290 else 1.0)
        low, high = low - half, low + half
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def _label(value: float) -> str:
    return f"{value:.4g}".replace("-", "−")

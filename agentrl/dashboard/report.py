"""One run as a single HTML file without scripts: to send, to print, to keep beside a paper.

Charts are SVG made here. Every text of the run is escaped, and the file's own Content-Security-Policy allows nothing
but its style, so that a rollout can do nothing wherever the file is opened.
"""

from __future__ import annotations

import html
import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from agentrl.dashboard import episodes
from agentrl.dashboard.history import Row
from agentrl.dashboard.library import Library, info_of, run_state
from agentrl.dashboard.svg import PHASE_COLORS, Line, chart
from agentrl.dashboard.thin import thin
from agentrl.errors import AgentRLError
from agentrl.monitors.signals import SIGNALS
from agentrl.runs.files import strict_json

BLUE, ORANGE, GREEN, PURPLE, GREY, YELLOW = "#0b66b8", "#d1600f", "#007e63", "#8b3fa6", "#6b7280", "#b58900"
PINK = "#c2185b"
#: (title, [(signal, label, colour)]): the same overview as the page's.
OVERVIEW: list[tuple[str, list[tuple[str, str, str]]]] = [
    ("Reward", [("reward", "reward", BLUE), ("correct_rate", "correct", GREEN)]),
    ("Likelihood of responses", [("logprob_correct", "correct", BLUE), ("logprob_incorrect", "incorrect", ORANGE)]),
    ("Δ of correct responses", [("delta_correct", "Δ by the update", BLUE)]),
    ("Likelihood of the probe set", [("probe_logprob", "stored correct responses", PURPLE)]),
    ("Entropy", [("entropy", "entropy", PURPLE)]),
    ("Gradient norm", [("grad_norm", "mean", GREEN), ("grad_norm_max", "largest", GREY)]),
    ("Clipped tokens", [("clip_fraction", "all", ORANGE)]),
    ("KL to the reference", [("kl", "KL", YELLOW)]),
    ("Length", [("response_length", "response", BLUE), ("context_length", "context", GREY)]),
    ("Valid searches", [("valid_search_ratio", "valid searches", BLUE), ("valid_action_ratio", "actions", GREEN)]),
]  # fmt: skip
EPISODES = 6
POINTS = 1000  # per line
CSS = (Path(__file__).parent / "static" / "css" / "report.css").read_text(encoding="utf-8")


def render_report(library: Library, run_id: str) -> str:
    """The whole file. UnknownRun where there is no such run; what cannot be read is said in the file."""
    path = library.path(run_id)
    state = run_state(run_id, info_of(path))
    history, lock = library.history(run_id)
    with lock:
        history.classify()
        rows, bands, phase = list(history.rows), list(history.bands), history.phase
        problems = library.problems(run_id, history, state["status"] == "running")
    config = library.config(run_id)
    alarms, evals = library.alarms(run_id), library.evals(run_id)
    scored = [(float(r["step"]), float(r["em"])) for r in evals if isinstance(r.get("em"), int | float)]
    held_out = Line("held-out accuracy", PINK, sorted(p for p in scored if math.isfinite(p[1])))
    done = f"step {state['step']}" + (f" of {state['steps']}" if state["steps"] else "")
    parts = [
        f"<h1>{_e(run_id)}</h1>",
        f"<p>{_e(state['status'])}, {done}; phase {_e(phase.phase)}; last row {_time(state['updated'])}; "
        f"report made {_time(time.time())}. <code>{_e(state['resume'])}</code></p>",
        _list("Not everything could be read", [*problems, *config["problems"]]),
        _figures(rows),
        _legend(bands),
        '<div class="charts">'
        + "".join(_chart(title, lines, rows, bands, alarms, held_out) for title, lines in OVERVIEW)
        + "</div>",
        "<h2>Alarms</h2>" + ("".join(map(_alarm, alarms)) or "<p>None.</p>"),
        _table("What the guard did", library.guard(run_id)),
        _table("Evaluations", evals),
        _episodes(library, run_id, alarms),
        f"<details><summary>Configuration</summary><pre>{_e(config['text'])}</pre></details>",
        f"<details><summary>Versions and seeds</summary><pre>{_e(strict_json(config['meta']))}</pre></details>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_e(run_id)}</title><style>{CSS}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )


def _e(value: Any) -> str:
    return html.escape(str(value))


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else "unknown"


def _number(value: Any) -> str:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "–" if value is None else _e(value)
    return f"{value:.4g}".replace("-", "−") if math.isfinite(value) else "not finite"


def _list(title: str, items: Sequence[str]) -> str:
    if not items:
        return ""
    return f'<div class="notice">{_e(title)}:<ul>{"".join(f"<li>{_e(i)}</li>" for i in items)}</ul></div>'


def _figures(rows: Sequence[Row]) -> str:
    cells = []
    for name, signal in SIGNALS.items():
        last = next((r[name] for r in reversed(rows) if r.get(name) is not None), None)
        if signal.overview and last is not None:
            cells.append(
                f"<div><span>{_e(name.replace('_', ' '))}</span><b>{_number(last)}</b><i>{_e(signal.unit)}</i></div>"
            )
    return f'<div class="figures">{"".join(cells)}</div>'


def _legend(bands: Iterable[dict[str, Any]]) -> str:
    names = dict.fromkeys(b["phase"] for b in bands)
    swatches = "".join(f'<span><i style="background:{PHASE_COLORS[n]}"></i>{_e(n)}</span>' for n in names)
    return f'<p class="legend">Phases: {swatches}; dashed lines are alarms</p>' if names else ""


def _chart(
    title: str,
    signals: list[tuple[str, str, str]],
    rows: Sequence[Row],
    bands: Sequence[dict[str, Any]],
    alarms: Sequence[dict[str, Any]],
    held_out: Line,
) -> str:
    kept = thin(rows, [name for name, *_ in signals], POINTS)
    lines = [
        Line(label, color, [(r["step"], r[name]) for r in kept if r.get(name) is not None])
        for name, label, color in signals
        if any(r.get(name) is not None for r in rows)
        and (name == signals[0][0] or any(r.get(name) != r.get(signals[0][0]) for r in rows))  # one hides the other
    ]
    if title == "Reward" and held_out.points:
        lines.append(held_out)
    if not lines:
        return ""
    unit = SIGNALS[signals[0][0]].unit
    caption = f"<figcaption>{_e(title)} <span>{_e(unit) if unit != title.lower() else ''}</span></figcaption>"
    return f"<figure>{caption}{chart(title, lines, bands, alarms)}</figure>"


def _alarm(a: dict[str, Any]) -> str:
    signals = a.get("signals") if isinstance(a.get("signals"), dict) else {}
    shown = "; ".join(
        f"{_e(k)} {_number(v.get('value'))} against {_number(v.get('threshold'))}"
        for k, v in (signals or {}).items()
        if isinstance(v, dict)
    )
    return (
        f'<div class="alarm {_e(a.get("level"))}"><b>{_e(a.get("level"))} · {_e(a.get("rule"))} · step {a["step"]}</b> '
        f"{'cause: ' + _e(a['story']) + '. ' if a.get('story') else ''}"
        f"{_e(a.get('message', ''))}<br><small>{shown}</small><br><small>{_e(a.get('remedy', ''))}</small></div>"
    )


def _table(title: str, rows: Sequence[dict[str, Any]]) -> str:
    if not rows:
        return ""
    names = [n for n in dict.fromkeys(k for r in rows for k in r) if n != "time"]
    head = "".join(f"<th>{_e(n)}</th>" for n in names)
    body = "".join("<tr>" + "".join(f"<td>{_number(r.get(n))}</td>" for n in names) + "</tr>" for r in rows)
    return f"<h2>{_e(title)}</h2><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _episodes(library: Library, run_id: str, alarms: Sequence[dict[str, Any]]) -> str:
    """A few rollouts: those that the last serious alarm names, or of the last stored step."""
    stored = library.steps(run_id)["step"]
    serious = [a for a in alarms if a.get("level") != "info" and a["step"] in stored]
    if not stored:
        return ""
    step = serious[-1]["step"] if serious else stored[-1]
    try:
        rows = library.rollouts(run_id, step, "step")
    except AgentRLError as error:
        return _list("Rollouts could not be read", [str(error)])
    named = set(serious[-1].get("rollouts") or []) if serious else set()
    hit = [r for r in rows if r.get("sample_id") in named]
    chosen = (hit or rows)[:EPISODES]
    why = f"named by the alarm {serious[-1]['id']}" if hit else "the first ones"
    return f"<h2>Rollouts of step {step}</h2><p>{len(chosen)} of {len(rows)}, {_e(why)}.</p>" + "".join(
        map(_episode, chosen)
    )


def _episode(row: Row) -> str:
    brief, whole = episodes.summary(row), episodes.conversation(row)
    verdict = {True: "correct", False: "incorrect", None: "not judged"}[brief["correct"]]
    verdict = "failed" if brief["error"] else verdict
    turns = [f'<div class="ask">{_e(brief["question"])}</div>']
    for turn in whole["turns"]:
        turns.append(f'<div class="agent">{_e(turn["action"] or "")}</div>')
        if turn["observation"]:
            turns.append(f'<div class="tool">{_e(turn["observation"])}</div>')
    if brief["error"]:
        turns.append(f'<div class="error">{_e(brief["error"])}</div>')
    head = f"{verdict}, reward {_number(brief['reward'])}, {_e(brief['sample_id'])}"
    return f'<details class="episode"><summary>{head}</summary>{"".join(turns)}</details>'

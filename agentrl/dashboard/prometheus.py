"""`/metrics`: the last row of every run of the last day in Prometheus' text format.

Left out on purpose: older runs, which would stay in a scrape for ever, and columns that are no canonical signals.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from pathlib import Path
from typing import Any

from agentrl.dashboard.library import Library, info_of
from agentrl.errors import AgentRLError
from agentrl.monitors.signals import SIGNALS

RECENT_S = 24 * 3600.0
STATES = ("running", "finished", "stopped", "failed", "unknown")
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def render(library: Library, now: float | None = None) -> str:
    """The text of one scrape. A value that was not measured is absent, one that is not finite is NaN."""
    now = time.time() if now is None else now
    samples: dict[str, list[tuple[dict[str, str], float]]] = {}

    def add(name: str, value: float, **labels: str) -> None:
        samples.setdefault(name, []).append((labels, value))

    unreadable = 0
    for run_id in library.ids():
        try:
            info, alarms = info_of(library.path(run_id)), library.alarms(run_id)
        except (AgentRLError, OSError, ValueError, TypeError):
            unreadable += 1
            continue
        if now - info.updated > RECENT_S and info.status != "running":
            continue
        add("agentrl_run_step", info.step, run=run_id)
        if info.steps is not None:
            add("agentrl_run_steps", info.steps, run=run_id)
        add("agentrl_run_updated_timestamp_seconds", info.updated, run=run_id)
        for state in STATES:
            add("agentrl_run_status", float(info.status == state), run=run_id, status=state)
        for level in ("info", "warn", "critical"):
            matching = [a for a in alarms if a.get("level") == level]
            add("agentrl_run_alarms", len(matching), run=run_id, level=level)
            unseen = sum(not a["acknowledged"] for a in matching)
            add("agentrl_run_alarms_unacknowledged", unseen, run=run_id, level=level)
        causes = Counter((str(a.get("level")), str(a["story"])) for a in alarms if a.get("story"))
        for (level, cause), count in sorted(causes.items()):
            add("agentrl_run_alarms_by_cause", count, run=run_id, level=level, cause=cause)
        bad = info.metrics.get("nonfinite") or []
        for name in SIGNALS:
            value = info.metrics.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                add(f"agentrl_{name}", float(value), run=run_id)
            elif isinstance(bad, list) and name in bad:
                add(f"agentrl_{name}", math.nan, run=run_id)
    add("agentrl_dashboard_unreadable_runs", unreadable)
    return "".join(_family(name, rows) for name, rows in samples.items())


def _family(name: str, rows: list[tuple[dict[str, str], float]]) -> str:
    signal = SIGNALS.get(name.removeprefix("agentrl_"))
    text = f"{signal.description} ({signal.unit})" if signal else _HELP[name]
    lines = [f"# HELP {name} {text}", f"# TYPE {name} gauge"]
    for labels, value in rows:
        inside = ",".join(f'{k}="{_escape(v)}"' for k, v in labels.items())
        lines.append(f"{name}{{{inside}}} {_number(value)}" if inside else f"{name} {_number(value)}")
    return "\n".join(lines) + "\n"


_HELP: dict[str, Any] = {
    "agentrl_run_step": "steps done",
    "agentrl_run_steps": "steps planned",
    "agentrl_run_updated_timestamp_seconds": "when the last row was written",
    "agentrl_run_status": "1 for the status the run has",
    "agentrl_run_alarms": "alarms raised so far",
    "agentrl_run_alarms_unacknowledged": "alarms that nobody has acknowledged",
    "agentrl_run_alarms_by_cause": "alarms raised so far that name a cause",
    "agentrl_dashboard_unreadable_runs": "run directories that could not be read",
}


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return f"{value:.17g}" if math.isfinite(value) else ("+Inf" if value > 0 else "-Inf")


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def grafana_file() -> Path:
    """The dashboard for Grafana that shows these metrics."""
    return Path(__file__).parent / "static" / "grafana.json"

"""What somebody should hear besides alarms, as alarms, so that every sink can carry it.

A log that stalls or is gone, a run that failed, what the guard did.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from agentrl.types import Alarm

Level = Literal["info", "warn", "critical"]
_LEVELS: dict[str, Level] = {"protect": "warn", "rollback": "critical", "stop": "critical", "release": "info"}


def _notice(step: int, rule: str, level: Level, message: str, remedy: str) -> Alarm:
    return Alarm(id=f"{rule}-{step:06d}-{level}", step=step, rule=rule, level=level, message=message, remedy=remedy)


def stalled(step: int, source: str, seconds: float) -> Alarm:
    """The log has not grown for that long."""
    message = f"{source} has not grown for {_span(seconds)}: the run hangs, has died, or makes a very long step"
    remedy = "See whether its process is alive and what it waits for; --stall S changes after how long this is raised."
    return _notice(step, "stalled", "warn", message, remedy)


def gone(step: int, source: str) -> Alarm:
    """The log's file is not there any more."""
    remedy = "It is read on when it is back; end the watch if it was deleted on purpose."
    return _notice(step, "log_gone", "warn", f"{source} is gone: deleted, moved, or its disk is away", remedy)


def failed(step: int, run: str, message: str, resume: str = "", when: float = 0.0) -> Alarm:
    """The run ended with an error, or its process is gone; `when` (seconds) tells it from the next time."""
    text = f"{run} failed after {step} steps: {message or 'no reason was written'}"
    remedy = f"Go on with it: {resume}" if resume else "See its last lines."
    notice = _notice(step, "run_failed", "critical", text, remedy)
    return replace(notice, id=f"{notice.id}-{when:.3f}")


def guarded(row: Mapping[str, Any]) -> Alarm:
    """What the guard did: a row of guard.jsonl."""
    from agentrl.monitors.stop_rule import in_words  # other trainers' logs have no guard

    kind = str(row.get("kind"))
    remedy = "Nothing has to be done; guard.jsonl and the dashboard have the details."
    if kind == "stop":
        remedy = "The run has ended by itself: read the alarm before, change what it names, and resume."
    return _notice(int(row.get("step", 0)), f"guard_{kind}", _LEVELS.get(kind, "info"), in_words(row), remedy)


def _span(seconds: float) -> str:
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"

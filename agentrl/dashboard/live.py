"""Server-sent events of one run: new rows, alarms, status. A client that comes back goes on where it was.

Each `rows` event has the cursor after its rows as its id, so `Last-Event-ID` after a lost connection gives neither a
gap nor a duplicate. `reset` says that the file is another one now: fetch everything again. A page that has no stream
asks `look` now and then: browsers open few connections to one host.
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import AsyncIterator
from typing import Any

from agentrl.dashboard.library import Library, UnknownRun, info_of, run_state
from agentrl.runs.files import strict_json

POLL_S = 0.5  # how often the files are looked at
BEAT_S = 10.0  # a comment, so that either side notices a dead connection
STATE_S = 1.0
BATCH = 500  # rows per event


async def stream(library: Library, run_id: str, cursor: str) -> AsyncIterator[str]:
    """Events from `cursor` on, for ever; the caller ends it."""
    yield "retry: 1000\n\n"
    sent_state: Any = None
    sent_marks: Any = None
    sent_bands: Any = None
    gone = False
    beat = state_at = time.monotonic()
    state_at -= STATE_S
    while True:
        try:
            rows, cursor, reset, bands, phase = await asyncio.to_thread(_rows, library, run_id, cursor)
            if reset or gone:
                gone = False
                yield _event("reset", {})
            for start in range(0, len(rows), BATCH):
                part = rows[start : start + BATCH]
                last = start + BATCH >= len(rows)
                # Only the last event moves the cursor: whoever loses the connection in between gets all again, and
                # rows are told apart by their step.
                yield _event("rows", {"rows": part, "bands": bands, "phase": phase}, cursor if last else None)
            if bands != sent_bands and not rows:
                yield _event("rows", {"rows": [], "bands": bands, "phase": phase})
            sent_bands = bands
            now = time.monotonic()
            if now - state_at >= STATE_S:
                state_at = now
                state, marks = await asyncio.to_thread(_state, library, run_id)
                if state != sent_state:
                    sent_state = state
                    yield _event("status", state)
                if marks != sent_marks:
                    sent_marks = marks
                    yield _event("alarms", marks)
        except (UnknownRun, OSError):
            if not gone:
                gone = True
                yield _event("gone", {"id": run_id})
        if time.monotonic() - beat >= BEAT_S:
            beat = time.monotonic()
            yield ": beat\n\n"
        await asyncio.sleep(POLL_S)


def look(library: Library, run_id: str, cursor: str) -> dict[str, Any]:
    """The same once, for a page that has no stream. UnknownRun where the run is gone."""
    rows, cursor, reset, bands, phase = _rows(library, run_id, cursor)
    state, marks = _state(library, run_id)
    return {
        "rows": rows,
        "cursor": cursor,
        "reset": reset,
        "bands": bands,
        "phase": phase,
        "state": state,
        "marks": marks,
    }


def _rows(
    library: Library, run_id: str, cursor: str
) -> tuple[list[dict[str, Any]], str, bool, list[dict[str, Any]], dict[str, Any]]:
    history, lock = library.history(run_id)
    with lock:
        rows = history.since(cursor)
        reset = rows is None
        return list(rows or []), history.cursor, reset, copy.deepcopy(history.bands), phase_of(history)


def _state(library: Library, run_id: str) -> tuple[dict[str, Any], dict[str, Any]]:
    marks = {"alarms": library.alarms(run_id), "guard": library.guard(run_id), "evals": library.evals(run_id)}
    return run_state(run_id, info_of(library.path(run_id))), marks


def phase_of(history: Any) -> dict[str, Any]:
    """The current phase as plain JSON."""
    p = history.phase
    return {"phase": p.phase, "since": p.since, "death_spiral": p.death_spiral, "decay_since": p.decay_since}


def _event(name: str, data: Any, event_id: str | None = None) -> str:
    head = f"id: {event_id}\n" if event_id else ""
    return f"{head}event: {name}\ndata: {strict_json(data)}\n\n"

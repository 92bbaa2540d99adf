"""Thin a long series so that what matters stays: the extremes of each stretch, and what was not finite."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from agentrl.runs.files import parse_line

BROKEN = 100  # rows of a stretch with a value that is not finite; of the others the step alone is kept
FAR, SPIKES = 10.0, 20  # rows of a stretch with a value that far outside, at most, by signal
FIRST = 5  # rows at the beginning, from which a sentence says where a signal began
_NONFINITE = b'"nonfinite"'
_Table = dict[str, "np.ndarray[Any, np.dtype[np.float64]]"]


def choose(block: bytes, even: int, first: bool = False) -> tuple[list[tuple[int, int]], dict[str, list[int]]]:
    """Lines (start, stop) of a stretch of metrics.jsonl to keep, in order, and signal -> steps where it was not finite.

    `block` is whole lines. Kept are the rows with the lowest and the highest value of each signal, those with a value
    far outside (`_far`), those that are not finite somewhere, the `first` ones, and `even` others.
    """
    ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + 1
    starts = np.concatenate(([0], ends[:-1])) if len(ends) else ends
    table = _columns(block, starts, ends)
    keep = set(range(0, len(ends), max(1, len(ends) // even))) | ({*range(min(FIRST, len(ends)))} if first else set())
    for name, values in table.items():
        if name not in ("step", "time", "tokens") and not np.isnan(values).all():
            keep |= {int(np.nanargmin(values)), int(np.nanargmax(values)), *_far(values)}
    bad, steps = _nonfinite(block, starts, ends)
    keep |= set(bad[:BROKEN])
    return [(int(starts[i]), int(ends[i])) for i in sorted(keep)], steps


def _far(values: np.ndarray[Any, np.dtype[np.float64]]) -> list[int]:
    """Places of values `FAR` times the distance of the quartiles outside of them: a stretch may have several spikes."""
    known = np.flatnonzero(~np.isnan(values))
    quarter = len(known) // 4  # at least one value is known
    low, high = np.partition(values[known], [quarter, len(known) - 1 - quarter])[[quarter, len(known) - 1 - quarter]]
    beyond = np.maximum(low - values[known], values[known] - high)
    places = np.flatnonzero(beyond > FAR * (high - low))
    return known[places[np.argsort(-beyond[places])[:SPIKES]]].tolist() if high > low else []


def _nonfinite(block: bytes, starts: Any, ends: Any) -> tuple[list[int], dict[str, list[int]]]:
    """Places of the rows that name signals that were not finite, and the steps by signal."""
    places: list[int] = []
    steps: dict[str, list[int]] = {}
    at = block.find(_NONFINITE)
    while at >= 0:
        i = int(np.searchsorted(ends, at, side="right"))
        if i >= len(ends):
            break
        row = parse_line(block[starts[i] : ends[i]])
        names = row.get("nonfinite") if row else None
        if isinstance(names, list) and row is not None and isinstance(row.get("step"), int):
            places.append(i)
            for name in names:
                if isinstance(name, str):
                    steps.setdefault(name, []).append(row["step"])
        at = block.find(_NONFINITE, int(ends[i]))
    return places, steps


def _columns(block: bytes, starts: Any, ends: Any) -> _Table:
    """Signal -> a value per line, NaN where it has none. pyarrow is faster, where it is installed."""
    try:
        return _with_pyarrow(block, starts, ends)
    except (ImportError, ValueError, TypeError, KeyError, OSError):  # not installed, or a line that is no plain row
        rows = [parse_line(block[a:b]) or {} for a, b in zip(starts.tolist(), ends.tolist())]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: np.array([_float(row.get(name)) for row in rows]) for name in names}


def warm() -> None:
    """Load pyarrow where it is installed, before somebody waits for it."""
    with suppress(ImportError):
        importlib.import_module("pyarrow.json")


def _with_pyarrow(block: bytes, starts: Any, ends: Any) -> _Table:
    """ValueError (pyarrow's errors are) where a line is torn, or a value of a column is no number."""
    import pyarrow
    import pyarrow.json

    names: dict[str, None] = {}
    for i in {0, len(ends) // 2, len(ends) - 1} if len(ends) else set():
        row: Any = json.loads(block[starts[i] : ends[i]])
        names |= {k: None for k, v in row.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    schema = pyarrow.schema([(name, pyarrow.float64()) for name in names])
    table = pyarrow.json.read_json(
        pyarrow.BufferReader(block),
        read_options=pyarrow.json.ReadOptions(block_size=max(1 << 22, int((ends - starts).max()) + 1)),
        parse_options=pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="infer"),
    )
    if table.num_rows != len(ends):
        raise ValueError("empty lines")
    numeric = [n for n in table.column_names if pyarrow.types.is_floating(table.schema.field(n).type)]
    numeric += [n for n in table.column_names if pyarrow.types.is_integer(table.schema.field(n).type)]
    return {n: _values(table[n]) for n in numeric}


def _values(column: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """A column of numbers, NaN where it has none. pyarrow's own `to_numpy` imports pandas for that: half a second."""
    import pyarrow

    parts = []
    for chunk in column.chunks:
        chunk = chunk.cast(pyarrow.float64())
        values = np.frombuffer(chunk.buffers()[1], np.float64, len(chunk), 8 * chunk.offset).copy()
        if chunk.null_count:
            bits = np.unpackbits(np.frombuffer(chunk.buffers()[0], np.uint8), bitorder="little")
            values[bits[chunk.offset : chunk.offset + len(chunk)] == 0] = np.nan
        parts.append(values)
    return np.concatenate(parts) if parts else np.empty(0)


def _float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value) if math.isfinite(value) else math.nan
    except OverflowError:  # an integer that no float holds
        return math.nan


def thin(rows: Sequence[dict[str, Any]], names: Sequence[str], points: int) -> list[dict[str, Any]]:
    """At most about `points` of the rows: the extremes of `names` in each stretch, and others evenly."""
    if len(rows) <= points:
        return list(rows)
    size = math.ceil(len(rows) / max(1, points // (2 * len(names) + 1)))
    keep = {0, len(rows) - 1}
    for start in range(0, len(rows), size):
        stretch = range(start, min(start + size, len(rows)))
        keep.add(start)
        for name in names:
            there = [i for i in stretch if rows[i].get(name) is not None]
            if there:
                keep |= {min(there, key=lambda i: rows[i][name]), max(there, key=lambda i: rows[i][name])}
    return [rows[i] for i in sorted(keep)]

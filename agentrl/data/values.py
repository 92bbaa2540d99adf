"""Values of data sets as plain JSON: what an environment is handed, a rollout row stores and a hash is taken of.

Parquet and the hub have types that JSON lacks. A date, a time, a duration or a decimal becomes its text; bytes, images
and objects have none that would mean anything, so that their column is left out. No torch.
"""

from __future__ import annotations

import datetime
import decimal
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

_TEXTS = (decimal.Decimal, uuid.UUID, datetime.timedelta)


class NoForm(Exception):
    """A value of this type can be no text; the message is the type's name."""


def as_plain(value: Any) -> Any:
    """`value` as JSON has it, all the way down. Raises NoForm where a part of it has no such form."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, _TEXTS):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): as_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(v) for v in value]
    if type(value).__module__ == "numpy":
        return as_plain(value.tolist())
    raise NoForm(type(value).__name__)


def parquet_rows(batch: Any) -> Iterator[dict[str, Any]]:
    """The rows of a `pyarrow.RecordBatch`; a column that Python has no type for comes as Parquet's own text of it."""
    columns = {name: _column(batch.column(i)) for i, name in enumerate(batch.schema.names)}
    for n in range(batch.num_rows):
        yield {name: values[n] for name, values in columns.items()}


def _column(array: Any) -> list[Any]:
    """Its values; texts where they are finer than Python's (nanoseconds) or beyond its years."""
    import pyarrow as pa

    try:
        return list(array.to_pylist())
    except (ValueError, OverflowError, ImportError, NotImplementedError):  # pyarrow's own errors are ValueErrors, too
        try:
            return list(array.cast(pa.string()).to_pylist())
        except (ValueError, NotImplementedError):
            return [Unreadable()] * len(array)


class Unreadable:
    """Stands where a value was that cannot be shown: `as_plain` refuses it, so that its column is left out."""

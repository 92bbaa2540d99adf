"""Find out what a path is: every format looks at it, the surest one reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agentrl import plugins
from agentrl.errors import RunError
from agentrl.monitors.sources.base import Look, Source

HEAD = 4096  # bytes shown to the formats
_KINDS = (
    "a JSONL or CSV file, a TensorBoard event directory, a W&B offline run, a trackio .db file, a trainer_state.json, "
    "or a run directory with metrics.jsonl"
)


def open_source(path: str | Path, run: str | None = None, form: str | None = None) -> Source:
    """The source at `path`. `run` chooses a run of a trackio database, `form` a format by its plug-in name.

    Raises `RunError` naming the path, the reason and what would do, and PluginError for a format that does not exist.
    """
    reader = plugins.find("log source", form) if form is not None else None
    where = Path(path).expanduser()
    if not where.exists():
        raise RunError(f"{where} does not exist; give {_KINDS}")
    if reader is None:
        reader = _surest(where)
    if reader is not None:
        source: Source = reader(where, run)
        return source
    if where.is_dir():
        return open_source(_only_one(where), run)
    raise RunError(f"{where} is none of the formats that can be read; give {_KINDS}")


def _surest(path: Path) -> Any:
    """The format that is surest of `path` (of equals the one that comes with agentrl), or None."""
    look = Look(path, b"" if path.is_dir() else _head(path), path.is_dir())
    found, best = None, 0
    for plugin in plugins.available("log source"):
        reader = plugins.find("log source", plugin.name)
        if (sure := reader.recognises(look)) > best:
            found, best = reader, sure
    return found


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(HEAD)


def _only_one(path: Path) -> Path:
    """The one place inside a folder that holds metrics."""
    for name, found in (
        ("TensorBoard", sorted({f.parent for f in path.glob("*/*tfevents*")})),
        ("W&B", sorted(path.glob("wandb/offline-run-*/*.wandb"))),
        ("trackio", sorted(path.glob("*.db"))),
        ("run", sorted(f.parent for f in path.glob("*/metrics.jsonl"))),
    ):
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(str(f) for f in found[:5]) + (", ..." if len(found) > 5 else "")
            raise RunError(f"{path} holds {len(found)} {name} sources; name one of them: {names}")
    raise RunError(f"{path} holds no metrics that can be read; give {_KINDS}")

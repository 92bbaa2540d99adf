"""Find out what a path is: every format looks at it, the surest one reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from agentrl import plugins
from agentrl.errors import RunError
from agentrl.monitors.signals import STEP_COLUMNS
from agentrl.monitors.sources import spool
from agentrl.monitors.sources.base import HEAD, SURE, Look, Row, Source

_KINDS = (
    "a JSONL, JSON, CSV or Parquet file, a console log (verl, rLLM, TRL, OpenRLHF, SkyRL, slime, prime-rl, NeMo-RL, "
    "AReaL), a TensorBoard event directory, a W&B run or its CSV export, an MLflow or trackio store, a "
    "trainer_state.json, a run directory with metrics.jsonl, or - for standard input"
)


BINARY = ("tensorboard", "wandb", "mlflow", "trackio", "csv_folder")  # folders, and files with zero bytes


def open_source(
    path: str | Path,
    run: str | None = None,
    form: str | None = None,
    *,
    where: Mapping[str, str] | None = None,
    step: str | None = None,
    newest: bool = False,
) -> Source:
    """The source at `path` (`-`: standard input).

    `run` chooses one of several runs, `form` a format by its plug-in name, `where` rows by the value of a column, and
    `step` names the step's column; `newest` takes the one of several in a folder that was written last. Raises
    `RunError` naming the path, the reason and what would do, and PluginError for a format that does not exist.
    """
    settings = (dict(where or {}), (step, *STEP_COLUMNS) if step else STEP_COLUMNS)
    reader = plugins.find("log source", form) if form is not None else None
    if str(path) == "-":
        return _set(Undecided(spool.standard_input(), run, reader, "standard input"), settings)
    target = Path(path).expanduser()
    if not target.exists():
        what = "is a link that leads to nothing, or in a circle" if target.is_symlink() else "does not exist"
        raise RunError(f"{target} {what}; give {_KINDS}")
    if target.is_file() and _head(target)[:2] == b"\x1f\x8b":
        return _set(Undecided(spool.unpacked(target), run, reader, str(path)), settings)
    if reader is None:
        reader = _surest(target)
    if reader is not None:
        return _set(reader(target, run), settings)
    if target.is_dir():
        return _set(open_source(_only_one(target, newest), run), settings)
    if b"\0" not in _head(target):
        return _set(Undecided(target, run, None, str(path)), settings)
    raise RunError(f"{target} is none of the formats that can be read; give {_KINDS}")


def _set(source: Source, settings: tuple[Mapping[str, str], tuple[str, ...]]) -> Source:
    source.where, source.step_names = settings
    return source


class Undecided(Source):
    """Text in which no format has found a line of its own yet, or that is still coming: asked again as it grows."""

    def __init__(self, where: Path | spool.Spool, run: str | None, reader: Any, name: str) -> None:
        self._spool = where if isinstance(where, spool.Spool) else None
        super().__init__(where.path if isinstance(where, spool.Spool) else where, "text without metrics")
        self._name, self._run, self._reader = name, run, reader
        self._source: Source | None = None
        self._size = -1

    @property
    def ended(self) -> bool:
        """Whether nothing more can come."""
        return self._spool is not None and self._spool.done

    def poll(self, final: bool = False) -> list[Row]:
        """See `Source.poll`."""
        while final and self._spool is not None and not self._spool.done:
            self._spool.wait()
        if self._source is None and not self._decide():
            if final and self.path.stat().st_size:
                self.problem("text in which no format knows a line")
            return []
        assert self._source is not None
        rows = self._source.poll(final)
        self.kind, self.problems, self.left_out = self._source.kind, self._source.problems, self._source.left_out
        if self._spool is not None and self._spool.problem:
            self.problems = {**self.problems, self._spool.problem: 1}
        return rows

    def _decide(self) -> bool:
        """Ask the formats again where the file has grown; the first line must be whole."""
        size = self.path.stat().st_size
        if size == self._size or (not size and not self.ended):
            return False
        self._size = size
        reader = self._reader or _surest(self.path)
        if reader is None:
            return False
        self._source = _set(reader(self.path, self._run), (self.where, self.step_names))
        return True

    def close(self) -> None:
        """Remove what was copied."""
        if self._spool is not None:
            self._spool.close()


def _surest(path: Path) -> Any:
    """The format that is surest of `path` (of equals the one that comes with agentrl), or None.

    Whoever is sure ends the search: the others would be imported, and look through megabytes, for nothing.
    """
    look = Look(path, b"" if path.is_dir() else _head(path), path.is_dir())
    found, best = None, 0
    for name in _formats(text=bool(look.head) and b"\0" not in look.head):
        reader = plugins.find("log source", name)
        if (sure := reader.recognises(look)) > best:
            found, best = reader, sure
        if best >= SURE:
            break
    return found


def _formats(text: bool) -> Iterator[str]:
    """Names of all formats, our own first; other installed packages are asked for only if none of those is sure.

    `text`: of a file without a zero byte, which none of BINARY is.
    """
    yield from (name for name in plugins.BUILTIN["log source"] if not (text and name in BINARY))
    yield from (p.name for p in plugins.available("log source") if p.origin != plugins.OWN)


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(HEAD)


def _only_one(path: Path, newest: bool = False) -> Path:
    """The one place inside a folder that holds metrics; with `newest` the last one of the first kind that there is."""
    for name, found in (
        ("TensorBoard", sorted({f.parent for f in path.glob("*/*tfevents*")})),
        ("W&B", sorted(path.glob("wandb/offline-run-*/*.wandb"))),
        ("MLflow", sorted({f.parent for f in path.glob("**/meta.yaml") if (f.parent / "metrics").is_dir()})),
        ("trackio", sorted(path.glob("*.db"))),
        ("run", sorted(f.parent for f in path.glob("*/metrics.jsonl"))),
    ):
        if len(found) == 1 or (found and newest):
            return max(found, key=_written)
        if found:
            names = ", ".join(str(f) for f in found[:5]) + (", ..." if len(found) > 5 else "")
            raise RunError(f"{path} holds {len(found)} {name} sources; name one of them: {names}")
    raise RunError(f"{path} holds no metrics that can be read; give {_KINDS}")


def _written(path: Path) -> float:
    """When the place, or what is in it, was changed last."""
    inside = path.iterdir() if path.is_dir() else ()
    return max((p.stat().st_mtime for p in (path, *inside) if p.exists()), default=0.0)

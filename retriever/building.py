"""Build an index folder: passages, ids, what the kind needs, and the manifest last.

The folder is written beside its place and renamed when complete, so that `path` is a whole index or not there. A build
of a corpus file that is killed, or stopped by a full disk, leaves its work in a hidden folder beside `path`, and the
same command goes on from the last finished shard.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agentrl.errors import PluginError, need
from agentrl.plugins import find
from agentrl.retriever import manifest as manifests
from agentrl.retriever.base import Build, Opening
from agentrl.retriever.corpus import CorpusReader, Passage
from agentrl.retriever.encoders.base import open_encoder
from agentrl.retriever.encoders.spec import EncoderSpec
from agentrl.retriever.errors import CorpusError, IndexBuildError, RetrieverError
from agentrl.retriever.ids import write_ids
from agentrl.retriever.opening import OpenedIndex, open_fresh
from agentrl.retriever.store import PassageStore, PassageWriter, index_lines

FLAT_UP_TO = 50_000
"""Passages up to which an encoder alone means kind `flat`; above, `pq`."""
_STORED_AT_ONCE = 50_000  # passages between two states of the store that a killed build goes on from
_REPORT_EVERY = 5_000  # passages
_CHECKED = 32  # rows looked up in the finished index
_SHOWN_DUPLICATES = 3
_STATE, _LOCK = ".state.json", ".lock"

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is (0: not known)."""


@dataclass(frozen=True)
class Plan:
    """What to build. `kind` `None`: bm25 without an encoder; with one, flat or, above `FLAT_UP_TO` passages, pq."""

    kind: str | None = None
    encoder: EncoderSpec | None = None
    stemming: bool = True
    memory_bytes: int = 4 << 30
    threads: int = 1
    overwrite: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


def build_index(
    passages: Iterable[Passage],
    path: str | Path,
    plan: Plan = Plan(),
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> int:
    """Write an index of `passages` to the folder `path` and return how many there were.

    An index that is there already is replaced only with `overwrite` (here or in the plan); a folder that is something
    else is never touched. Passages of a `CorpusReader` are read where an earlier, broken build of the same plan
    stopped. `IndexBuildError`, `CorpusError` or `EncoderError` says what went wrong.
    """
    plan = replace(plan, overwrite=plan.overwrite or overwrite)
    path = Path(path).expanduser().resolve()
    _check_plan(plan)
    _check_target(path, plan.overwrite)
    told: Progress = progress or (lambda stage, done, total: None)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _work_folder(path, passages, plan) as work:
            count = _write(passages, work, plan, told)
            _install(work.folder, path)
        return count
    except RetrieverError:
        raise
    except (OSError, ValueError) as error:  # tantivy reports its I/O errors as ValueError
        again = "; the same command then goes on where it stopped" if isinstance(passages, CorpusReader) else ""
        raise IndexBuildError(
            f"{path}: cannot write the index ({error}); check free space and permissions{again}"
        ) from error


class _Work:
    """A folder being written, and how far it is."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        self.state: dict[str, Any] = {"key": key, "rows": 0, "size": 0, "line": 0, "stored": False, "kept": {}}
        with contextlib.suppress(OSError, ValueError):
            found = json.loads((folder / _STATE).read_text("utf-8"))
            if found["key"] == key:
                self.state = found

    def keep(self) -> None:
        temporary = self.folder / f"{_STATE}.new"
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(self.state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.folder / _STATE)


@contextmanager
def _work_folder(path: Path, passages: Iterable[Passage], plan: Plan) -> Iterator[_Work]:
    """The folder to write in. That of a corpus file outlives a full disk and a kill; every other is removed."""
    if not isinstance(passages, CorpusReader):
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.building-", dir=path.parent))
        try:
            folder.chmod(0o755)  # mkdtemp's 0700 would hide the index from everybody else
            yield _Work(folder, "")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return
    folder = path.parent / f".{path.name}.building"
    folder.mkdir(exist_ok=True)
    with (folder / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise IndexBuildError(
                f"{path}: another build of it is running; wait for it or choose another path"
            ) from None
        work = _Work(folder, _key(passages, plan))
        if not (folder / _STATE).exists() or work.state["rows"] == 0:
            _empty(folder)
        try:
            yield work
        except RetrieverError:
            shutil.rmtree(folder, ignore_errors=True)  # the same corpus and plan would fail again
            raise


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.name == _LOCK:
            continue
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _key(reader: CorpusReader, plan: Plan) -> str:
    """What must be equal for a broken build to be gone on with."""
    stat = reader.path.stat()
    parts = [str(reader.path.resolve()), stat.st_size, stat.st_mtime_ns, manifests.FORMAT, plan.kind, plan.stemming]
    parts += [plan.encoder, sorted(plan.options.items()), reader.skip_bad, reader.shard]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _write(passages: Iterable[Passage], work: _Work, plan: Plan, told: Progress) -> int:
    in_place = "faiss" in plan.options
    if in_place:
        count = _take_in_place(passages, work, told)
    else:
        count = _store(passages, work, told)
    if count == 0:
        raise IndexBuildError("there is not one passage to index; check the corpus file")
    corpus = passages.path.resolve() if in_place and isinstance(passages, CorpusReader) else None
    store = PassageStore(work.folder, count, corpus=corpus)
    _write_ids(store, work, passages, told)
    kind = plan.kind or ("bm25" if plan.encoder is None else "flat" if count <= FLAT_UP_TO else "pq")
    encoder = None if plan.encoder is None else open_encoder(plan.encoder, plan.threads)
    if kind == "bm25" and encoder is not None:
        raise IndexBuildError("kind bm25 takes no encoder: leave --encoder out, or choose --kind hybrid")
    parts = Build(
        work.folder,
        _Uncached(store),
        stemming=plan.stemming,
        encoder=encoder,
        memory_bytes=plan.memory_bytes,
        threads=plan.threads,
        progress=told,
        kept=work.state["kept"],
        keep=work.keep,
        options=plan.options,
    )
    options = dict(find("index", kind).write(parts))
    outside = []
    if corpus is not None:
        outside = [corpus, Path(options["faiss"])]
        options["corpus"] = str(corpus)
    described = None if encoder is None else encoder.spec.as_dict() | {"sha256": encoder.sha256}
    told("hashing", 0, 0)
    manifests.write(work.folder, manifests.Manifest(kind, count, options, described), outside)
    told("checking", 0, 0)
    check(open_fresh(work.folder, Opening(threads=plan.threads)))
    return count


class _Uncached:
    """A store that is read once from beginning to end."""

    def __init__(self, store: PassageStore) -> None:
        self._store = store

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, row: int) -> Passage:
        return self._store.uncached(row)


def _store(passages: Iterable[Passage], work: _Work, told: Progress) -> int:
    state = work.state
    reader = passages if isinstance(passages, CorpusReader) else None
    if state["stored"]:
        return int(state["rows"])
    with PassageWriter(work.folder, state["rows"], state["size"]) as writer:
        for passage in reader.read(state["line"]) if reader else passages:
            writer.append(passage)
            if writer.rows % _REPORT_EVERY == 0:
                share = reader.fraction_read if reader else 0.0
                told("reading", writer.rows, int(writer.rows / share) if share else 0)
            if reader and writer.rows % _STORED_AT_ONCE == 0:
                writer.flush()
                state |= {"rows": writer.rows, "size": writer.size, "line": reader.line}
                work.keep()
        writer.flush()
        told("reading", writer.rows, writer.rows)
    state |= {"rows": writer.rows, "size": writer.size, "stored": True}
    work.keep()
    return writer.rows


def _take_in_place(passages: Iterable[Passage], work: _Work, told: Progress) -> int:
    if not isinstance(passages, CorpusReader):
        raise IndexBuildError("a faiss file needs its corpus as a JSONL file")
    told("reading", 0, 0)
    count = index_lines(passages.path, work.folder / "offsets.u64")
    work.state |= {"rows": count}
    return count


def _write_ids(store: PassageStore, work: _Work, passages: Iterable[Passage], told: Progress) -> None:
    told("indexing ids", 0, len(store))
    twice = list(write_ids(store, work.folder))
    if not twice:
        return
    reader = passages if isinstance(passages, CorpusReader) else None
    if reader is not None and reader.skip_bad is not None:
        reader.duplicates = len(twice)
        return
    shown = "; ".join(f"id {id_!r:.60} of passages {a + 1} and {b + 1}" for id_, a, b in twice[:_SHOWN_DUPLICATES])
    where = f"{reader.path}, {_lines_of(reader, twice[0][0])}: " if reader else ""
    raise CorpusError(
        f"{where}{len(twice)} ids come twice ({shown}); give each passage an id of its own, or pass --skip-bad to keep "
        "both and open the first by id"
    )


def _lines_of(reader: CorpusReader, identifier: str) -> str:
    lines = [reader.line for passage in reader.read() if passage.id == identifier]
    return f"lines {lines[0]} and {lines[1]}" if len(lines) > 1 else f"line {lines[0]}"


def check(opened: OpenedIndex) -> None:
    """Look some rows up by id and, where there are vectors, by vector; `IndexBuildError` where one is not found."""
    count = len(opened)
    for row in sorted({round(i * (count - 1) / max(1, _CHECKED - 1)) for i in range(_CHECKED)}):
        passage = opened.passage(row)
        found = opened.document(passage.id)
        if found is None or found.id != passage.id:
            raise IndexBuildError(
                f"{opened.folder}: passage {passage.id!r} is not found by its id; build the index anew"
            )
    problem = getattr(opened.index, "problem", None)
    reason = problem() if problem is not None else None
    if reason:
        raise IndexBuildError(f"{opened.folder}: {reason}; build the index anew")


def _check_plan(plan: Plan) -> None:
    """Whether all that the plan needs is installed, before anything is begun."""
    try:
        kind = find("index", plan.kind or ("bm25" if plan.encoder is None else "flat"))
        encoder = None if plan.encoder is None else find("encoder", plan.encoder.runtime)
    except PluginError as error:
        raise IndexBuildError(str(error)) from error
    for what, part in ((f"kind {plan.kind}", kind), ("the encoder", encoder)):
        need(what, *getattr(part, "packages", ()))


def _check_target(path: Path, overwrite: bool) -> None:
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    try:
        meta = json.loads((path / manifests.META).read_text("utf-8"))
        is_index = "format" in meta and "passages" in meta
    except (OSError, ValueError, TypeError):
        is_index = False
    if not is_index:
        raise IndexBuildError(f"{path}: is there and is not an index, so it is not touched; choose another path")
    if not overwrite:
        raise IndexBuildError(f"{path}: an index is there; pass overwrite=True (`--force`) or choose another path")


def _install(folder: Path, path: Path) -> None:
    _sync_folder(folder)
    if path.exists() and any(path.iterdir()):
        retired = Path(tempfile.mkdtemp(prefix=f".{path.name}.old-", dir=path.parent))
        path.rename(retired)
        folder.rename(path)
        shutil.rmtree(retired, ignore_errors=True)
    else:
        folder.rename(path)
    for name in (_STATE, _LOCK):
        (path / name).unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

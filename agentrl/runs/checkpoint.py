"""Checkpoints on disk: complete or absent, verified before use. `checkpoints/best` is a link to the best one.

A checkpoint is written under a temporary name, every file is synced to the disk, `manifest.json` with their SHA-256
comes last, and only then the folder gets its name. No torch: what is in it is the caller's (`Engine.save`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentrl.errors import RunError, command
from agentrl.runs.files import fsync_path, strict_json, writing

FOLDER = "checkpoints"
MANIFEST = "manifest.json"
STATE = "state.json"
BEST = "best"
_NAME = re.compile(r"step-(\d{6,})")


def save_checkpoint(
    run_path: Path, step: int, write: Callable[[Path], None], state: dict[str, Any], keep: int, *, best: bool = False
) -> Path:
    """Write `run_path/checkpoints/step-NNNNNN` and prune to the newest `keep` and the best one; returns its path.

    `best` makes it the best one.

    `write(folder)` puts the model's and the optimiser's files there; `state` becomes `state.json`. Checkpoints of later
    steps belong to a past that a resume has left, and go. Raises RunError, with the earlier checkpoints as they were,
    where the disk is full.
    """
    folder = run_path / FOLDER
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        clean_leftovers(run_path)
        final = folder / f"step-{step:06d}"
        temporary = folder / f".{final.name}.tmp"
        try:
            temporary.mkdir()
            write(temporary)
            (temporary / STATE).write_text(strict_json(state))
            _seal(temporary, step)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        for rows in run_path.glob("*.jsonl"):  # the steps before the checkpoint must survive what it survives
            fsync_path(rows)
        aside = folder / f".{final.name}.old"
        if final.exists():
            os.rename(final, aside)
        os.rename(temporary, final)
        fsync_path(folder)
        shutil.rmtree(aside, ignore_errors=True)
        if best:
            _link_best(folder, final.name)
    _prune(run_path, step, keep)
    return final


def best_step(run_path: Path) -> int | None:
    """The step of the best checkpoint; None where none was kept."""
    link = run_path / FOLDER / BEST
    try:
        name = os.readlink(link) if link.is_symlink() else link.read_text().strip()
    except OSError:
        return None
    return next((step for step, path in list_checkpoints(run_path) if path.name == name), None)


def _link_best(folder: Path, name: str) -> None:
    """A relative link, so that a run may be moved; a file that holds the name where the file system has no links."""
    temporary = folder / f".{BEST}.tmp"
    temporary.unlink(missing_ok=True)
    try:
        os.symlink(name, temporary, target_is_directory=True)
    except (OSError, NotImplementedError):
        temporary.write_text(name)
    os.replace(temporary, folder / BEST)
    fsync_path(folder)


def run_of_checkpoint(path: Path) -> tuple[Path, int] | None:
    """Run directory and step of the checkpoint folder `path` (`runs/NAME/checkpoints/best`), or of the `model` folder
    in it; None for others."""
    if path.name == "model" and (path.parent / MANIFEST).is_file():
        path = path.parent
    folder = path.parent
    if folder.name != FOLDER or not (path / MANIFEST).is_file():
        return None
    step = next((n for n, p in list_checkpoints(folder.parent) if p.samefile(path)), None)
    return None if step is None else (folder.parent, step)


def latest_checkpoint(
    run_path: Path, *, at_most: int | None = None, say: Callable[[str], None] | None = None
) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that is whole, and its state; None where there is none at all.

    `at_most` looks no further than that step. A damaged checkpoint is named through `say` (default: stderr), and the
    one before it taken; RunError where every one is damaged.
    """
    say = say or (lambda line: print(line, file=sys.stderr))
    found = [c for c in list_checkpoints(run_path) if at_most is None or c[0] <= at_most]
    damaged = []
    for _, path in reversed(found):
        problems = verify(path)
        if not problems:
            return path, json.loads((path / STATE).read_text())
        damaged += problems
        say(f"checkpoint {path.name} is damaged and will not be used: {'; '.join(problems)}")
    if damaged:
        raise RunError(
            f"{run_path}: no checkpoint is whole ({'; '.join(damaged)}). Restore one from a copy, or train again: "
            f"{command('train', run_path / 'config.yaml')}"
        )
    return None


def checkpoint_at(run_path: Path, step: int | str | None = None) -> Path:
    """The verified checkpoint of `step`, the best one, or the newest whole one. RunError where there is none."""
    found = dict(list_checkpoints(run_path))
    if not found:
        raise RunError(
            f"{run_path} has no checkpoint yet: a run writes one at its end, and every log.checkpoint_every steps"
        )
    if step is None:
        newest = latest_checkpoint(run_path)
        assert newest is not None  # there is at least one, and damage raises
        return newest[0]
    if step == BEST:
        if (step := best_step(run_path)) is None:
            raise RunError(f"{run_path} has no best checkpoint: log.keep_best, for example em, keeps one")
    if step not in found:
        raise RunError(f"{run_path} has no checkpoint of step {step}; there are {', '.join(map(str, found))}")
    if problems := verify(found[step]):
        raise RunError(
            f"checkpoint {found[step].name} is damaged: {'; '.join(problems)}; take another of {list(found)}"
        )
    return found[step]


def read_checkpoint(run_path: Path, step: int | str) -> tuple[Path, dict[str, Any]]:
    """As `checkpoint_at`, with its state."""
    path = checkpoint_at(run_path, step)
    return path, json.loads((path / STATE).read_text())


def list_checkpoints(run_path: Path) -> list[tuple[int, Path]]:
    """(step, path) of every finished checkpoint, oldest first, unverified."""
    folder = run_path / FOLDER
    names = folder.iterdir() if folder.is_dir() else ()
    return sorted((int(m[1]), p) for p in names if (m := _NAME.fullmatch(p.name)) and p.is_dir())


def verify(path: Path) -> list[str]:
    """What is wrong with a checkpoint, file by file; empty where it is exactly as it was written."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        files = {str(name): (int(f["size"]), str(f["sha256"])) for name, f in manifest["files"].items()}
    except FileNotFoundError:
        return [f"{path / MANIFEST} is missing"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{path / MANIFEST} cannot be read ({error})"]
    problems = [] if STATE in files else [f"{path / MANIFEST} does not name {STATE}"]
    for name, (size, digest) in files.items():
        file = path / name
        try:
            if file.stat().st_size != size:
                problems.append(f"{file} has {file.stat().st_size} bytes instead of {size}")
            elif _sha256(file) != digest:
                problems.append(f"{file} was changed after it was written (SHA-256 differs)")
        except OSError as error:
            problems.append(f"{file} cannot be read ({error.strerror})")
    return problems


def clean_leftovers(run_path: Path) -> None:
    """Remove what a killed writer left unfinished. Only for the process that holds the run's lock."""
    folder = run_path / FOLDER
    for path in folder.glob(".step-*.old") if folder.is_dir() else ():
        final = folder / path.name[1:].removesuffix(".old")
        if final.exists():
            shutil.rmtree(path, ignore_errors=True)
        else:  # killed between the two renames: the old one is the only one of its step
            os.rename(path, final)
    for path in folder.glob(".step-*.tmp") if folder.is_dir() else ():
        shutil.rmtree(path, ignore_errors=True)


def _seal(folder: Path, step: int) -> None:
    """Sync every file, then write and sync the manifest."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    listed = {}
    for file in files:
        fsync_path(file)
        listed[file.relative_to(folder).as_posix()] = {"size": file.stat().st_size, "sha256": _sha256(file)}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"format": 1, "step": step, "files": listed}, indent=1))
    fsync_path(manifest)
    for inner in (*(p for p in folder.rglob("*") if p.is_dir()), folder):
        fsync_path(inner)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _prune(run_path: Path, step: int, keep: int) -> None:
    found, best = list_checkpoints(run_path), best_step(run_path)
    past = [(n, path) for n, path in found if n <= step]
    old = [path for n, path in past[: -max(1, keep)] if n != best]
    for path in (*old, *(path for n, path in found if n > step)):
        shutil.rmtree(path, ignore_errors=True)
    if best is not None and best > step:
        (run_path / FOLDER / BEST).unlink(missing_ok=True)

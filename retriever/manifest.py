"""`meta.json` of an index folder: what it is, what made it, and size and SHA-256 of every file.

An index is complete when its manifest is there: it is written last. Sizes are checked whenever an index is opened,
hashes where a file is handed to native code that trusts it (faiss), and all of them by `verify`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from agentrl.retriever.errors import IndexOpenError

META, PASSAGES = "meta.json", "passages.jsonl"
FORMAT = 2
_PACKAGES = ("agentrl", "tantivy", "faiss-cpu", "faiss-gpu-cu12", "onnxruntime", "tokenizers", "numpy")


@dataclass(frozen=True)
class Manifest:
    """What a folder holds. `files`: path within the folder, or an absolute one, -> (bytes, SHA-256)."""

    kind: str
    passages: int
    options: dict[str, Any] = field(default_factory=dict)
    encoder: dict[str, Any] | None = None  # an EncoderSpec and "sha256"
    files: dict[str, tuple[int, str]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def corpus(self) -> str | None:
        """SHA-256 of the passages' lines, wherever the file stands; None where the folder has none."""
        known = self.files.get(str(self.options.get("corpus", PASSAGES)))
        return None if known is None else known[1]


def write(folder: Path, manifest: Manifest, outside: Iterable[Path] = ()) -> Manifest:
    """Add every file of `folder`, and those `outside`, to `manifest`, write it there, and return it."""
    inside = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != META and p.name[0] != ".")
    files = {p.relative_to(folder).as_posix(): _state(p) for p in inside}
    files |= {str(p.resolve()): _state(p) for p in outside}
    whole = Manifest(
        manifest.kind, manifest.passages, manifest.options, manifest.encoder, files, _versions() | manifest.versions
    )
    content = {
        "format": FORMAT,
        "kind": whole.kind,
        "passages": whole.passages,
        "options": whole.options,
        "encoder": whole.encoder,
        "versions": whole.versions,
        "files": {name: {"bytes": size, "sha256": sha} for name, (size, sha) in files.items()},
    }
    with (folder / META).open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    return whole


def read(folder: Path) -> Manifest:
    """The manifest of `folder`, whose files are there in the sizes it names; `IndexOpenError` where they are not."""
    remedy = f"build one with `agentrl retriever build CORPUS {folder}`"
    if not folder.exists():
        raise IndexOpenError(f"{folder}: no such index; {remedy}")
    try:
        meta = json.loads((folder / META).read_text("utf-8"))
        if meta["format"] != FORMAT:
            raise IndexOpenError(f"{folder}: index format {meta['format']}, this version reads {FORMAT}; {remedy}")
        files = {str(name): (int(f["bytes"]), str(f["sha256"])) for name, f in meta["files"].items()}
        found = Manifest(
            str(meta["kind"]), int(meta["passages"]), meta["options"], meta["encoder"], files, dict(meta["versions"])
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise IndexOpenError(f"{folder}: not an index ({type(error).__name__}: {error}); {remedy}") from error
    for name, (size, _) in files.items():
        try:
            actual = (folder / name).stat().st_size
        except OSError as error:
            raise IndexOpenError(f"{folder}: {name} is missing ({error.strerror}); build the index anew") from error
        if actual != size:
            raise IndexOpenError(
                f"{folder / name} has {actual} bytes, the manifest says {size}; "
                "the index was copied in part or damaged: build it anew"
            )
    return found


def check_hash(folder: Path, manifest: Manifest, name: str, *, trust: bool = False) -> Path:
    """The path of the file `name`, whose SHA-256 is the manifest's; `IndexOpenError` where not, unless `trust`."""
    path = folder / name
    if trust:
        return path
    if name not in manifest.files:
        raise IndexOpenError(f"{path}: is not in the manifest; add --trust if you know where it comes from")
    if sha256(path) != manifest.files[name][1]:
        raise IndexOpenError(
            f"{path}: its SHA-256 is not the manifest's, so it is not opened; build the index anew, "
            "or add --trust if you changed it yourself"
        )
    return path


def verify(folder: Path, manifest: Manifest) -> None:
    """Read every file and compare its hash; `IndexOpenError` names the first that differs."""
    for name in manifest.files:
        check_hash(folder, manifest, name)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _state(path: Path) -> tuple[int, str]:
    return path.stat().st_size, sha256(path)


def _versions() -> dict[str, str]:
    out = {}
    for package in _PACKAGES:
        try:
            out[package] = version(package)
        except PackageNotFoundError:
            continue
    return out

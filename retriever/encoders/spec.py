"""Which encoder, and how its vectors are made: pooling, prefixes and length of the known families.

What the encoder's own folder says (sentence-transformers' `1_Pooling/config.json`, `sentence_bert_config.json`) wins
over the table, and what the caller says over both.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from agentrl.errors import nearest
from agentrl.retriever.errors import EncoderError

POOLINGS = ("mean", "cls", "last")
DTYPES = ("fp32", "bf16", "int8")
WEIGHTS = ("model.safetensors", "onnx/model.onnx", "model.onnx")
_NEEDED = ["*.json", "*.txt", "*.model", "model*.safetensors", "onnx/model.onnx", "1_Pooling/*"]
_BGE = "Represent this sentence for searching relevant passages: "


@dataclass(frozen=True)
class Family:
    """How the encoders of one family were trained to be used. From their model cards."""

    pattern: str
    pooling: str
    query_prefix: str = ""
    passage_prefix: str = ""
    max_tokens: int = 512
    normalise: bool = True


#: The first pattern found in the name wins.
FAMILIES = (
    Family(r"e5-", "mean", "query: ", "passage: "),
    Family(r"bge-m3", "cls"),
    Family(r"bge-", "cls", _BGE),
    Family(r"gte-.*v1\.5|gte-modernbert", "cls"),
    Family(r"gte-", "mean"),
    Family(r"minilm", "mean", max_tokens=256),
    Family(r"contriever", "mean", normalise=False),
)


@dataclass(frozen=True)
class EncoderSpec:
    """An encoder and how it is used. `name` is a folder or a Hugging Face id; `runtime` a name of kind `encoder`."""

    name: str
    runtime: str = "onnx"
    pooling: str = "mean"
    query_prefix: str = ""
    passage_prefix: str = ""
    max_tokens: int = 512
    normalise: bool = True
    dtype: str = "fp32"
    device: str = "cpu"

    def as_dict(self) -> dict[str, Any]:
        """For a manifest."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EncoderSpec:
        """From a manifest; keys of other versions are ignored."""
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})


def resolve(name: str, **overrides: Any) -> EncoderSpec:
    """The spec of the encoder `name`; what is not in `overrides` comes from its folder and its family.

    `EncoderError` where an override is of no use.
    """
    given = {key: value for key, value in overrides.items() if value is not None}
    for key, valid in (("pooling", POOLINGS), ("dtype", DTYPES)):
        if key in given and given[key] not in valid:
            raise EncoderError(f"{key} {given[key]!r}: choose {', '.join(valid)}{nearest(str(given[key]), valid)}")
    if given.get("max_tokens", 1) < 1:
        raise EncoderError(f"max_tokens {given['max_tokens']}: must be at least 1")
    if given.get("dtype", "fp32") == "bf16" and given.get("runtime", "onnx") == "onnx":
        raise EncoderError("dtype bf16 needs the torch runtime: add --runtime torch")
    folder = Path(name).expanduser()
    family = _family(name, folder)
    known: dict[str, Any] = {}
    if family is not None:
        known = {k: v for k, v in asdict(family).items() if k != "pattern"}
    known |= _own_settings(folder) | given
    return EncoderSpec(name=name, **known)


def locate(name: str) -> Path:
    """The folder of an encoder: `name` itself, or the snapshot of a Hugging Face id (downloaded where it is not yet).

    `EncoderError` where there is none.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise EncoderError(f"encoder {name!r}: no such folder; give a folder or a Hugging Face id")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=_NEEDED))
    except (OSError, ValueError) as error:  # httpx's and the hub's own errors are OSErrors or ValueErrors
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EncoderError(
            f"encoder {name!r}: neither a folder nor to be had from the hub ({reason}); give the path of a folder"
        ) from error


def weights_of(folder: Path) -> Path:
    """The file with the weights; `EncoderError` where there is none that can be read without pickle."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    shards = sorted(folder.glob("model-*.safetensors"))
    if shards:
        return shards[0]
    raise EncoderError(
        f"{folder}: has none of {', '.join(WEIGHTS)}; save the encoder as safetensors "
        "(weights in pickle files are not loaded)"
    )


def identity(folder: Path) -> str:
    """SHA-256 over weights and tokenizer: equal for equal encoders wherever they stand."""
    digest = hashlib.sha256()
    for path in (weights_of(folder), folder / "tokenizer.json"):
        if path.is_file():
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _family(name: str, folder: Path) -> Family | None:
    names = [name.rstrip("/").lower()]
    names.append(str(_json(folder / "config.json").get("_name_or_path", "")).lower())
    for candidate in (names[0].rpartition("/")[2], *names):
        for family in FAMILIES:
            if re.search(family.pattern, candidate):
                return family
    return None


def _own_settings(folder: Path) -> dict[str, Any]:
    out: dict[str, Any] = {}
    pooling = _json(folder / "1_Pooling" / "config.json")
    for key, name in (("cls_token", "cls"), ("mean_tokens", "mean"), ("lasttoken", "last")):
        if pooling.get(f"pooling_mode_{key}") is True:
            out["pooling"] = name
    length = _json(folder / "sentence_bert_config.json").get("max_seq_length")
    if isinstance(length, int) and length > 0:
        out["max_tokens"] = length
    return out


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}

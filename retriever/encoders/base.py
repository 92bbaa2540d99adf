"""What an encoder is, how one is opened, and what the runtimes share: tokens in groups of like length, pooling."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from agentrl.plugins import find
from agentrl.retriever.encoders.spec import EncoderSpec, identity, locate
from agentrl.retriever.errors import EncoderError

if TYPE_CHECKING:
    import numpy as np

_CORE_TOKENS = 160  # of one forward pass, padding included: its activations stay in a core's cache (2.9 against 4 ms)
_GPU_TOKENS = 16_384
_GROUP_ROWS = 256
_CHARS_PER_TOKEN = 32  # a longer text is cut before it is tokenised


class Encoder(Protocol):
    """Makes vectors. Safe to use from several threads. `make(spec, folder, threads)` of a plug-in returns one."""

    dimension: int

    def encode(self, texts: Sequence[str], prefix: str = "") -> np.ndarray:
        """(len(texts), dimension) float32, of unit length where the spec normalises."""
        ...


class OpenedEncoder:
    """An encoder with its spec and identity; what the indexes use."""

    def __init__(self, spec: EncoderSpec, encoder: Encoder, sha256: str) -> None:
        self.spec, self.sha256, self._encoder = spec, sha256, encoder
        self.dimension = encoder.dimension

    def queries(self, texts: Sequence[str]) -> np.ndarray:
        """(len(texts), dimension) float32."""
        return self._encoder.encode(texts, self.spec.query_prefix)

    def passages(self, texts: Sequence[str]) -> np.ndarray:
        """(len(texts), dimension) float32."""
        return self._encoder.encode(texts, self.spec.passage_prefix)


def open_encoder(spec: EncoderSpec, threads: int = 1) -> OpenedEncoder:
    """The encoder of `spec`, opened once per process for as long as anybody uses it.

    `EncoderError` where it cannot be had. `threads` forward passes run at a time, one core each.
    """
    make = find("encoder", spec.runtime)
    with _lock:
        key = (spec, threads)
        found = _opened.get(key)
        if found is None:
            own = getattr(make, "needs_folder", True)
            folder = locate(spec.name) if own else Path(spec.name)
            sha256 = identity(folder) if own else spec.name
            found = _opened[key] = OpenedEncoder(spec, make(spec, folder, threads), sha256)
        return found


_lock = threading.Lock()
_opened: weakref.WeakValueDictionary[tuple[EncoderSpec, int], OpenedEncoder] = weakref.WeakValueDictionary()


class Tokens:
    """A folder's `tokenizer.json`, cutting at the spec's length."""

    def __init__(self, spec: EncoderSpec, folder: Path) -> None:
        from tokenizers import Tokenizer

        path = folder / "tokenizer.json"
        if not path.is_file():
            raise EncoderError(f"{path}: no such file; save the encoder's fast tokenizer there")
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(spec.max_tokens)
        self._max_chars = _CHARS_PER_TOKEN * spec.max_tokens

    def __call__(self, texts: Sequence[str], prefix: str) -> list[list[int]]:
        """The token ids of each text after `prefix`."""
        cut = [prefix + text[: self._max_chars] for text in texts]
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(cut)]


def encode_in_groups(
    ids: Sequence[Sequence[int]], threads: int, dimension: int, forward: Callable[[Any, Any], Any], device: str = "cpu"
) -> np.ndarray:
    """`forward(input_ids (b, t) int64, mask (b, t) int64) -> (b, dimension)` over groups of like length, in order.

    Groups are spread over `threads` threads: one core a group beats two cores on one.
    """
    import numpy as np

    out = np.empty((len(ids), dimension), dtype=np.float32)

    def run(rows: list[int]) -> None:
        width = max(1, max(len(ids[row]) for row in rows))
        tokens = np.zeros((len(rows), width), dtype=np.int64)
        mask = np.zeros((len(rows), width), dtype=np.int64)
        for position, row in enumerate(rows):
            tokens[position, : len(ids[row])] = ids[row]
            mask[position, : len(ids[row])] = 1
        out[rows] = forward(tokens, mask)

    groups = list(_groups([len(i) for i in ids], threads, _CORE_TOKENS if device == "cpu" else _GPU_TOKENS))
    if threads > 1 and len(groups) > 1:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(run, groups))
    else:
        for group in groups:
            run(group)
    return out


def _groups(lengths: Sequence[int], threads: int, tokens: int) -> Iterator[list[int]]:
    most = max(1, min(_GROUP_ROWS, -(-len(lengths) // threads)))
    group: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if group and (len(group) == most or (len(group) + 1) * lengths[group[0]] > tokens):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def pooled(hidden: Any, mask: Any, spec: EncoderSpec) -> Any:
    """(b, d) float32 from the hidden states (b, t, d) and the mask (b, t): numpy arrays, padded on the right."""
    import numpy as np

    hidden = np.asarray(hidden, dtype=np.float32)
    if hidden.ndim == 2:  # the model pools by itself
        vectors = hidden
    elif spec.pooling == "cls":
        vectors = hidden[:, 0]
    elif spec.pooling == "last":
        vectors = hidden[np.arange(len(mask)), mask.sum(1) - 1]
    else:
        vectors = np.einsum("btd,bt->bd", hidden, mask.astype(np.float32)) / np.maximum(mask.sum(1), 1)[:, None]
    if spec.normalise:
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return vectors

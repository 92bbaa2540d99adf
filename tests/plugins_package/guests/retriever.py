"""An index, an encoder and a dialect of somebody's own. The index and the dialect import nothing of agentrl."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np


class NewestIndex:
    """`newest`: the passages that were added last, whatever is asked."""

    def __init__(self, passages) -> None:
        self._passages = passages

    def __len__(self) -> int:
        return len(self._passages)

    @classmethod
    def write(cls, build):
        (build.folder / "newest.txt").write_text("nothing to prepare")
        return {"newest": True}

    @classmethod
    def open(cls, folder, manifest, passages, opening):
        assert manifest.options["newest"]
        return cls(passages)

    def rank(self, queries: Sequence[str], topk: int) -> list[list[tuple[int, float]]]:
        last = len(self) - 1
        return [[(last - i, 1.0 / (1 + i)) for i in range(min(topk, len(self)))] for _ in queries]

    def search_batch(self, queries: Sequence[str], topk: int):
        from agentrl.retriever.base import Hit

        return [[Hit(self._passages[row], score) for row, score in one] for one in self.rank(queries, topk)]


class Lengths:
    """`lengths`: texts of about one length are alike."""

    needs_folder = False
    dimension = 2

    def __init__(self, spec, folder, threads) -> None:
        pass

    def encode(self, texts: Sequence[str], prefix: str = "") -> np.ndarray:
        angle = np.array([min(len(text), 400) / 400 * np.pi / 2 for text in texts])
        return np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)


class Titles:
    """`titles`: the titles alone, for whoever asks for one query."""

    content_type = "application/json"

    def takes(self, wanted) -> bool:
        return "query" in wanted.fields

    def render(self, wanted, found) -> bytes:
        return json.dumps([hit.passage.title for hit in found[0]]).encode()

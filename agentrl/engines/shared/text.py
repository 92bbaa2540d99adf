"""Token ids as text, and which ids may complete a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def shown_tokens(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Each id as its token; `<id 151700>` for one that is none: embeddings often have more rows than tokens."""
    found = tokenizer.convert_ids_to_tokens(list(ids))
    return [f"<id {i}>" if token is None else token for i, token in zip(ids, found)]


class TokenText:
    """Ids to text, and which ids may complete a stop string."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.tokens: list[str] = shown_tokens(tokenizer, range(len(tokenizer)))
        self.plain = tokenizer.backend_tokenizer.decoder is None  # a word-level tokenizer: words joined by spaces
        self._candidates: dict[tuple[str, ...], frozenset[int]] = {}

    def decode(self, ids: Sequence[int]) -> str:
        """Exactly what the environment reads; special tokens included."""
        if self.plain:
            return " ".join([self.tokens[i] for i in ids])
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def candidates(self, stop: tuple[str, ...]) -> frozenset[int]:
        """Ids whose text contains the last character of a stop string: only these can complete one."""
        if stop not in self._candidates:
            ends = {s[-1] for s in stop}
            if all(c.isascii() and c.isprintable() and c != " " for c in ends):
                found = [i for i, t in enumerate(self.tokens) if t and any(c in t for c in ends)]
            else:  # byte-level vocabularies spell other characters in their own way: look at every token
                found = list(range(len(self.tokens)))
            self._candidates[stop] = frozenset(found)
        return self._candidates[stop]

    def ends_with_stop(self, out: list[int], stop: tuple[str, ...]) -> bool:
        """Whether the token just sampled completed a stop string."""
        longest = max(map(len, stop))
        tail = self.decode(out[-(longest + 4) :])
        before = self.decode(out[-(longest + 4) : -1])
        return any(s in tail and s not in before for s in stop)

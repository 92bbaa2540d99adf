"""Text as a model would have sampled it: the token ids of an action that somebody wrote."""

from __future__ import annotations

from collections.abc import Sequence

from agentrl.rollouts.chat import ChatFormat
from agentrl.types import Sample


class Writer:
    """Actions to samples, for one tokenizer and chat format."""

    def __init__(self, chat: ChatFormat) -> None:
        self.tokenizer = chat.tokenizer
        self.end = chat.turn_ends()  # control tokens, each of which ends a turn; the usual one first

    def write(self, action: str, stop: tuple[str, ...], max_tokens: int, stored: Sequence[int] | None = None) -> Sample:
        """The action's ids: up to the token that completes a stop string, else with the token that ends a turn.

        `stored` ids are taken where they say the same. ValueError, with the reason, where a model could not have
        sampled it: text after a stop string, or too many tokens.
        """
        text = action.rstrip()
        if stored is not None and self._says(stored, action, stop):
            ids = list(stored)
        else:
            cut = min((at + len(s) for s in stop if (at := text.find(s)) >= 0), default=None)
            if cut is not None and cut < len(text):
                raise ValueError(f"the turn ends at {text[max(0, cut - 12) : cut]!r}, and {text[cut:]!r:.60} follows")
            ids = self._encoded(text, cut is None)
        if len(ids) > max_tokens:
            raise ValueError(f"it has {len(ids)} tokens, and rollout.max_tokens_per_turn is {max_tokens}")
        shown = ids[:-1] if ids[-1] in self.end else ids
        return Sample(ids, [0.0] * len(ids), self._decoded(shown), "stop")

    def nothing(self) -> Sample:
        """What is said where there is nothing to say."""
        return Sample([self.end[0] if self.end else 0], [0.0], "", "stop")

    def _encoded(self, text: str, unfinished: bool) -> list[int]:
        ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        if unfinished and self.end and ids[-1] not in self.end:
            ids.append(self.end[0])
        return ids

    def _says(self, ids: Sequence[int], action: str, stop: tuple[str, ...]) -> bool:
        """Whether stored ids are this tokenizer's for the action, and no stop string is complete before the last.

        Those of another model, or of a run with other stop strings, are not taken.
        """
        if max(ids) >= len(self.tokenizer):
            return False
        shown = list(ids[:-1] if ids[-1] in self.end else ids)
        early = self._decoded(list(ids[:-1]))
        return self._decoded(shown) == action and (len(shown) < len(ids) or not any(s in early for s in stop))

    def _decoded(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

"""A world: tasks from a seed, played in an environment that it names."""

import random
from typing import Any

from agentrl.envs.worlds.vocabulary import word_tokenizer

SPECIALS = ("<pad>", "<eos>", "<unk>")


class LettersWorld:
    """Repeat a letter."""

    env_id = "guests/Echo-v0"
    passages: tuple[dict[str, str], ...] = ()

    def __init__(self, seed: int, *, letters: str = "abc") -> None:
        self.letters = letters
        self.env_kwargs: dict[str, Any] = {"factor": 1.0}
        random.Random(seed).shuffle(rows := list(letters))
        self._rows = [{"id": c, "question": f"say {c}", "golden_answers": [c]} for c in rows]

    def questions(self, split: str) -> list[dict[str, Any]]:
        """The last letter is held out."""
        return self._rows[-1:] if split == "test" else self._rows[:-1]

    def tokenizer(self) -> Any:
        """Words: the letters and a few more."""
        words = [*SPECIALS, "say", *self.letters]
        return word_tokenizer({w: i for i, w in enumerate(words)}, SPECIALS)

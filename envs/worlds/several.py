"""Several worlds as one: the words and the warm start of a tiny model that is trained in several environments."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

Segment = tuple[str, bool]
FIRST = ("<pad>", "<eos>", "<unk>")


class Worlds:
    """Demonstrations of all `worlds` by `shares` (equal ones, where there are none), and practice in equal parts.

    The words are the union of theirs.

    Each world has `vocabulary` (word -> id) and `specials` besides what `agentrl.envs.worlds.World` asks for.
    ValueError where one has not, or is played by a chat template of its own.
    """

    def __init__(self, worlds: Sequence[Any], shares: Sequence[float] | None = None) -> None:
        for world in worlds:
            name = type(world).__name__
            if not hasattr(world, "vocabulary") or not hasattr(world, "specials"):
                raise ValueError(f"{name} has no vocabulary and specials, which several worlds of one model need")
            if getattr(getattr(world, "form", None), "template", None) is not None:
                raise ValueError(f"{name} has a chat template of its own: its episodes share no text with other worlds")
        self.worlds, self.shares = tuple(worlds), tuple(shares or [1.0] * len(worlds))
        self.specials = tuple(dict.fromkeys([*FIRST, *(s for world in worlds for s in world.specials)]))
        words = dict.fromkeys([*self.specials, *(w for world in worlds for w in world.vocabulary if not _filler(w))])
        vocabulary = [*words, *(f"<x{i}>" for i in range(-len(words) % 16))]
        self.vocabulary = {word: i for i, word in enumerate(vocabulary)}

    def encode(self, text: str) -> list[int]:
        """Ids of the worlds' own text."""
        unknown = self.vocabulary["<unk>"]
        return [self.vocabulary.get(word, unknown) for word in text.split()]

    def tokenizer(self) -> Any:
        """A word-level Hugging Face tokenizer of all words."""
        from agentrl.envs.worlds.vocabulary import word_tokenizer

        return word_tokenizer(self.vocabulary, self.specials)

    def questions(self, split: str) -> list[dict[str, Any]]:
        """Rows of all worlds; each has `world`, the number of its own."""
        return [row | {"world": i} for i, world in enumerate(self.worlds) for row in world.questions(split)]

    def example(self, rng: random.Random, questions: Sequence[Sequence[dict[str, Any]]]) -> list[Segment]:
        """A demonstration of a random question of a world that is drawn by its share."""
        i = rng.choices(range(len(self.worlds)), self.shares)[0]
        demonstration: list[Segment] = self.worlds[i].demonstration(rng.choice(questions[i]), rng)
        return demonstration

    def practice(self, rng: random.Random) -> list[Segment]:
        """Practice of a random one."""
        practice: list[Segment] = rng.choice(self.worlds).practice(rng)
        return practice


def _filler(word: str) -> bool:
    """Whether a word only fills a vocabulary up: <x0>, <x1>, ..."""
    return word.startswith("<x") and word[2:-1].isdigit()

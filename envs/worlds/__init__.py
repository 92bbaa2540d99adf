"""Tasks made from a seed: questions, passages, a tokenizer, and imperfect demonstrations for a warm start."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Protocol

from agentrl import plugins

Segment = tuple[str, bool]  # text, and whether the model wrote it


class World(Protocol):
    """What training asks of a world; a plug-in is a class of it, made with (seed, **world.kwargs).

    `tokenizer` is asked of worlds that the built-in tiny model plays, `demonstration` and `practice` where there is a
    warm start.
    """

    env_id: str
    env_kwargs: dict[str, Any]
    passages: Sequence[dict[str, str]]  # id, title, text; the search environment looks here. May be empty

    def questions(self, split: str) -> list[dict[str, Any]]:
        """Rows of "train" or "test": id, question, golden_answers."""
        ...

    def tokenizer(self) -> Any:
        """A Hugging Face tokenizer of the world's words."""
        ...

    def demonstration(self, question: dict[str, Any], rng: random.Random) -> list[Segment]:
        """An imperfect episode of a training question."""
        ...

    def practice(self, rng: random.Random) -> list[Segment]:
        """Throw-away text on which looking things up is learned."""
        ...


def make_world(kind: str, seed: int, **parameters: Any) -> Any:
    """The world `kind` ("search", "arithmetic" or a plug-in) of `seed`; the built-in ones ignore unknown parameters.

    Raises PluginError for a kind that does not exist, ValueError for parameters that make no sense.
    """
    return plugins.find("world", kind)(seed, **parameters)

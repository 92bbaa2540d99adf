"""Built-in tasks made from a seed: questions, passages, a tokenizer, and imperfect demonstrations for a warm start."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def _search(seed: int, **parameters: Any) -> Any:
    from agentrl.envs.worlds.search import SearchWorld

    return SearchWorld(seed, **parameters)


def _arithmetic(seed: int, **parameters: Any) -> Any:
    from agentrl.envs.worlds.arithmetic import ArithmeticWorld

    return ArithmeticWorld(seed, **parameters)


WORLDS: dict[str, Callable[..., Any]] = {"search": _search, "arithmetic": _arithmetic}


def make_world(kind: str, seed: int, **parameters: Any) -> Any:
    """The world `kind` ("search" or "arithmetic") of `seed`; parameters that it does not know are ignored."""
    if kind not in WORLDS:
        raise ValueError(f"world kind {kind!r} does not exist; known: {', '.join(WORLDS)}")
    return WORLDS[kind](seed, **parameters)

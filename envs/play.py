"""Play an environment in a terminal, in the agent's place."""

from __future__ import annotations

import builtins
import re
from collections.abc import Callable
from typing import Any

import gymnasium

from agentrl.envs.errors import ToolFailure

QUIT = (":quit", ":q")
# Tool output is hostile data: escape sequences would drive the terminal, direction marks would disguise the text.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ud800-\udfff\ufeff]")
MAX_SHOWN = 20_000  # characters of one observation


def printable(text: str) -> str:
    """`text` with control and direction characters written as escapes, cut after `MAX_SHOWN` characters."""
    shown = _UNPRINTABLE.sub(lambda m: ascii(m.group())[1:-1], text[:MAX_SHOWN])
    return shown + (f" … {len(text) - MAX_SHOWN:,} characters more" if len(text) > MAX_SHOWN else "")


def play(
    env: gymnasium.Env[Any, Any],
    *,
    options: dict[str, Any] | None = None,
    seed: int | None = None,
    input: Callable[[str], str] = builtins.input,
    output: Callable[[str], Any] = builtins.print,
) -> float | None:
    """Play one episode; the total reward, or None where the player left (`:quit`, Ctrl-D) or the tool failed.

    Each line typed is one action, cut after the environment's first stop string as sampling would be. `options` is the
    task; without it the environment chooses one. Raises what `env.reset` raises.
    """
    stops = tuple(getattr(env.unwrapped, "stop_strings", ()))
    observation, _ = env.reset(seed=seed, options=options)
    output(printable(observation))
    if stops:
        output(f"(an action ends at {' or '.join(stops)}; :quit leaves)")
    total, turn = 0.0, 0
    while True:
        turn += 1
        try:
            action = input(f"turn {turn} > ")
        except EOFError:
            return None
        if action.strip() in QUIT:
            return None
        ends = [at + len(s) for s in stops if (at := action.find(s)) >= 0]
        try:
            observation, reward, terminated, truncated, info = env.step(action[: min(ends)] if ends else action)
        except ToolFailure as failure:
            output(f"the tool failed: {printable(str(failure))}")
            output("in training this episode would count as failed, not as wrong")
            return None
        total += float(reward)
        if observation:
            output(printable(observation))
        if terminated or truncated:
            how = "terminated" if terminated else "truncated"
            known = {k: info[k] for k in ("kind", "answer", "correct") if k in info}
            output(f"{how} after {turn} turns, reward {total:g}" + "".join(f", {k} {v!r}" for k, v in known.items()))
            return total

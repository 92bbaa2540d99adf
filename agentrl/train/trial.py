"""What is tried before a run begins: which questions fit into the context, and one step of the environment.

No model is needed. `--dry-run` prints what comes of it; a run leaves out the questions that can only fail.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium

from agentrl.config import RolloutConfig
from agentrl.errors import DataError
from agentrl.rollouts.chat import ChatFormat, PromptTooLong, parts_of
from agentrl.rollouts.play import TOOL_ERRORS, EnvPool, number_of, text_of, unpacked
from agentrl.types import Task

LONGEST_S = 10.0  # of looking at questions that may be too long
ACTION = "<answer> a scripted answer </answer>"  # where an environment has no `example_actions`

Make = Callable[[], gymnasium.Env[str, str]]


def fitting(
    tasks: Sequence[Task], make_env: Make, chat: ChatFormat, config: RolloutConfig, key: str, say: Callable[[str], None]
) -> list[Task]:
    """The tasks whose prompt leaves room for an action; the others are counted aloud. `key`: data.train or data.test.

    Only tasks whose text could be too long are looked at, for at most LONGEST_S. Raises DataError where none fits.
    """
    room = config.max_context - config.max_tokens_per_turn
    size = {task.id: len(json.dumps(task.options, default=str)) for task in tasks}  # tokens are no more than bytes
    suspects = [task for task in sorted(tasks, key=lambda t: -size[t.id]) if size[task.id] > room // 2]
    too_long: set[str] = set()
    end, seen = time.monotonic() + LONGEST_S, 0
    with EnvPool(make_env) as pool:
        for task in suspects:
            if time.monotonic() > end:
                say(f"{key}: the {seen} longest of {len(suspects)} long questions were looked at")
                break
            try:
                pool.run(_start(pool, task, chat))
            except PromptTooLong:
                too_long.add(task.id)
            except TOOL_ERRORS:  # whether the tool is there is not the question here
                break
            seen += 1
    if too_long:
        which = ", ".join(sorted(too_long)[:3]) + (", ..." if len(too_long) > 3 else "")
        line = (
            f"{key}: {len(too_long)} of {len(tasks)} questions are longer than the context allows ({which}): "
            f"rollout.max_context = {config.max_context} less {config.max_tokens_per_turn} for an action"
        )
        if len(too_long) == len(tasks):
            raise DataError(f"{line}. Raise rollout.max_context")
        say(f"{line}; they are left out")
    return [task for task in tasks if task.id not in too_long]


async def _start(pool: EnvPool, task: Task, chat: ChatFormat) -> None:
    handle = pool.take()
    try:
        begun = await handle.reset(seed=0, options=task.options)
        observation, info = unpacked(begun, handle, "reset", ("observation", "info"))
        chat.start(parts_of(text_of(observation, handle), info))
    finally:
        pool.give(handle)


def one_step(make_env: Make, task: Task) -> str:
    """Play one step with a scripted action; a line that says what came. Whatever the environment raises passes."""

    async def play() -> str:
        handle = pool.take()
        try:
            begun = await handle.reset(seed=0, options=task.options)
            observation, _ = unpacked(begun, handle, "reset", ("observation", "info"))
            text_of(observation, handle)
            actions: Any = getattr(handle.env.unwrapped, "example_actions", None) or (ACTION,)
            answer = await handle.step(str(actions[0]))
            names = ("observation", "reward", "terminated", "truncated", "info")
            observation, reward, terminated, truncated, _ = unpacked(answer, handle, "step", names)
            shown = " ".join(text_of(observation, handle).split())[:60]
            end = "the episode ended" if terminated or truncated else f"it goes on with {shown!r}"
            return f"{handle.id}: reward {number_of(reward, handle):g} for {str(actions[0])[:60]!r}; {end}"
        finally:
            pool.give(handle)

    with EnvPool(make_env) as pool:
        return pool.run(play())

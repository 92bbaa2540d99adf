"""Our environments in GEM's interface (written for gem-llm 0.1), for the trainers that speak it.

gem.register("agentrl:Search", "agentrl.integrations.gem:Environment", env="agentrl/Search-v0", tasks="train.jsonl")
env = gem.make("agentrl:Search")
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gem

from agentrl.integrations.played import Played, plain_info, read_rows


class Environment(gem.Env):
    """`env` with the arguments of its constructor; `tasks` are rows or a JSONL file, of which the seed chooses one.

    Without `seed`, reset goes on to another task. A tool that fails raises ToolFailure. `spawn(same_state=True)` is
    left out: nothing of ours can copy what a tool remembers.
    """

    def __init__(
        self,
        env: str,
        tasks: Sequence[Mapping[str, Any]] | str | Path,
        arguments: Mapping[str, Any] | None = None,
        seed: int = 0,
        **_: Any,
    ) -> None:
        super().__init__()
        self._given = {"env": env, "tasks": tasks, "arguments": arguments}
        self._rows, self._random = read_rows(tasks), random.Random(seed)
        self._played = Played(env, arguments)
        self.stop_strings = self._played.stop_strings

    def reset(self, seed: int | None = None) -> tuple[str, dict[str, Any]]:
        """Begin a task; the process's generators stay as they are."""
        chosen = self._random.randrange(1 << 31) if seed is None else seed
        text, info = self._played.begin(self._rows[random.Random(chosen).randrange(len(self._rows))], chosen)
        return text, plain_info(info)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """One turn."""
        said = self._played.step(action)
        return said.text, float(said.reward), said.terminated, said.truncated, plain_info(said.info)

    def sample_random_action(self) -> str:
        """One of the environment's example actions."""
        return str(
            self._random.choice(getattr(self._played.env.unwrapped, "example_actions", ("<answer> a </answer>",)))
        )

    def spawn(self, same_state: bool = False, **kwargs: Any) -> Environment:
        """Another one with the same tasks."""
        if same_state:
            raise NotImplementedError(
                "same_state=True: what a tool remembers cannot be copied; spawn and reset instead"
            )
        return Environment(**{**self._given, "seed": self._random.randrange(1 << 31), **kwargs})

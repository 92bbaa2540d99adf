"""Questions of several environments, drawn by weight. No torch.

Which environment the k-th question comes from depends on the seed, k and the weights alone. With a curriculum the
weights follow the success of the episodes so far (p, the share that is correct): w x max(floor, 4 p (1 - p)), which is
largest where half of them are, because groups have the most contrast there.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from agentrl.config import CurriculumConfig
from agentrl.data.tasks import TaskStream
from agentrl.errors import DataError
from agentrl.types import Task


class MixedStream:
    """As `TaskStream`, over one stream for each environment. Where it stands is plain JSON."""

    def __init__(
        self, streams: Mapping[str, TaskStream], weights: Mapping[str, float], seed: int, curriculum: CurriculumConfig
    ) -> None:
        """`weights` are not negative, and one is positive; both mappings have the same names."""
        self.streams, self.weights, self.seed, self.curriculum = dict(streams), dict(weights), seed, curriculum
        self.drawn = 0
        self.rates: dict[str, float] = {}  # p of each environment that was played

    def shares(self) -> dict[str, float]:
        """Name -> the probability with which the next question comes from it."""
        now = {name: w * self._factor(name) for name, w in self.weights.items()}
        return {name: w / sum(now.values()) for name, w in now.items()}

    def take(self, n: int) -> list[Task]:
        """The next `n` tasks."""
        shares = self.shares()
        out = []
        for _ in range(n):
            draw = random.Random(f"{self.seed} mixture {self.drawn}")
            [name] = draw.choices(list(shares), list(shares.values()))
            out += self.streams[name].take(1)
            self.drawn += 1
        return out

    def learn(self, correct: Mapping[str, float]) -> None:
        """Take in the share of correct episodes of a step, of each environment that it has played."""
        if self.curriculum.enabled:
            for name, share in correct.items():
                before = self.rates.get(name, share)
                self.rates[name] = before + (share - before) / self.curriculum.memory

    def _factor(self, name: str) -> float:
        p = self.rates.get(name)
        return 1.0 if p is None else max(self.curriculum.floor, 4 * p * (1 - p))

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON that `load_state_dict` takes."""
        streams = {name: stream.state_dict() for name, stream in self.streams.items()}
        return {"seed": self.seed, "drawn": self.drawn, "rates": dict(self.rates), "streams": streams}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken. Raises DataError where that was of other environments or questions."""
        names = list(state.get("streams", {"one environment": 0}))
        if names != list(self.streams):
            raise DataError(
                f"the saved position is in {', '.join(names)}, and env lists {', '.join(self.streams)}; resume with "
                "the environments that the run began with"
            )
        for name, stream in self.streams.items():
            stream.load_state_dict(state["streams"][name])
        self.seed, self.drawn, self.rates = state["seed"], state["drawn"], dict(state["rates"])

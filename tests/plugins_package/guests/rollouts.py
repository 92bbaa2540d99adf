"""A format of rollouts."""

from collections.abc import Iterator
from pathlib import Path

from agentrl.runs.others.base import NO, SURE, Rollout, RolloutSource, Row, row_of, turn


class Lines(RolloutSource):
    """Lines of `STEP REWARD TEXT`, in files that end in .said."""

    suffixes = (".said",)

    @classmethod
    def recognises(cls, path: Path, first: Row | None) -> int:
        """By its name."""
        return SURE if path.suffix == ".said" else NO

    def rollouts(self) -> Iterator[Rollout]:
        """See `RolloutSource.rollouts`."""
        for i, line in enumerate(self.path.read_text(encoding="utf-8").splitlines()):
            step, reward, text = line.split(maxsplit=2)
            yield Rollout("step", int(step), row_of(f"{step}.{i}", step, [turn(text)], reward=float(reward)))

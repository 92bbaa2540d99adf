"""A monitor rule, a sink, and a format of logs."""

from collections.abc import Callable
from pathlib import Path

from agentrl.monitors.sources.base import NO, SURE, Look, Row, Source
from agentrl.monitors.view import Finding, View
from agentrl.types import Alarm


class LowReward:
    """Warns where the reward is below one half, at once."""

    name = "low_reward"

    def __call__(self, view: View) -> Finding | None:
        """See `agentrl.monitors.view.Rule`."""
        reward = view.record.metrics.get("reward", 1.0)
        if reward >= 0.5:
            return None
        return Finding("warn", f"the reward is {reward:.2f}", {"reward": (reward, 0.5)}, "train on", immediate=True)


def to_names(source: str, argument: str) -> Callable[[Alarm], None]:
    """A sink that appends the alarm's rule to the file that the argument names."""

    def write(alarm: Alarm) -> None:
        with open(argument, "a", encoding="utf-8") as file:
            file.write(f"{alarm.rule}\n")

    return write


class Ticks(Source):
    """Lines of `tick STEP REWARD`, in files that end in .ticks."""

    def __init__(self, path: Path, run: str | None = None) -> None:
        super().__init__(path, "ticks")
        self._seen = 0

    @classmethod
    def recognises(cls, look: Look) -> int:
        """By its name."""
        return SURE if look.path.suffix == ".ticks" else NO

    def poll(self, final: bool = False) -> list[Row]:
        """See `Source.poll`."""
        lines = [line.split() for line in self.path.read_text(encoding="utf-8").splitlines()[self._seen :]]
        self._seen += len(lines)
        return [Row(int(step), {"reward": float(reward)}) for _, step, reward in lines]

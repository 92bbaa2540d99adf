"""A tracker: what gets each step's metrics."""

from pathlib import Path

from agentrl.config import RunConfig
from agentrl.types import StepRecord


class LinesTracker:
    """A line of text for each step."""

    def __init__(self, config: RunConfig, run_dir: Path) -> None:
        self._file = open(run_dir / "lines.txt", "a", encoding="utf-8")  # noqa: SIM115

    def write(self, record: StepRecord) -> None:
        """One step."""
        self._file.write(f"{record.step} {record.metrics['reward']}\n")

    def close(self) -> None:
        """The end."""
        self._file.close()

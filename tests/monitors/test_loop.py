"""The monitors in a loop of one's own: the lines of docs/watch.md as they stand there."""

import json
import re
from pathlib import Path

import pytest

from agentrl.errors import AgentRLError
from agentrl.monitors import LoopMonitor
from tests.monitors.test_follow import ROWS

DOCS = Path(__file__).parent.parent.parent / "docs" / "watch.md"


def told():
    """A run that falls, under verl's names, nested and with what is no number."""
    for row in ROWS:
        values = {k: v for k, v in row.items() if k != "step"}
        yield {"actor": {"entropy": values.pop("entropy")}, "note": "text", "done": None, **values}


def test_the_five_lines_of_the_documentation_raise_the_alarms(capsys):
    (code,) = [c for c in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL) if "LoopMonitor" in c]
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) <= 5
    space = {"your_training_loop": told}
    exec(code, space)
    assert "collapse: " in capsys.readouterr().err
    assert DOCS.read_text()[:2800].count("LoopMonitor") == 2  # on the first screen


def test_alarms_are_returned_and_handed_on_once(tmp_path):
    file = tmp_path / "alarms.jsonl"
    watch = LoopMonitor(outputs=[f"file={file}"])
    found = [a for step, logs in enumerate(told()) for _ in range(2) for a in watch(step, logs)]
    watch.close()
    assert watch.monitor.seen == len(ROWS)  # a second log of a step is no step
    assert found and [json.loads(line)["id"] for line in file.read_text().splitlines()] == [a.id for a in found]


def test_names_may_be_given_and_what_is_no_step_is_passed_over():
    watch = LoopMonitor(columns={"reward": "mine"}, outputs=[])
    assert watch(0, {"mine": 0.5}) == [] and watch(1, {"val/x": 1.0}) == []
    assert watch.monitor.seen == 1 and watch.mapping.columns["reward"] == "mine"
    with pytest.raises(AgentRLError, match="sink"):
        LoopMonitor(outputs=["slak"])

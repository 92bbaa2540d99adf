import importlib.util
import io
import json
import math
import os
import sqlite3
import subprocess
import sys
import types
from dataclasses import replace

import pytest

from agentrl.errors import AgentRLError
from agentrl.monitors import Monitor, sinks
from agentrl.types import Alarm
from tests.monitors.runs import records


def alarm(level="warn", value=0.5):
    signals = {"x": {"value": value, "threshold": 1.0}}
    return Alarm("r-1", 7, "r", level, "message", signals, groups=["q1"], rollouts=["s1"], remedy="Set a=b.")


def test_console_lines():
    out = io.StringIO()
    sinks.console(out)(alarm())
    assert out.getvalue().splitlines() == ["step 7  WARN     r: message", "    questions: q1", "    Set a=b."]


def test_a_closed_console_is_not_an_error():
    closed = types.SimpleNamespace(isatty=lambda: False, write=_raise, flush=lambda: None)
    sinks.console(closed)(alarm())


def _raise(_text):
    raise BrokenPipeError


def test_json_is_strict():
    parsed = json.loads(sinks.as_json(alarm(value=math.nan)), parse_constant=pytest.fail)
    assert parsed["signals"]["x"] == {"value": None, "threshold": 1.0}
    assert parsed["rollouts"] == ["s1"]


def test_webhook_of_the_environment(receiver, monkeypatch):
    monkeypatch.delenv("AGENTRL_WEBHOOK", raising=False)
    assert sinks.webhook_from_environment() is None
    monkeypatch.setenv("AGENTRL_WEBHOOK", receiver.url)
    hook = sinks.webhook_from_environment({"run": "demo"})
    hook(alarm())
    hook.close()
    assert [got["run"] for got in receiver.got] == ["demo"]
    monkeypatch.setenv("AGENTRL_WEBHOOK", "s3cret")
    with pytest.raises(AgentRLError, match="AGENTRL_WEBHOOK") as caught:
        sinks.webhook_from_environment()
    assert "s3cret" not in str(caught.value)


def test_lines_in_a_file(tmp_path, caplog):
    write = sinks.jsonl(tmp_path / "a.jsonl")
    write(alarm())
    write(alarm("critical"))
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    assert [json.loads(line)["level"] for line in lines] == ["warn", "critical"]
    nowhere = sinks.jsonl(tmp_path / "none" / "a.jsonl")
    nowhere(alarm())
    nowhere(alarm())
    assert len(caplog.records) == 1


def fake_tracker(monkeypatch, name):
    calls = []
    module = types.ModuleType(name)
    module.AlertLevel = types.SimpleNamespace(INFO="info", WARN="warn", ERROR="error")
    module.run = object()
    module.alert = lambda **kwargs: calls.append(kwargs)
    monkeypatch.setitem(sys.modules, name, module)
    return module, calls


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_tracker_alerts(monkeypatch, name):
    _, calls = fake_tracker(monkeypatch, name)
    sink = getattr(sinks, name)()
    sink(alarm("critical"))
    assert calls == [{"title": "r at step 7", "text": "message\nSet a=b.", "level": "error"}]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_tracker_alerts_name_the_cause_once(monkeypatch, name):
    _, calls = fake_tracker(monkeypatch, name)
    sink = getattr(sinks, name)()
    sink(replace(alarm(), story="length explosion"))
    sink(replace(alarm(), story="length explosion", message="Story: length explosion: 9 times as long"))
    assert [c["text"] for c in calls] == [
        "message\nCause: length explosion\nSet a=b.",
        "Story: length explosion: 9 times as long\nSet a=b.",
    ]


def test_the_cause_is_in_trackios_own_store(tmp_path):
    if importlib.util.find_spec("trackio") is None:
        pytest.skip("make test-trackio runs it")
    code = """
import trackio
from agentrl.monitors import sinks
from agentrl.types import Alarm
trackio.init(project="causes", name="r")
signals = {"x": {"value": 0.5, "threshold": 1.0}}
sinks.trackio()(Alarm("r-1", 7, "r", "critical", "message", signals, remedy="Set a=b.", story="length explosion"))
trackio.finish()
"""  # a process of its own: trackio reads TRACKIO_DIR once, when it is imported
    environment = os.environ | {"TRACKIO_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=120)
    with sqlite3.connect(tmp_path / "causes.db") as store:
        (row,) = store.execute("select title, text, level from alerts").fetchall()
    assert row == ("r at step 7", "message\nCause: length explosion\nSet a=b.", "error")


def test_a_tracker_that_fails_does_not_stop_the_monitor(monkeypatch, caplog):
    module, _ = fake_tracker(monkeypatch, "wandb")
    module.alert = lambda **kwargs: 1 / 0
    monitor = Monitor(sinks=[sinks.wandb()])
    found = [a for r in records(30, lambda s, m: m.update(loss=math.nan)) for a in monitor.observe(r)]
    assert [a.level for a in found] == ["warn", "critical"]
    assert len(caplog.records) == 1


def test_a_missing_tracker_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ImportError, match="pip install trackio"):
        sinks.trackio()

"""Rules, log formats and sinks of other packages: by module:attribute, and by the name an installed package gives."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from agentrl import plugins
from agentrl.errors import AgentRLError, PluginError
from agentrl.monitors import sinks
from agentrl.monitors.alarms import default_rules
from agentrl.monitors.sources.base import Source
from tests.monitors import plugged
from tests.monitors.runs import records
from tests.monitors.test_watch import arguments, stagnant, write

ROOT = Path(__file__).parents[2]
TELLS = "tests.monitors.plugged:Tells"


@pytest.fixture
def package(tmp_path):
    """A folder that looks like an installed distribution with one entry point of each kind."""
    info = tmp_path / "site" / "other-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[agentrl.monitor_rule]\nloud = {TELLS}\n"
        "[agentrl.log_source]\nshouted = tests.monitors.plugged:Shouted\n"
        "[agentrl.sink]\nkept = tests.monitors.plugged:Kept\n"
    )
    return tmp_path / "site"


def command(package, *argv):
    code = (
        f"import sys; sys.path[:0] = [{str(package)!r}, {str(ROOT)!r}]\nfrom agentrl.cli import main\nsys.exit(main())"
    )
    return subprocess.run([sys.executable, "-c", code, "watch", *argv], capture_output=True, text=True, check=False)


def test_every_built_in_name_leads_to_its_own(tmp_path):
    assert [r.name for r in default_rules()] == list(plugins.BUILTIN["monitor rule"])
    for name in plugins.BUILTIN["log source"]:
        assert issubclass(plugins.find("log source", name), Source)
    for name in plugins.BUILTIN["sink"]:
        assert callable(plugins.find("sink", name))


def test_a_rule_of_ones_own_is_asked_at_every_step(tmp_path, capsys):
    from agentrl.commands import watch

    file = tmp_path / "m.jsonl"
    write(file, records(5))
    watch.run(arguments(str(file), "--once", "--json", "--rule", TELLS, "--set", "clip_share=0.25"))
    out = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(a["rule"], a["message"]) for a in out] == [("tells", "clip_share is 0.25")]


def test_a_rule_must_exist_and_have_its_own_name(tmp_path):
    with pytest.raises(PluginError, match="did you mean 'collapse'"):
        default_rules(["collaps"])
    with pytest.raises(AgentRLError, match="a rule named 'collapse' runs already"):
        default_rules(["tests.monitors.plugged:Twin"])


def test_thresholds_of_the_command_line_reach_the_rules(tmp_path, capsys):
    from agentrl.commands import watch

    file = tmp_path / "m.jsonl"
    write(file, records(30, stagnant))
    watch.run(arguments(str(file), "--once", "--json"))
    assert len(capsys.readouterr().out.splitlines()) == 1
    watch.run(arguments(str(file), "--once", "--json", "--set", "clip_share=0.08"))
    assert capsys.readouterr().out == ""
    with pytest.raises(AgentRLError, match="did you mean 'clip_share'"):
        watch.run(arguments(str(tmp_path / "none"), "--set", "clip_shar=0.08"))


def test_a_format_of_an_installed_package_is_recognised_by_its_content(tmp_path, package):
    file = tmp_path / "log.txt"
    file.write_text("".join(f"!{s} {0.5 if s < 20 else 0.01}\n" for s in range(40)))
    done = command(package, str(file), "--once", "--json")
    assert done.returncode == 0, done.stderr
    assert "shouted, 40 steps" in done.stderr
    assert "collapse" in [json.loads(line)["rule"] for line in done.stdout.splitlines()]


def test_a_format_can_be_named(tmp_path, capsys):
    from agentrl.commands import watch

    file = tmp_path / "log.txt"
    file.write_text("!1 0.5\n!2 0.5\n")
    watch.run(arguments(str(file), "--once", "--format", "tests.monitors.plugged:Shouted"))
    assert "shouted, 2 steps" in capsys.readouterr().err
    with pytest.raises(PluginError, match="no log source 'cvs'; did you mean 'csv'"):
        watch.run(arguments(str(file), "--once", "--format", "cvs"))


def test_installed_rules_and_sinks_have_names(tmp_path, package):
    file = tmp_path / "m.jsonl"
    write(file, records(3))
    target = tmp_path / "alarms.jsonl"
    done = command(package, str(file), "--once", "--rule", "loud", "--sink", f"file={target}", "--sink", "kept=x")
    assert done.returncode == 0, done.stderr
    assert json.loads(target.read_text())["rule"] == "tells"
    missing = command(package, str(file), "--once", "--rule", "lout")
    assert missing.returncode == 2 and "did you mean 'loud'" in missing.stderr


def test_a_sink_is_made_with_what_it_serves(monkeypatch):
    plugged.Kept.made.clear()
    sink = sinks.make("tests.monitors.plugged:Kept=x=y", "run-1")
    sink("alarm")
    assert plugged.Kept.made == [("run-1", "x=y", ["alarm"])]
    sinks.make("tests.monitors.plugged:broken", "run-1")("alarm")  # logged, not raised
    with pytest.raises(AgentRLError, match=r"file=alarms\.jsonl"):
        sinks.make("file", "run-1")
    monkeypatch.delenv(sinks.WEBHOOK_VARIABLE, raising=False)
    with pytest.raises(AgentRLError, match="set AGENTRL_WEBHOOK"):
        sinks.make("webhook", "run-1")
    with pytest.raises(PluginError, match="did you mean 'webhook'"):
        sinks.make("webhok", "run-1")


def test_closing_a_sink_closes_what_it_wraps():
    closed = []

    class One:
        def __call__(self, alarm):
            raise OSError

        def close(self):
            closed.append(1)

    sinks.close([sinks.Guarded(One(), "one"), print])
    assert closed == [1]

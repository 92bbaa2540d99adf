"""`Monitor` and `agentrl watch` need nothing that a plain Python lacks."""

import subprocess
import sys

BLOCK = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top != "agentrl":
            raise ImportError(f"{name} is not in the standard library")
sys.meta_path.insert(0, Blocker())
"""


def plain_python(code: str, *argv: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", BLOCK + code, *argv], capture_output=True, text=True, check=False)


def test_the_block_blocks():
    assert "not in the standard library" in plain_python("import numpy").stderr


def test_a_monitor_runs_on_the_standard_library():
    done = plain_python(
        "from agentrl.monitors import Monitor, StepRecord, sinks\n"
        "monitor = Monitor(sinks=[sinks.console(sys.stdout)])\n"
        "for step in range(30):\n"
        "    values = {'reward': 0.5 + 0.01 * (step % 3), 'clip_fraction': 0.07}\n"
        "    monitor.observe(StepRecord(step, values))\n"
    )
    assert done.stderr == "" and "collapse: Collapse ahead" in done.stdout


def test_watching_a_file_runs_on_the_standard_library(tmp_path):
    file = tmp_path / "m.csv"
    file.write_text("step,reward,clip_fraction\n" + "".join(f"{s},{0.5 + 0.01 * (s % 3)},0.07\n" for s in range(30)))
    done = plain_python(
        "from agentrl.monitors.watcher import watch\nwatch(sys.argv[1], columns=[], once=True)", str(file)
    )
    assert "collapse: Collapse ahead" in done.stdout and "30 steps" in done.stderr


HEAVY = (
    "torch",
    "numpy",
    "socket",
    "queue",
    "orjson",
    "pydantic",
    "yaml",
    "httpx",
    "sqlite3",
    "importlib.metadata",
    "email",
    "tempfile",
)


def test_watching_a_file_loads_nothing_that_it_does_not_need(tmp_path):
    file = tmp_path / "m.csv"
    file.write_text("step,reward\n" + "".join(f"{s},0.5\n" for s in range(30)))
    code = (
        "import sys\nfrom agentrl.cli import main\nmain(sys.argv[1:])\n"
        "print([n for n in sys.modules if n.startswith('agentrl.')])\n"
        f"print([n for n in {HEAVY} if n in sys.modules], len(sys.modules))"
    )
    argv = [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{code}"]
    done = subprocess.run([*argv, "watch", str(file), "--once"], capture_output=True, text=True, check=True)
    assert "agentrl.monitors.wire" not in done.stdout and "agentrl.monitors.sources.mlflow" not in done.stdout
    loaded, count = done.stdout.splitlines()[-1].rsplit(" ", 1)
    assert loaded == "[]" and int(count) < 190

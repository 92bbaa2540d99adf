"""The base installation: what works without an extra, and what a command says whose extra is missing.

Packages of the extras are hidden from a process of its own, as if they were not installed.
"""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import httpx
import pytest
from packaging.requirements import Requirement

from agentrl.commands import COMMANDS
from agentrl.errors import DISTRIBUTION, EXTRAS, MissingPackageError, installed, missing_package, need, pip_install

ROOT = Path(__file__).resolve().parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
HIDE = """
import sys
from agentrl.errors import EXTRAS
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sum(EXTRAS.values(), ()):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden())
"""
CLI = HIDE + "from agentrl.cli import main\nsys.exit(main(sys.argv[1:]))"
#: Modules of the base that are named otherwise than what is installed, or come with another package of the base.
BASE = {"yaml": "pyyaml", "anyio": "starlette", "pydantic_core": "pydantic", "typing_extensions": "pydantic"}
#: Modules of the extras, likewise.
BRINGS = {"math_verify": "math-verify", "pyarrow": "datasets", "faiss": "faiss-cpu", "qdrant_client": "qdrant-client"}
BRINGS |= {"huggingface_hub": "tokenizers"}
BRINGS |= {"grpc": "grpcio"}
#: Installed beside its extra, without its own requirements, which ask for flash-attn.
BESIDE = {"openrlhf"}
#: The program in which an alarm is raised brings its tracker; other people's trainers bring themselves.
FROM_OUTSIDE = {"trackio", "skyrl_gym", "omegaconf", "gem", "verifiers"}


def base_python(code: str, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, stdin=subprocess.DEVNULL)


def base_agentrl(*arguments: object, code: int = 0) -> str:
    """What the command prints where no extra is installed; asserts the exit code, and that there is no traceback."""
    done = base_python(CLI, *arguments)
    assert done.returncode == code and "Traceback" not in done.stderr, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


def line_of(*extras: str) -> str:
    names = ",".join(extras)
    return f"pip install '{DISTRIBUTION}[{names}]' (in a clone: pip install -e '.[{names}]')"


def requirements(*extras: str) -> set[str]:
    lines = [need for extra in extras for need in PROJECT["optional-dependencies"][extra]]
    return {Requirement(line).name for line in lines if not line.startswith(f"{DISTRIBUTION}[")}


BASE_REQUIREMENTS = {Requirement(line).name for line in PROJECT["dependencies"]}


# ------------------------------------------------------------------------------------------------------- the tables


def test_the_distribution_has_a_name_of_its_own_everywhere():
    assert PROJECT["name"] == DISTRIBUTION != "agentrl"
    for extra in PROJECT["optional-dependencies"].values():
        assert not any(line.startswith("agentrl[") for line in extra)
    files = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "scripts").iterdir()]
    files += [p for folder in ("agentrl", "envs", "retriever", "docker") for p in (ROOT / folder).rglob("*.*file")]
    files += [p for folder in ("agentrl", "envs", "retriever") for p in (ROOT / folder).rglob("*.py")]
    for file in filter(Path.is_file, files):
        text = file.read_text(encoding="utf-8")
        named = re.findall(r"(?<![\w-])agentrl\[|\[(?:lora|openrlhf)\]'", text)
        assert not named, f"{file.name}: {named}"
        for extra in re.findall(rf"{DISTRIBUTION}\[([\w,]+)\]|'\.\[([\w,]+)\]'", text):
            assert {*"".join(extra).split(",")} <= {*PROJECT["optional-dependencies"]}, f"{file.name}: {extra}"


def test_every_module_of_an_extra_comes_with_it_and_none_with_the_base():
    for extra, modules in EXTRAS.items():
        for module in set(modules) - BESIDE:
            name = module if module in requirements(extra) else BRINGS.get(module, module)
            assert name in requirements(extra) and name not in BASE_REQUIREMENTS, module


def test_every_import_is_of_the_base_or_of_an_extra():
    known = {*BASE_REQUIREMENTS, *BASE, *FROM_OUTSIDE, *sum(EXTRAS.values(), ()), "agentrl"}
    found: set[str] = set()
    for path in [p for folder in ("agentrl", "envs", "retriever") for p in (ROOT / folder).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found |= {name.partition(".")[0] for name in names}
    assert found - {*sys.stdlib_module_names} <= known
    assert {module for module in BASE if BASE[module] not in BASE_REQUIREMENTS} == set()


# -------------------------------------------------------------------------------------------------- the functions


def test_all_that_is_missing_is_named_at_once(monkeypatch):
    monkeypatch.setitem(sys.modules, "tantivy", None)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert not installed("tantivy") and not installed("no_such_module_at_all") and installed("numpy")
    with pytest.raises(MissingPackageError) as caught:
        need("this", "torch", "numpy", "tantivy")
    assert str(caught.value) == f"this needs torch, tantivy: {line_of('train', 'retriever')}"
    need("this", "numpy")
    assert pip_install("train", "retriever") == line_of("train", "retriever")


def test_only_an_extra_that_is_absent_is_offered(monkeypatch):
    monkeypatch.setitem(sys.modules, "tantivy", None)
    missing = missing_package("it", ModuleNotFoundError("no", name="tantivy.sub"))
    assert str(missing) == f"it needs tantivy: {line_of('retriever')}"
    assert missing_package("it", ModuleNotFoundError("no", name="torch.nothing")) is None  # there, but broken
    assert missing_package("it", ModuleNotFoundError("no", name="yaml")) is None  # of the base
    assert missing_package("it", ModuleNotFoundError("no", name="tantivy_other")) is None
    assert missing_package("it", ImportError("a library does not load", name="tantivy")) is None
    assert missing_package("it", ModuleNotFoundError("no name")) is None


@pytest.mark.slow
def test_the_packages_are_hidden():
    for module in sum(EXTRAS.values(), ()):
        assert f"No module named '{module}'" in base_python(HIDE + f"import {module}").stderr


# --------------------------------------------------------------------------------------------- what works without


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> Path:
    """A CSV of another trainer."""
    path = tmp_path_factory.mktemp("log") / "m.csv"
    path.write_text("step,reward,clip_fraction\n" + "".join(f"{s},{0.5 + 0.01 * (s % 3)},0.07\n" for s in range(30)))
    return path


HELP_OF_ALL = """
from agentrl.cli import main
for command in sys.argv[1:]:
    try:
        main([command, "--help"])
    except SystemExit as end:
        assert end.code == 0
"""


def test_help_watch_and_completion(log):
    assert "COMMAND" in base_agentrl("--help")
    shown = base_python(HIDE + HELP_OF_ALL, *COMMANDS)
    assert shown.returncode == 0, shown.stderr
    for command in COMMANDS:
        assert f"usage: agentrl {command}" in shown.stdout
    assert "Collapse ahead" in base_agentrl("watch", log, "--once")
    assert "_agentrl" in base_agentrl("completion", "bash")


@pytest.mark.slow
def test_commands_that_read_runs(finished_run, tmp_path):
    assert finished_run.name in base_agentrl("runs", finished_run.parent)
    assert "episodes" in base_agentrl("rollouts", "show", finished_run, "--limit", "1", "--tokens")
    assert json.loads(base_agentrl("alarms", finished_run, "--json")) is not None
    base_agentrl("report", finished_run, "--out", tmp_path / "r.html")
    assert "<html" in (tmp_path / "r.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_dashboard_serves_its_pages(finished_run):
    command = [sys.executable, "-c", CLI, "dashboard", str(finished_run), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        page = process.stdout.readline().split()[1]
        root = page.partition("/run?")[0]
        run = httpx.get(root + "/api/runs").json()["runs"][0]["id"]
        assert httpx.get(page).status_code == 200
        for what in ("run", "metrics", "config", "report"):
            assert httpx.get(f"{root}/api/{what}", params={"run": run}).status_code == 200, what
        assert httpx.get(root + "/metrics").status_code == 200
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.slow
def test_environments():
    assert "cannot be imported" not in base_agentrl("env", "list")
    assert json.loads(base_agentrl("env", "check", "agentrl/Calculator-v0", "--json"))["ok"]


RETRIEVER = """
import threading
import uvicorn
from agentrl.retriever.base import Hit
from agentrl.retriever.client import RetrieverClient
from agentrl.retriever.corpus import Passage
from agentrl.retriever.opening import open_searcher
from agentrl.retriever.server import App
class Own:
    def search_batch(self, queries, topk):
        return [[Hit(Passage("7", "Title", q), 1.0)] for q in queries]
server = uvicorn.Server(uvicorn.Config(App(Own()), port=0, log_level="error"))
threading.Thread(target=server.run, daemon=True).start()
while not server.started:
    pass
url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
client = open_searcher(url)
assert isinstance(client, RetrieverClient)
print(client.search_batch(["a question"], 1)[0][0].passage)
"""


def test_the_retrievers_client_and_the_http_part_of_its_server():
    done = base_python(HIDE + RETRIEVER)
    assert done.returncode == 0 and "a question" in done.stdout, done.stderr


def test_the_dry_run_shows_the_config_and_says_what_an_estimate_needs():
    shown = base_agentrl("train", "search_tiny", "--dry-run")
    assert "optim.lr" in shown
    needed = f"an estimate needs torch, transformers: {line_of('train')}"
    assert f"memory and time are not estimated: {needed}" in shown


# ------------------------------------------------------------------------------------------------- what does not

CORPUS = '{"id": "1", "contents": "Title\\nText"}\n'
TRAIN_AND_INDEX = f"torch, transformers, tantivy: {line_of('train', 'retriever')}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["quickstart"], f"agentrl quickstart needs {TRAIN_AND_INDEX}"),
        (["train", "search_tiny"], f"agentrl train needs {TRAIN_AND_INDEX}"),
        (
            ["train", "math_tiny", "--set", "model.lora.rank=2"],
            f"agentrl train needs torch, transformers, math_verify, pebble, peft: {line_of('train', 'math')}",
        ),
        (["plot", "surrogates"], f"agentrl plot needs torch: {line_of('train')}"),
        (["env", "play", "agentrl/Search-v0"], f"a BM25 index needs tantivy: {line_of('retriever')}"),
        (["env", "check", "agentrl/Search-v0"], f"a BM25 index needs tantivy: {line_of('retriever')}"),
        (["env", "check", "agentrl/Math-v0"], f"agentrl/Math-v0 needs math_verify, pebble: {line_of('math')}"),
        (["env", "check", "agentrl/Mcp-v0", "--set", "server=x"], f"agentrl/Mcp-v0 needs mcp: {line_of('mcp')}"),
        (["retriever", "build", "corpus.jsonl", "index"], f"a BM25 index needs tantivy: {line_of('retriever')}"),
        (["retriever", "serve", "index"], f"agentrl retriever needs httptools: {line_of('retriever')}"),
    ],
)
def test_a_command_whose_extra_is_missing_prints_the_line_to_type(arguments, wanted, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus.jsonl").write_text(CORPUS)
    assert base_agentrl(*arguments, code=2) == f"error: {wanted}\n"
    assert {p.name for p in tmp_path.iterdir()} == {"corpus.jsonl"}  # nothing was begun


@pytest.mark.slow
@pytest.mark.parametrize("command", [["resume"], ["eval"], ["lab", "delta"], ["lab", "identify"], ["lab", "tokens"]])
def test_a_command_on_a_run_does_so_too(command, finished_run):
    assert base_agentrl(*command, finished_run, code=2).endswith(f": {line_of('train')}\n")


def test_features_say_so_where_they_are_used(tmp_path):
    file = tmp_path / "train.parquet"
    file.write_bytes(b"PAR1")
    code = HIDE + (
        "from agentrl.config import DataConfig\n"
        "from agentrl.data.tasks import load_tasks\n"
        "from agentrl.envs.grading import grade\n"
        "from agentrl.errors import MissingPackageError\n"
        "def said(call):\n"
        "    try:\n        call()\n"
        "    except MissingPackageError as error:\n        print(error)\n"
        "said(lambda: load_tasks(DataConfig(train=sys.argv[1]), 'train'))\n"
        "said(lambda: load_tasks(DataConfig(train='owner/name'), 'train'))\n"
        "said(lambda: load_tasks(DataConfig(train='recipe:gsm8k'), 'train'))\n"
        "said(lambda: grade('x + 1', ['1 + x']))\n"
        "assert grade('2', ['2']).correct and not grade('3', ['2']).correct\n"
    )
    done = base_python(code, file)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"{file} needs pyarrow: {line_of('train')}",
        f"data.train: owner/name is no local file, and a hub dataset needs datasets: {line_of('train')}",
        f"recipe:gsm8k needs datasets: {line_of('train')}",
        f"the comparison of mathematical expressions needs math_verify, pebble: {line_of('math')}",
    ]


def test_doctor_calls_a_base_installation_whole(tmp_path):
    """Metadata of the hidden packages are there, but doctor asks for the modules where it would import them."""
    found = json.loads(base_agentrl("doctor", "--json", "--runs-dir", tmp_path))
    torch = next(f for f in found["findings"] if f["name"] == "torch")
    assert found["ok"] and torch["level"] == "note" and torch["remedy"] == line_of("train")

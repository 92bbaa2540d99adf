"""The directions of imports, read from the source: who may know whom, and who stays free of torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BASE = {"types", "errors"}
CONFIG = {"config", "config_base", "config_openrlhf"}
SETTINGS = BASE | CONFIG | {"config_io"}
FILES = SETTINGS | {"storage", "checkpoint"}

#: part of agentrl -> all that it may reach, directly or through others.
REACH = {
    "types": set(),
    "errors": set(),
    "config": BASE | CONFIG,
    "config_io": BASE | CONFIG,
    "batch": BASE | CONFIG,
    "algorithms": BASE | CONFIG | {"batch"},
    "engines": BASE | CONFIG | {"batch", "algorithms"},
    "rollouts": SETTINGS | {"data", "recipes"},
    "monitors": BASE | {"storage"},
    "runlog": FILES | {"console"},
    "dashboard": FILES | {"console", "runlog", "monitors", "dashboard"},
}
#: parts that nobody imports but these.
ENTRIES = {"cli": {"__main__", "commands"}, "commands": {"cli"}, "dashboard": {"commands"}, "doctor": {"commands"}}
LIGHT = ("agentrl", "envs", "retriever")
HEAVY = ("agentrl.algorithms", "agentrl.engines", "agentrl.integrations", "agentrl.lab", "agentrl.rollouts")
HEAVY_FILES = ("batch", "job", "metrics", "run", "tracing", "trainer", "warmstart", "evaluation.evaluate")


@cache
def imported(path: Path) -> frozenset[str]:
    """Modules that a file imports, anywhere in it except under TYPE_CHECKING."""

    def visit(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                for other in child.orelse:
                    yield from visit(other)
            elif isinstance(child, ast.Import):
                yield from (alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: relative imports hide who imports whom"
                yield child.module or ""
                yield from (f"{child.module}.{alias.name}" for alias in child.names)
            else:
                yield from visit(child)

    return frozenset(visit(ast.parse(path.read_text(encoding="utf-8"))))


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def parts() -> dict[str, set[str]]:
    """Part of agentrl (a module or a folder directly in it) -> the parts it imports."""
    names = {p.stem for p in (ROOT / "agentrl").glob("*.py")} | {
        p.parent.name for p in (ROOT / "agentrl").glob("*/__init__.py")
    }
    graph: dict[str, set[str]] = {}
    for path in sources("agentrl"):
        part = path.relative_to(ROOT / "agentrl").with_suffix("").parts[0]
        if part == "__init__":
            continue
        found = {m.split(".")[1] for m in imported(path) if m.startswith("agentrl.")} & names
        graph.setdefault(part, set()).update(found - {part})
    return graph


def reach(graph: dict[str, set[str]], part: str) -> set[str]:
    seen: set[str] = set()
    todo = set(graph.get(part, ()))
    while todo:
        one = todo.pop()
        if one not in seen:
            seen.add(one)
            todo |= graph.get(one, set())
    return seen


def test_the_graph_sees_imports_inside_functions_and_not_those_for_types(tmp_path):
    file = tmp_path / "x.py"
    file.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\n"
        "def f():\n    from agentrl.train.start import train_run\n"
    )
    found = set(imported(file))
    assert "agentrl.train.start" in found and "torch" not in found
    graph = parts()
    assert "errors" in graph["commands"] and "trainer" in graph["run"] and "job" in reach(graph, "cli")


@pytest.mark.parametrize("part", sorted(REACH))
def test_parts_reach_only_what_is_below_them(part):
    graph = parts()
    assert part in graph, f"agentrl/{part} is gone: mend this table"
    assert reach(graph, part) <= REACH[part]


def test_no_part_imports_itself_through_others():
    graph = parts()
    graph["commands"] = graph["commands"] - {"cli"}  # `completion` asks the command line for its own parser
    assert [part for part in graph if part in reach(graph, part)] == []


@pytest.mark.parametrize("part", sorted(ENTRIES))
def test_only_the_command_line_knows(part):
    assert {name for name, seen in parts().items() if part in seen} <= ENTRIES[part]


@pytest.mark.parametrize("package", ["envs", "retriever"])
def test_environments_and_retriever_stand_alone(package):
    allowed = {"envs": {"envs", "retriever"}, "retriever": {"retriever"}}[package]
    own = {"agentrl", "envs", "retriever", "tests", "scripts"}
    for path in sources(package):
        assert {m.split(".")[0] for m in imported(path)} & own <= allowed, path


def test_ray_and_openrlhf_are_imported_in_one_place_only():
    for path in [p for package in LIGHT for p in sources(package)]:
        if (ROOT / "agentrl" / "engines" / "openrlhf") not in path.parents:
            assert not {m.split(".")[0] for m in imported(path)} & {"ray", "openrlhf", "vllm", "deepspeed"}, path


def light_modules() -> list[str]:
    """Everything that must not load torch when it is imported."""
    out = []
    for path in [p for package in LIGHT for p in sources(package)]:
        relative = path.relative_to(ROOT).with_suffix("")
        name = ".".join(relative.parts).removesuffix(".__init__")
        heavy = name.startswith(HEAVY) or name.removeprefix("agentrl.") in HEAVY_FILES
        if not heavy and not name.endswith("__main__"):
            out.append(name)
    return out


def test_light_modules_load_no_torch():
    modules = light_modules()
    assert {"agentrl.cli", "agentrl.config", "agentrl.runs.log", "agentrl.monitors", "agentrl.envs.search"} <= set(
        modules
    )
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    if 'torch' in sys.modules or 'transformers' in sys.modules:\n"
        "        sys.exit(f'{name} loads torch or transformers')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *modules], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

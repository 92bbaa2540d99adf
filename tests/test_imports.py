"""The directions of imports, read from the source: who may know whom, and who stays free of torch.

The links agentrl/envs and agentrl/retriever are resolved. Imports inside functions count, imports for types too.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FACES = {"errors", "types", "plugins", "rewards"}
SETTINGS = FACES | {"config"}
RUNS = SETTINGS | {"runs"}

#: part of agentrl -> the parts that it may import.
MAY = {
    "errors": set(),
    "types": set(),
    "plugins": {"errors"},
    "rewards": set(),
    "console": {"errors", "types", "runs"},
    "retriever": {"errors", "plugins"},
    "envs": {"errors", "plugins", "retriever"},
    "config": FACES | {"monitors"},
    "data": SETTINGS | {"envs"},
    "batch": SETTINGS,
    "algorithms": SETTINGS | {"batch"},
    "engines": SETTINGS | {"batch", "algorithms"},
    "rollouts": SETTINGS | {"envs", "retriever"},
    "runs": SETTINGS,
    "monitors": FACES,
    "train": RUNS
    | {"console"}
    | {"data", "batch", "algorithms", "engines", "envs", "retriever", "rollouts", "monitors"},
    "integrations": FACES | {"monitors", "envs", "retriever"},
    "lab": RUNS | {"console"} | {"data", "batch", "algorithms", "engines", "rollouts", "train"},
    "dashboard": RUNS | {"console"} | {"monitors"},
    "cli": {"errors", "commands", "envs", "retriever"},
    "__main__": {"cli"},
}
#: commands may import all but the command line.
MAY["commands"] = set(MAY) - {"cli", "__main__"}

HEAVY = ("agentrl.algorithms", "agentrl.engines", "agentrl.integrations", "agentrl.lab", "agentrl.rollouts")
HEAVY += ("agentrl.batch", "agentrl.train")
LIGHT_IN_TRAIN = {"agentrl.train.statistics"}


def module_name(path: Path) -> str:
    """`envs/search.py` is agentrl.envs.search: the folder is linked into the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "agentrl" else ("agentrl", *parts)
    return ".".join(parts).removesuffix(".__init__")


@cache
def sources() -> dict[str, Path]:
    """Module name -> file, of agentrl, envs and retriever."""
    files = [p for package in ("agentrl", "envs", "retriever") for p in (ROOT / package).rglob("*.py")]
    return {module_name(p): p for p in sorted(files) if p.resolve() == p}


def imported(path: Path) -> frozenset[str]:
    """Every module that a file imports, anywhere in it; `from a import b` names a and a.b."""

    def visit(node: ast.AST) -> Iterator[str]:
        for child in ast.walk(node):
            if isinstance(child, ast.Import):
                yield from (alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: relative imports hide who imports whom"
                yield child.module or ""
                yield from (f"{child.module}.{alias.name}" for alias in child.names)

    return frozenset(visit(ast.parse(path.read_text(encoding="utf-8"))))


@cache
def modules() -> dict[str, set[str]]:
    """Module -> the modules of this repository that it imports. `from package import module` counts as the module."""
    out = {}
    for name, path in sources().items():
        found = imported(path) & sources().keys()
        inner = {m.rpartition(".")[0] for m in found}  # the package is only the way to its module
        used = {m for m in found if m not in inner or m in statements(path)}
        out[name] = used - {name}
    return out


@cache
def statements(path: Path) -> frozenset[str]:
    """Packages whose own names a file uses: `from package import name` where name is no module."""
    out = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            if any(f"{node.module}.{alias.name}" not in sources() for alias in node.names):
                out.add(node.module or "")
        elif isinstance(node, ast.Import):
            out |= {alias.name for alias in node.names}
    return frozenset(out)


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_the_links_lead_to_the_folders_at_the_top():
    for name in ("envs", "retriever"):
        link = ROOT / "agentrl" / name
        assert link.is_symlink() and link.resolve() == ROOT / name


def test_the_graph_sees_imports_inside_functions_and_those_for_types(tmp_path):
    file = tmp_path / "x.py"
    file.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\n"
        "def f():\n    from agentrl.train.start import train_run\n"
    )
    assert {"agentrl.train.start", "torch"} <= imported(file)
    graph = modules()
    assert "agentrl.train.start" in graph["agentrl.commands.quickstart"]
    assert "agentrl.retriever.base" in graph["agentrl.envs.search"]


def test_there_is_no_circle():
    try:
        TopologicalSorter(modules()).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("part", sorted(MAY))
def test_parts_import_only_what_is_below_them(part):
    found = {part_of(m) for name, used in modules().items() if part_of(name) == part for m in used}
    assert any(part_of(name) == part for name in modules()), f"agentrl/{part} is gone: correct this table"
    assert found - {part, ""} <= MAY[part]


def test_every_part_is_in_the_table():
    assert {part_of(name) for name in modules()} - {""} == set(MAY)


def test_ray_and_openrlhf_are_imported_in_one_place_only():
    for name, path in sources().items():
        if not name.startswith("agentrl.engines.openrlhf"):
            own = {"ray"} if name == "agentrl.retriever.ray_serve" else set()
            own |= {"vllm"} if name == "agentrl.engines.vllm.core" else set()
            cluster = {"ray", "openrlhf", "vllm", "deepspeed"} - own
            assert not {m.split(".")[0] for m in imported(path)} & cluster, path


def test_plugins_is_a_leaf_on_the_standard_library():
    outside = {m.split(".")[0] for m in imported(sources()["agentrl.plugins"])} - set(sys.stdlib_module_names)
    assert outside == {"agentrl"} and modules()["agentrl.plugins"] == {"agentrl.errors"}


def light_modules() -> list[str]:
    """Everything that must not load torch when it is imported."""
    return [n for n in sources() if (n in LIGHT_IN_TRAIN or not n.startswith(HEAVY)) and not n.endswith("__main__")]


def test_light_modules_load_no_torch():
    found = light_modules()
    assert {"agentrl.cli", "agentrl.config", "agentrl.runs.log", "agentrl.monitors", "agentrl.envs.search"} <= {*found}
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    if 'torch' in sys.modules or 'transformers' in sys.modules:\n"
        "        sys.exit(f'{name} loads torch or transformers')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *found], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

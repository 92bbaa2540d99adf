"""Mutants: small changes of the code that some test must notice, made and tried by mutmut (`make mutants`).

All mutants of `agentrl/algorithms` and `agentrl/train`, and a seeded sample over monitors, rollouts, environments and
retriever. Every part is tried in a copy of the tree, `.mutants/PART`, with the tests of its own folder alone; results
are kept there, and a later run tries only what it does not have yet or what has changed since.

mutmut leaves decorated functions and what stands outside functions alone, which here are the most important ones
(`@torch.no_grad()`, the lambdas of the surrogate rewards). The copy therefore spells `@d def f` as `def f; f = d(f)`
and gives every lambda outside functions a name. Constants of a module and its fields' defaults have no mutants.

A survivor that changes nothing is explained in `tests/mutants.txt`, one a line; explained ones are counted apart.

usage: python scripts/mutants.py [algorithms|train|sample ...] [--sample 300] [--seed 0]
                                 [--only 'agentrl.train.measure.*'] [--report] [--fresh]
"""

from __future__ import annotations

import argparse
import ast
import collections
import contextlib
import difflib
import fnmatch
import functools
import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / ".mutants"
EXPLANATIONS = ROOT / "tests" / "mutants.txt"
COPIED = ("agentrl", "envs", "retriever", "configs", "docs", "scripts", "tests", "pyproject.toml", "README.md")
KILLED = {1: "killed", 3: "killed", **dict.fromkeys((36, 24, -24, 152, 255), "timeout")}  # by exit code, as mutmut's


class Part(NamedTuple):
    """What is mutated together, and by which tests it must be noticed."""

    files: tuple[str, ...]  # patterns below the root
    tests: tuple[str, ...]


WHOLE = {
    "algorithms": Part(("agentrl/algorithms/*.py",), ("tests/algorithms",)),
    "train": Part(("agentrl/train/*.py",), ("tests/train",)),
}
SAMPLED = {
    "monitors": Part(("agentrl/monitors/*.py",), ("tests/monitors",)),
    "rollouts": Part(("agentrl/rollouts/*.py",), ("tests/rollouts",)),
    "envs": Part(("agentrl/envs/*.py",), ("tests/envs",)),
    "retriever": Part(("agentrl/retriever/*.py",), ("tests/retriever",)),
}
PARTS = WHOLE | SAMPLED
#: Tests that fail beside mutmut without any mutant: it is no part of the standard library, and it runs every test twice
#: in one process, where answers that were graded once are remembered.
LEFT_OUT = (
    "tests/monitors/test_imports.py",
    "tests/rollouts/test_play.py::test_slow_answers_are_wrong_and_cost_no_other_response_its_grade",
)

# Quick tests first, by what mutmut has measured; and what takes seconds to make is made once and for all mutants.
CONFTEST = """
import json, pathlib, shutil
import pytest

STATS, MODEL = pathlib.Path("mutmut-stats.json").absolute(), pathlib.Path("warm_model").absolute()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    seconds = json.loads(STATS.read_text())["duration_by_test"] if STATS.exists() else {}
    items.sort(key=lambda item: seconds.get(item.nodeid, 0.0))


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef, request):
    warm = fixturedef.argname == "warm_model"
    if warm and MODEL.exists():
        fixturedef.func = lambda tmp_path_factory: MODEL
    made = yield
    if warm and made != MODEL:
        shutil.copytree(made, MODEL)
    return made
"""


# --------------------------------------------------------------------------------------------- what mutmut can mutate


def plain(source: str) -> str:
    """`source` with the same behaviour, every decorated function decorated afterwards and every outer lambda named."""
    return _name_lambdas(_undecorated(source))


def _undecorated(source: str) -> str:
    lines = source.split("\n")
    tree = ast.parse(source)
    found = []
    for holder in [tree, *(n for n in tree.body if isinstance(n, ast.ClassDef))]:
        found += [n for n in holder.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    for node in sorted(found, key=lambda n: -n.lineno):
        decorators = [ast.get_source_segment(source, d) or "" for d in node.decorator_list]
        kept = ("staticmethod", "classmethod", "overload")
        if not decorators or any(d in kept or d.endswith((".setter", ".deleter")) for d in decorators):
            continue
        call = node.name
        for d in reversed(decorators):
            call = f"({d})({call})"
        assert node.end_lineno is not None
        lines[node.end_lineno : node.end_lineno] = [f"{' ' * node.col_offset}{node.name} = {call}"]
        first = node.decorator_list[0].lineno - 1
        lines[first : node.lineno - 1] = []
    return "\n".join(lines)


def _name_lambdas(source: str) -> str:
    tree = ast.parse(source)
    rows = [line.encode() for line in source.split("\n")]
    starts = [0]
    for row in rows:
        starts.append(starts[-1] + len(row) + 1)
    text = source.encode()
    edits: list[tuple[int, int, str]] = []
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        targets = getattr(statement, "targets", None) or [getattr(statement, "target", None)]
        name = targets[0].id if isinstance(targets[0], ast.Name) else getattr(statement, "name", "it")
        functions = []
        for n, node in enumerate(_outer_lambdas(statement), 1):
            body, arguments = ast.get_source_segment(source, node.body), ast.unparse(node.args)
            functions.append(f"def _{name}_{n}({arguments}):\n    return ({body})\n\n\n")
            assert node.end_lineno is not None and node.end_col_offset is not None
            span = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
            edits.append((*span, f"_{name}_{n}"))
        at = starts[min([statement.lineno, *(d.lineno for d in getattr(statement, "decorator_list", []))]) - 1]
        edits.append((at, at, "".join(functions)))
    for a, b, new in sorted(edits, reverse=True):
        text = text[:a] + new.encode() + text[b:]
    return text.decode()


def _outer_lambdas(statement: ast.stmt) -> list[ast.Lambda]:
    """The lambdas of a statement that are not inside a function or another lambda, in the order of the text."""
    found: list[ast.Lambda] = []
    left: list[ast.AST] = [statement]
    while left:
        node = left.pop()
        if isinstance(node, ast.Lambda):
            found.append(node)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            left += ast.iter_child_nodes(node)
    return sorted(found, key=lambda n: (n.lineno, n.col_offset))


# ------------------------------------------------------------------------------------------------------ explanations


@dataclass(frozen=True)
class Explanation:
    """Why a change of `old` to `new` in one function changes nothing; `*` stands for any file or function."""

    file: str
    function: str
    old: str
    new: str
    why: str

    def covers(self, file: str, function: str, removed: str, added: str) -> bool:
        """Whether it is this change: `added` is `removed` with one `old` replaced by `new`; spaces do not count."""
        if not fnmatch.fnmatch(file, self.file) or not fnmatch.fnmatch(function, self.function):
            return False
        removed, added, old, new = ("".join(x.split()) for x in (removed, added, self.old, self.new))
        places = [m.start() for m in re.finditer(f"(?={re.escape(old)})", removed)]
        return any(removed[:i] + new + removed[i + len(old) :] == added for i in places)


LINE = re.compile(r"(\S+) (\S+): (.+?) ==> (.*?) ?:: (\S.*)")


def read_explanations(text: str) -> list[Explanation]:
    """The lines `FILE FUNCTION: OLD ==> NEW :: why`; empty ones and comments are left out. ValueError for others."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = LINE.fullmatch(line.strip())
        if match is None:
            raise ValueError(f"line {number} is {line!r}; write: FILE FUNCTION: OLD ==> NEW :: why")
        found.append(Explanation(*match.groups()))
    return found


# ------------------------------------------------------------------------------------------------------------ mutmut


def prepare(part: str, fresh: bool) -> Path:
    """The copy of the tree in which a part is tried, up to date; what mutmut knows of it stays."""
    folder = WORK / part
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        for old in (folder / name, folder / "mutants" / name):
            if old.is_dir() and old != folder / "mutants" / "agentrl":  # where mutmut keeps what it knows
                shutil.rmtree(old)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    for link in (folder / "agentrl").iterdir():  # mutmut follows no links
        if link.is_symlink():
            link.unlink()
            shutil.copytree(ROOT / link.name, link, ignore=shutil.ignore_patterns("__pycache__"))
    for path in mutated(folder, part):
        path.write_text(plain(path.read_text()))
    (folder / "conftest.py").write_text(CONFTEST)
    settings = {
        "source_paths": ["agentrl"],
        "only_mutate": list(PARTS[part].files),
        "also_copy": [*COPIED, "conftest.py"],
        "pytest_add_cli_args": ["-p", "no:cacheprovider", "-n", "0", *(f"--deselect={test}" for test in LEFT_OUT)],
        "pytest_add_cli_args_test_selection": list(PARTS[part].tests),
        "timeout_constant": 4.0,
    }
    with (folder / "pyproject.toml").open("a") as f:
        f.write("\n[tool.mutmut]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in settings.items()))
    return folder


def mutated(folder: Path, part: str) -> list[Path]:
    """The files of a part, in order."""
    files = sorted(p for p in (folder / "agentrl").rglob("*.py"))
    return [p for p in files if any(fnmatch.fnmatch(str(p.relative_to(folder)), x) for x in PARTS[part].files)]


def names(part: str) -> list[str]:
    """Every mutant of a part, in order."""
    from mutmut.mutation.file_mutation import mutate_file_contents
    from mutmut.utils.format_utils import get_mutant_name

    found, folder = [], WORK / part
    with contextlib.chdir(folder):  # mutmut reads its settings from the current folder
        for path in mutated(folder, part):
            made = mutate_file_contents(str(path), path.read_text()).mutant_names
            found += [get_mutant_name(path.relative_to(folder), name) for name in made]
    return sorted(found)


def draw(population: Iterable[str], size: int, seed: int) -> list[str]:
    """The sample: `size` mutants, or all where there are fewer; the same for a seed whatever the order given."""
    every = sorted(population)
    return sorted(random.Random(seed).sample(every, min(size, len(every))))


class Outcome(NamedTuple):
    """One mutant that was tried."""

    name: str
    file: str
    function: str
    result: str  # killed, timeout, explained, survived
    removed: str
    added: str


def outcomes(part: str, chosen: set[str] | None, explanations: list[Explanation]) -> tuple[list[Outcome], int]:
    """What is known of a part's mutants (all, or the chosen), and how many were not tried."""
    found, waiting, folder = [], 0, WORK / part
    for path in mutated(folder, part):
        file = str(path.relative_to(folder))
        meta = folder / "mutants" / f"{file}.meta"
        if not meta.exists():
            continue
        for name, code in json.loads(meta.read_text())["exit_code_by_key"].items():
            if chosen is not None and name not in chosen:
                continue
            if code is None or code == 2:
                waiting += 1
                continue
            function = re.sub(r"^x_|__mutmut_\d+$", "", name.rpartition(".")[2]).replace("xǁ", "").replace("ǁ", ".")
            result, removed, added = KILLED.get(code, "survived"), "", ""
            if result == "survived":
                removed, added = change(folder, name, file)
                if any(e.covers(file, function, removed, added) for e in explanations):
                    result = "explained"
            found.append(Outcome(name, file, function, result, removed, added))
    return found, waiting


@functools.cache
def functions(path: Path) -> dict[str, list[str]]:
    """The lines of every function of a file, of mutants too."""
    text = path.read_text()
    lines = text.split("\n")
    found = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {n.name: lines[n.lineno - 1 : n.end_lineno] for n in found}


def change(folder: Path, name: str, file: str) -> tuple[str, str]:
    """The lines of a mutant's function that differ: those of the code, those of the mutant."""
    mine = name.rpartition(".")[2]
    original = re.sub(r"_\d+$", "_orig", mine)
    known = functions(folder / "mutants" / file)
    old, new = ([line.strip().replace(n, "f") for line in known[n]] for n in (original, mine))
    removed: list[str] = []
    added: list[str] = []
    for what, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if what != "equal":
            removed, added = removed + old[a:b], added + new[c:d]
    return "\n".join(removed), "\n".join(added)


def try_part(part: str, chosen: list[str] | None, patterns: list[str]) -> None:
    """Run mutmut on what has no result yet."""
    folder = WORK / part
    known = {o.name for o in outcomes(part, None, [])[0]} if chosen else set()
    wanted = [n for n in chosen or [] if n not in known] or patterns
    if chosen and not [n for n in chosen if n not in known]:
        return
    mutmut = Path(sys.executable).parent / "mutmut"
    with (folder / "log.txt").open("w") as log:
        subprocess.run([mutmut, "run", "--max-children", "1", *wanted], cwd=folder, stdout=log, check=False)


def report(part: str, found: list[Outcome], waiting: int) -> bool:
    """Print the part's line and its survivors; whether nothing survived and all was tried."""
    count = collections.Counter(o.result for o in found)
    killed = count["killed"] + count["timeout"]
    print(
        f"{part}: {killed} of {len(found)} killed ({count['timeout']} by a timeout), {count['explained']} explained, "
        f"{count['survived']} survived, {waiting} not tried"
    )
    for o in found:
        if o.result == "survived":
            print(f"  {o.name}\n    - {o.removed}\n    + {o.added}".replace("\n    - \n    + ", " (no test runs it)"))
    return not count["survived"] and not waiting


def main() -> int:
    """Exit code 0 where every mutant tried was killed or is explained."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("parts", nargs="*", help="algorithms, train, sample; all without any")
    parser.add_argument("--only", action="append", default=[], help="mutants by name, again: agentrl.train.measure.*")
    parser.add_argument("--sample", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", action="store_true", help="run nothing, show what is known")
    parser.add_argument("--fresh", action="store_true", help="forget what earlier runs have found")
    args = parser.parse_args()
    explanations = read_explanations(EXPLANATIONS.read_text())
    good = True
    for part in args.parts or ["algorithms", "train", "sample"]:
        if part not in (*WHOLE, "sample"):
            parser.error(f"there is no part {part!r}; known: {', '.join(WHOLE)}, sample")
        members = list(SAMPLED) if part == "sample" else [part]
        for member in members:
            if not args.report:
                prepare(member, args.fresh)
        chosen = None
        if part == "sample":
            chosen = draw([n for m in members for n in names(m)], args.sample, args.seed)
        for member in members:
            mine = None
            if chosen is not None:
                mine = [n for n in chosen if n.startswith(f"agentrl.{member}.")]
            if not args.report:
                try_part(member, mine, args.only)
            found, waiting = outcomes(member, None if mine is None else set(mine), explanations)
            good &= report(member, found, waiting)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

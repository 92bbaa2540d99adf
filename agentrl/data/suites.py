"""The seven question sets of open-domain search agents as their authors' files hold them: `--suite qa7`.

`qa7` is the test split that Search-R1 released, one table with the set's name in `data_source`; `qa7:SOURCE` is a file
of that shape, a folder with a file for each set (or with the released files), or a hub id. No torch.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from agentrl.data.tasks import SHOWN, SUFFIXES, Row, file_rows, files_of, hub_rows, read_task, source_rows, unique
from agentrl.errors import DataError, nearest
from agentrl.types import Task

#: name in `data_source` -> what tables call it; in the order of the papers' tables.
QA7 = {
    "nq": "NQ",
    "triviaqa": "TriviaQA",
    "popqa": "PopQA",
    "hotpotqa": "HotpotQA",
    "2wikimultihopqa": "2Wiki",
    "musique": "MuSiQue",
    "bamboogle": "Bamboogle",
}
IN_DOMAIN = ("nq", "hotpotqa")  # those whose training questions agents are usually trained on (arXiv 2503.09516)
RELEASED = "PeterJinGo/nq_hotpotqa_train"  # on the Hugging Face hub, split test
#: Hub ids that keep each set as a subset of its own -> which split of each is evaluated.
BY_SUBSET = {"RUC-NLPIR/FlashRAG_datasets": {name: "test" for name in ("nq", "triviaqa", "popqa", "bamboogle")}}
BY_SUBSET["RUC-NLPIR/FlashRAG_datasets"] |= {name: "dev" for name in ("hotpotqa", "2wikimultihopqa", "musique")}
MOST_BROKEN = 0.01  # share of rows that may be broken before the file is another thing than it is taken for


@dataclass(frozen=True)
class Suite:
    """Question sets in the table's order, and what of their files is in none of them."""

    sets: dict[str, list[Task]]
    broken: tuple[str, ...] = ()  # "file row 7: what is wrong with it", each of them
    others: tuple[str, ...] = ()  # names in `data_source` that are none of the sets


def is_qa7(source: str) -> bool:
    """Whether `--suite SOURCE` means the seven sets."""
    return source == "qa7" or source.startswith("qa7:")


def load_qa7(source: str, say: Callable[[str], None]) -> Suite:
    """The sets that `qa7` or `qa7:SOURCE` has, at least one.

    A row that is broken is counted and named, with file and row. DataError where more than 1 % of the rows are, where
    none is of the seven sets, or a file cannot be read.
    """
    where = source.partition(":")[2] or _local() or RELEASED
    rows: dict[str, list[Task]] = defaultdict(list)
    broken: list[str] = []
    others: dict[str, int] = defaultdict(int)
    left_out: dict[str, str] = {}
    count = 0
    for of_file, (place, row) in _rows(where):
        count += 1
        stated = row.get("data_source") if isinstance(row, Mapping) else None
        name = set_named(str(stated)) if stated is not None else of_file
        if name is None and stated is not None:
            others[str(stated)] += 1
            continue
        try:
            task = read_task(row, str(count), left_out)
            if name is None:
                raise DataError("data_source has no value, and the file is not named after one of the seven sets")
            rows[name].append(task)
        except DataError as problem:
            broken.append(f"{place}: {problem}")
    if len(broken) > MOST_BROKEN * count:
        shown = "\n".join(broken[:SHOWN])
        raise DataError(f"{len(broken)} of {count} rows of {where} are broken, so that nothing is evaluated:\n{shown}")
    if not rows:
        known = f"data_source is {', '.join(sorted(others))}" if others else "it has no rows"
        raise DataError(f"{source}: {where} holds none of {', '.join(QA7)}: {known}")
    if left_out:
        say(f"{source}: columns that can be no text are left out: {', '.join(left_out)}")
    sets = {name: unique(rows[name]) for name in QA7 if name in rows}
    return Suite(sets, tuple(broken), tuple(f"{n} rows of {name}" for name, n in sorted(others.items())))


def set_named(text: str) -> str | None:
    """The set that a `data_source` or a file's name begins with: "nq", "searchR1_nq", "HotpotQA", "musique_dev"."""
    plain = text.lower().removeprefix("searchr1_").replace("-", "_").replace(" ", "_")
    return next((name for name in QA7 if plain == name or plain.startswith(f"{name}_")), None)


def _local() -> str | None:
    """`qa7` in the folder that AGENTRL_DATASETS names, where it is there."""
    folder = Path(os.environ.get("AGENTRL_DATASETS") or "/nonexistent")
    found = [p for p in (folder / "qa7", *(folder / f"qa7{s}" for s in SUFFIXES)) if p.exists()]
    return str(found[0]) if found else None


def _rows(where: str) -> Iterator[tuple[str | None, Row]]:
    """(set that the file is named after, row) of all files."""
    path = Path(where).expanduser()
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.name.endswith(SUFFIXES) and set_named(_stem(p)))
        for file in files or files_of(path, "test", "--suite qa7"):
            yield from _named(set_named(_stem(file)), file_rows(file))
    elif where in BY_SUBSET:
        for name, split in BY_SUBSET[where].items():
            yield from _named(name, hub_rows(f"{where}:{name}", split, "--suite qa7"))
    elif path.is_file():
        yield from _named(set_named(_stem(path)), file_rows(path))
    else:
        around = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        if path.name.endswith(SUFFIXES):
            raise DataError(f"--suite qa7:{where} does not exist{nearest(path.name, around)}")
        yield from _named(None, source_rows(where, "test", "--suite qa7"))


def _stem(path: Path) -> str:
    return path.name.partition(".")[0]


def _named(name: str | None, rows: Iterable[Row]) -> Iterator[tuple[str | None, Row]]:
    return ((name, row) for row in rows)

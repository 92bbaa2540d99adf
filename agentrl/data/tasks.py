"""Questions as `Task`s, from files, folders, the Hugging Face hub or a built-in world, and an endless stream of them.

A row needs a `question` and its `golden_answers`, in any of the forms that `agentrl.data.answers` knows: rows as
Search-R1 released them and as verl writes them (`prompt`, `reward_model`, `extra_info`) work unchanged. All other
columns travel along in `Task.options`, as plain JSON (`agentrl.data.values`). Local files are read here, not by
`datasets`, so that an error can name the line and nothing asks the network. No torch.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any, Literal

from agentrl.config import DataConfig
from agentrl.data.answers import ANSWER_COLUMNS, answers_of, nothing, question_of, unpacked
from agentrl.data.recipes import RECIPES
from agentrl.data.values import NoForm, as_plain, parquet_rows
from agentrl.errors import DataError, nearest, need
from agentrl.types import Task

Split = Literal["train", "test"]
Row = tuple[str, Any]  # where it stands (for messages), and what stands there

SEARCH_R1_COLUMNS = ("prompt", "reward_model", "ability", "extra_info", "metadata")  # not passed on to the environment
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet")
SHOWN = 5  # malformed rows named in one message


def load_tasks(data: DataConfig, split: Split, say: Callable[[str], None] | None = None) -> list[Task]:
    """The questions of `data.train` or `data.test`, at most `data.limit`, in the order they are written.

    Columns that can be no text are left out, with a line through `say` (default: stderr). Raises DataError naming file
    and line of rows that are malformed or have no question or gold answer, and where there is no row at all.
    """
    source = data.train if split == "train" else data.test
    name = data.train_split if split == "train" else data.test_split
    key = f"data.{split}"
    if source is None:
        raise DataError(f"{key} is not set: give a JSONL or Parquet file, a folder, or a hub id")
    tasks: list[Task] = []
    problems: list[str] = []
    left_out: dict[str, str] = {}
    for n, (where, row) in enumerate(islice(source_rows(source, name, key), data.limit), 1):
        try:
            tasks.append(read_task(row, str(n), left_out))
        except DataError as problem:
            problems.append(f"{where}: {problem}")
            if len(problems) == SHOWN:
                problems.append("the rows after these were not checked")
                break
    if problems:
        raise DataError("\n".join(problems))
    if not tasks:
        raise DataError(f"{key}: {source} has no rows; give a set with at least one question")
    if left_out:
        columns = ", ".join(f"{column} ({kind})" for column, kind in left_out.items())
        line = f"{key}: columns that can be no text are left out: {columns}"
        print(line, file=sys.stderr) if say is None else say(line)
    return unique(tasks)


def unique(tasks: Sequence[Task]) -> list[Task]:
    """The same tasks, each with an id of its own: doubled ones get `#2`, `#3`, ... that no other task has.

    Merged sets number their rows from 0 each. A row keeps its id where it is the first to have it.
    """
    taken = {task.id for task in tasks}
    seen: Counter[str] = Counter()
    out = []
    for task in tasks:
        seen[task.id] += 1
        id = task.id
        if seen[task.id] > 1:
            while (id := f"{task.id}#{seen[task.id]}") in taken:
                seen[task.id] += 1
            taken.add(id)
        out.append(task if id == task.id else Task(id, task.options))
    return out


def questions_hash(tasks: Sequence[Task]) -> str:
    """SHA-256 of ids, questions, answers and all else that the environment is handed, in their order."""
    digest = hashlib.sha256()
    for task in tasks:
        digest.update(json.dumps([task.id, task.options], sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()


def tasks_from_world(world: Any, split: Split) -> list[Task]:
    """The questions that a built-in world asks, as tasks."""
    tasks = [Task(str(q["id"]), dict(q)) for q in world.questions(split)]
    if not tasks:
        raise DataError(f"the built-in world has no {split} questions; raise world.people or add to world.hops")
    return unique(tasks)


def subset(tasks: Sequence[Task], n: int) -> list[Task]:
    """`n` of the tasks (0, or more than there are: all), the same ones every time, in their own order.

    Drawn at random, because files are often sorted by difficulty or source; with a fixed seed that is not the run's, so
    that runs and models are compared on the same questions.
    """
    if not 0 < n < len(tasks):
        return list(tasks)
    return [tasks[i] for i in sorted(random.Random(0).sample(range(len(tasks)), n))]


# ------------------------------------------------------------------------------------------------------- one row


def read_task(row: Any, fallback_id: str, left_out: dict[str, str]) -> Task:
    """One row as a task; `left_out` gets the columns that can be no text, with their type.

    Raises DataError that says what is wrong with the row, without its place.
    """
    if isinstance(row, DataError):  # a line that is no row at all
        raise row
    if not isinstance(row, Mapping):
        raise DataError(f"a {type(row).__name__} where an object with question and golden_answers belongs")
    question = question_of(row)
    answers = answers_of(row)
    extra = unpacked(row.get("extra_info"))
    id = row.get("id")
    if nothing(id):
        id = extra.get("index") if isinstance(extra, Mapping) else None
    dropped = (*SEARCH_R1_COLUMNS, *ANSWER_COLUMNS) if "reward_model" in row else ANSWER_COLUMNS
    id = str(fallback_id if id is None else id).replace("/", "_")  # ids become parts of group ids and paths
    options = {}
    for column, value in row.items():
        if column not in dropped and not nothing(value):
            try:
                options[str(column)] = as_plain(value)
            except NoForm as kind:
                left_out[str(column)] = str(kind)
    return Task(id, options | {"id": id, "question": question, "golden_answers": answers})


# ------------------------------------------------------------------------------------------------------- sources


def source_rows(source: str, split: str, key: str) -> Iterator[Row]:
    """(place, row) of every row of a file, a folder, a recipe, or a hub dataset's split."""
    path = Path(source).expanduser()
    if source.startswith("recipe:"):
        name = source.removeprefix("recipe:")
        if name not in RECIPES:
            known = ", ".join(sorted(RECIPES)) or "none"
            raise DataError(f"{key} is {source}, which is no recipe{nearest(name, list(RECIPES))}; known: {known}")
        return ((f"{source} row {n}", row) for n, row in enumerate(RECIPES[name](split), 1))
    if path.is_file():
        return file_rows(path)
    if path.is_dir():
        return (row for file in files_of(path, split, key) for row in file_rows(file))
    if path.name.endswith(SUFFIXES) or source.startswith(("/", ".", "~")) or source.count("/") > 1:
        around = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"{key}: {source} does not exist{nearest(path.name, around)}")
    return hub_rows(source, split, key)


def files_of(folder: Path, split: str, key: str) -> list[Path]:
    """The files of one split: those whose name begins with it, or all where the folder is itself named after it."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name.endswith(SUFFIXES))
    chosen = [p for p in files if p.name.startswith(split) or split in p.relative_to(folder).parts[:-1]]
    if not chosen and folder.name == split:
        chosen = files
    if not chosen:
        seen = ", ".join(str(p.relative_to(folder)) for p in files[:8]) or "none"
        raise DataError(
            f"{key}: {folder} has no {' or '.join(SUFFIXES)} file whose name begins with {split!r}; it has {seen}. "
            f"Set data.{'train' if key == 'data.train' else 'test'}_split, or name the file itself"
        )
    return chosen


def file_rows(path: Path) -> Iterator[Row]:
    """(place, row) of every row of one file. DataError where its kind is none of `SUFFIXES`."""
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        return jsonl_rows(path)
    if path.suffix == ".json":
        return _json_rows(path)
    if path.suffix == ".parquet":
        return _parquet_rows(path)
    raise DataError(f"{path}: questions are read from {', '.join(SUFFIXES)} files, not from {path.suffix or 'this'}")


def jsonl_rows(path: Path) -> Iterator[Row]:
    """(place, row) of every line; a line that is no JSON is a DataError in the row's place."""
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        for n in count(1):
            try:
                line = file.readline()
            except (OSError, EOFError) as error:
                raise DataError(f"{path}:{n}: cannot be read: {error}") from error
            if not line:
                return
            line = line.removeprefix(b"\xef\xbb\xbf") if n == 1 else line
            if not line.strip():
                continue
            row: Any
            try:
                row = json.loads(line.decode())
            except UnicodeDecodeError as error:
                row = DataError(f"not UTF-8 ({error.reason} at byte {error.start}); convert the file")
            except (ValueError, RecursionError) as error:
                row = DataError(f"not JSON ({error}); one object per line is needed")
            yield f"{path}:{n}", row


def _json_rows(path: Path) -> Iterator[Row]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); if every line is an object of its own, name it .jsonl") from None
    if not isinstance(content, list):
        raise DataError(f"{path}: holds a {type(content).__name__} where a list of objects belongs")
    for n, row in enumerate(content, 1):
        yield f"{path} row {n}", row


def _parquet_rows(path: Path) -> Iterator[Row]:
    need(str(path), "pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            n = 0
            for batch in file.iter_batches(batch_size=1024):
                for row in parquet_rows(batch):
                    n += 1
                    yield f"{path} row {n}", row
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({error})") from error


def hub_rows(source: str, split: str, key: str) -> Iterator[Row]:
    """Rows of a hub dataset `owner/name`, or `owner/name:subset`."""
    need(f"{key}: {source} is no local file, and a hub dataset", "datasets")
    import datasets

    name, _, subset = source.partition(":")
    try:
        rows = datasets.load_dataset(name, subset or None, split=split)
    except Exception as error:  # datasets has no common error type
        reason = " ".join(str(error).split())[:300]
        raise DataError(
            f"{key}: {source} (split {split!r}) is no local file and could not be loaded from the hub: {reason}. Check "
            f"the name and {key}_split, or that this machine reaches the hub, or give a local file"
        ) from error
    return ((f"{source}[{split}] row {n}", row) for n, row in enumerate(rows, 1))


# -------------------------------------------------------------------------------------------------------- stream


class TaskStream:
    """Tasks in a new random order every epoch, without end. Where it stands is two numbers."""

    def __init__(self, tasks: Sequence[Task], seed: int) -> None:
        if not tasks:
            raise DataError("there are no questions to draw from")
        self.tasks = list(tasks)
        self.seed = seed
        self.epoch = 0
        self.position = 0  # in the epoch's order
        self._order = self._shuffled()

    def take(self, n: int) -> list[Task]:
        """The next `n` tasks; a new epoch begins where one ends."""
        out = []
        for _ in range(n):
            if self.position == len(self.tasks):
                self.epoch, self.position = self.epoch + 1, 0
                self._order = self._shuffled()
            out.append(self.tasks[self._order[self.position]])
            self.position += 1
        return out

    def state_dict(self) -> dict[str, int]:
        """Plain JSON that `load_state_dict` takes."""
        return {"seed": self.seed, "tasks": len(self.tasks), "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken. Raises DataError where that was another set of questions."""
        if "streams" in state:
            raise DataError(
                f"the saved position is in several environments ({', '.join(state['streams'])}), and env is one; "
                "resume with the environments that the run began with"
            )
        if state["tasks"] != len(self.tasks):
            raise DataError(
                f"the saved position is in a set of {state['tasks']} questions, this one has {len(self.tasks)}; resume "
                "with the data that the run began with"
            )
        self.seed, self.epoch, self.position = state["seed"], state["epoch"], state["position"]
        self._order = self._shuffled()

    def _shuffled(self) -> list[int]:
        order = list(range(len(self.tasks)))
        random.Random(f"{self.seed} {self.epoch}").shuffle(order)
        return order

"""Mathematics sets by name: `data.train: recipe:math_3to5`, `data.test: recipe:aime24`.

A recipe knows the hub id, the columns and where the answer stands; `datasets` downloads and caches. A local copy in the
same shape is used instead where the environment variable AGENTRL_DATASETS names a folder that holds it as JSONL or
Parquet: one split (`gsm8k-train.jsonl`), or all that is wanted (`aime24.jsonl`). No torch.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from agentrl.envs.grading import last_boxed
from agentrl.errors import DataError, need

Row = Mapping[str, Any]
Answer = Callable[[Row], "str | None"]


def boxed_in(column: str) -> Answer:
    """The content of the last box of a worked solution (`\\boxed{2}`, `\\fbox{2}`, `\\boxed 2`)."""

    def answer(row: Row) -> str | None:
        text = str(row[column])
        span = last_boxed(text)
        return None if span is None else text[slice(*span)]

    return answer


def after_hashes(column: str) -> Answer:
    """GSM8K's form: the solution, then `#### answer`, with thousands separators."""

    def answer(row: Row) -> str | None:
        _, mark, tail = str(row[column]).rpartition("####")
        return tail.strip().replace(",", "") if mark else None

    return answer


def column(name: str) -> Answer:
    """The answer as it stands; a whole number loses its fraction ("27.0"). Of a list all parts are asked for."""

    def answer(row: Row) -> str | None:
        value = row[name]
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, list | tuple):
            return ", ".join(str(v).strip().strip("$") for v in value)
        return None if value is None else str(value).strip()

    return answer


@dataclass(frozen=True)
class Recipe:
    """One set on the hub."""

    hub_id: str
    question: str
    answer: Answer
    subset: str | None = None
    train_split: str = "train"
    test_split: str = "test"
    keep: Callable[[Row], bool] | None = None
    tolerance: str | None = None  # a column: how far a number may be off, absolute

    def rows(self, name: str, split: str) -> Iterator[dict[str, Any]]:
        """Rows with `id`, `question`, `golden_answers` and, where the set states it, `tolerance`.

        A row without an answer is left out with a warning. DataError where more than 1 % have none, or a column is
        missing: then the set has another shape.
        """
        without: list[int] = []
        i = -1
        wanted = {"train": self.train_split, "test": self.test_split}.get(split, split)
        for i, row in enumerate(self._source(name, wanted)):
            if self.keep is not None and not self.keep(row):
                continue
            if self.question not in row:
                raise DataError(
                    f"recipe {name}: row {i} of {self.hub_id} has no column {self.question!r} but {sorted(row)}; "
                    "the set changed its shape: load it by its hub id and rename the columns"
                )
            answer = self._answer(name, i, row)
            if answer:
                yield {
                    "id": f"{name}-{i}",
                    "question": str(row[self.question]).strip(),
                    "golden_answers": [answer],
                    **self._tolerance(name, i, row),
                }
            else:
                without.append(i)
        if not without:
            return
        rows = ", ".join(map(str, without[:5])) + (", ..." if len(without) > 5 else "")
        said = f"recipe {name}: {len(without)} of {i + 1} rows of {self.hub_id} have no answer (row {rows})"
        if len(without) > (i + 1) / 100:
            raise DataError(f"{said}; the set changed its shape: load it by its hub id with columns of your own")
        warnings.warn(f"{said}; they are left out", stacklevel=2)

    def _answer(self, name: str, i: int, row: Row) -> str | None:
        try:
            return self.answer(row)
        except KeyError as e:
            raise DataError(
                f"recipe {name}: row {i} of {self.hub_id} has no column {e.args[0]!r} but {sorted(row)}; "
                "the set changed its shape: load it by its hub id and rename the columns"
            ) from e

    def _tolerance(self, name: str, i: int, row: Row) -> dict[str, float]:
        """{"tolerance": float} where the row states one; of several parts ("1e-1,1e-2") the strictest."""
        stated = None if self.tolerance is None else row.get(self.tolerance)
        if stated is None or not str(stated).strip():
            return {}
        try:
            return {"tolerance": min(float(part) for part in str(stated).split(","))}
        except ValueError as e:
            raise DataError(
                f"recipe {name}: row {i} of {self.hub_id} has {self.tolerance} = {stated!r}, which is no number; "
                "the set changed its shape: load it by its hub id and rename the columns"
            ) from e

    def _source(self, name: str, split: str) -> Iterable[Row]:
        need(f"recipe:{name}", "datasets")
        folder = os.environ.get("AGENTRL_DATASETS")
        from datasets import load_dataset

        if folder:
            for stem in (f"{name}-{split}", name):
                for suffix, kind in ((".jsonl", "json"), (".parquet", "parquet")):
                    path = Path(folder) / f"{stem}{suffix}"
                    if path.exists():
                        return load_dataset(kind, data_files=str(path), split="train")
        try:
            return load_dataset(self.hub_id, self.subset, split=split)
        except Exception as e:
            raise DataError(
                f"recipe {name}: {self.hub_id} could not be loaded ({type(e).__name__}: {e}); without a network, put "
                f"{name}.jsonl into a folder and name it in AGENTRL_DATASETS"
            ) from e


def _level_3_to_5(row: Row) -> bool:
    return str(row.get("level", "")).strip() in {"Level 3", "Level 4", "Level 5", "3", "4", "5"}


CATALOGUE: dict[str, Recipe] = {
    "math": Recipe("DigitalLearningGmbH/MATH-lighteval", "problem", boxed_in("solution")),
    "math_3to5": Recipe("DigitalLearningGmbH/MATH-lighteval", "problem", boxed_in("solution"), keep=_level_3_to_5),
    "deepscaler": Recipe("agentica-org/DeepScaleR-Preview-Dataset", "problem", column("answer"), test_split="train"),
    "gsm8k": Recipe("openai/gsm8k", "question", after_hashes("answer"), subset="main"),
    "aime24": Recipe("HuggingFaceH4/aime_2024", "problem", column("answer"), test_split="train"),
    "amc23": Recipe("math-ai/amc23", "question", column("answer"), train_split="test"),
    "math500": Recipe("HuggingFaceH4/MATH-500", "problem", column("answer"), train_split="test"),
    "minerva": Recipe("math-ai/minervamath", "question", column("answer"), train_split="test"),
    "olympiadbench": Recipe(
        "math-ai/olympiadbench", "question", column("final_answer"), train_split="test", tolerance="error"
    ),
}
EVALUATION_SUITES = ("aime24", "amc23", "math500", "minerva", "olympiadbench")  # NTHR Table 2

RECIPES: dict[str, Callable[[str], Iterable[Mapping[str, Any]]]] = {
    name: partial(recipe.rows, name) for name, recipe in CATALOGUE.items()
}

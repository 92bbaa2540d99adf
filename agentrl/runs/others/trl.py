"""TRL's `log_completions`: completions/completions_STEP.parquet with prompt, completion, rewards, extras, advantage.

A prompt or completion is a text or a conversation. The reward is the sum of the columns of numbers: the weights of the
reward functions are not in the file. Read with pyarrow, 256 rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agentrl.errors import need
from agentrl.runs.others.base import (
    NO,
    SURE,
    Rollout,
    RolloutSource,
    Row,
    answers,
    key_of,
    number,
    prompt_of_messages,
    question_of,
    row_of,
    turns_of_messages,
    turns_of_text,
    whole,
)  # fmt: skip

ROWS = 256  # at a time


class Trl(RolloutSource):
    """See the module."""

    suffixes = (".parquet",)

    @classmethod
    def recognises(cls, path: Path, first: Row | None) -> int:
        """By name: a look inside needs pyarrow, which others' folders should not."""
        return SURE if path.suffix == ".parquet" and path.name.startswith("completions_") else NO

    def rollouts(self) -> Iterator[Rollout]:
        """See the base."""
        need("reading Parquet", "pyarrow")
        import pyarrow
        import pyarrow.parquet

        i = 0
        try:
            with pyarrow.parquet.ParquetFile(self.path) as file:
                for batch in file.iter_batches(batch_size=ROWS):
                    for row in batch.to_pylist():
                        step = whole(row.get("step", self.number_in_name()))
                        if row.get("prompt") is None or row.get("completion") is None:
                            self.problem("rows without prompt and completion")
                        elif step is None:
                            self.problem("rows without a step")
                        else:
                            yield Rollout("step", step, self._row(row, step, i))
                        i += 1
        except (pyarrow.ArrowException, OSError) as error:
            self.problem(f"Parquet files that are broken (the last one: {str(error)[:120]})")

    def _row(self, row: Row, step: int, i: int) -> Row:
        question, system, prompt = _prompt(row["prompt"])
        said = row["completion"]
        turns = turns_of_messages(said) if isinstance(said, list) else turns_of_text(str(said))
        scores = {k: number(v) for k, v in row.items() if k not in ("step", "advantage") and _is_number(v)}
        known = [v for v in scores.values() if v is not None]
        return row_of(
            f"{step}.{i}",
            f"{step}/{key_of(prompt)}",
            turns,
            reward=sum(known) if known else None,
            question=question,
            system=system,
            prompt=prompt,
            expected=answers(row),
            advantage=number(row.get("advantage")),
            extras={k: v for k, v in row.items() if k not in ("step", "prompt", "completion", "advantage")},
        )


def _prompt(value: Any) -> tuple[str, str | None, str]:
    if isinstance(value, list):
        return prompt_of_messages(value)
    question, system = question_of(str(value))
    return question, system, str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

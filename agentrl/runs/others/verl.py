"""verl's `trainer.rollout_data_dir` and `validation_data_dir`: STEP.jsonl with input, output, gts, score and extras.

Texts were decoded without special tokens, so that there is no token map, and tool output is found by its tags. verl's
newer trainer adds `uid` (SAMPLE_ROLLOUT_OUTPUT); without it a group is the rollouts of one prompt.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from agentrl.runs.others.base import (
    NO,
    SURE,
    Rollout,
    RolloutSource,
    Row,
    answers,
    key_of,
    number,
    question_of,
    row_of,
    turns_of_text,
    whole,
)  # fmt: skip

_HELD_OUT = re.compile(r"val(idation)?([_-]|$)")  # the folder that `trainer.validation_data_dir` names, as people do


class Verl(RolloutSource):
    """See the module."""

    @classmethod
    def recognises(cls, path: Path, first: Row | None) -> int:
        """See the base."""
        fits = first is not None and {"input", "output"} <= first.keys() and {"score", "gts", "step"} & first.keys()
        return SURE if fits else NO

    def rollouts(self) -> Iterator[Rollout]:
        """See the base."""
        kind = "eval" if _HELD_OUT.match(self.path.parent.name) else "step"
        for i, row in enumerate(self.objects()):
            step = whole(row.get("step", self.number_in_name()))
            if not isinstance(row.get("input"), str) or not isinstance(row.get("output"), str):
                self.problem("rows without input and output")
            elif step is None:
                self.problem("rows without a step")
            else:
                yield Rollout(kind, step, self._row(row, step, i))

    def _row(self, row: Row, step: int, i: int) -> Row:
        prompt, said = row["input"], row["output"]
        question, system = question_of(prompt)
        reward = number(row.get("score"))
        verdict, told = row.get("acc"), row.get("pred")
        return row_of(
            f"{step}.{i}",
            f"{step}/{_group(row.get('uid')) or key_of(prompt)}",
            turns_of_text(said),
            reward=reward,
            correct=bool(verdict) if isinstance(verdict, bool) or verdict in (0, 1) else None,
            question=question,
            system=system,
            prompt=prompt,
            expected=answers(row),
            answer=told if isinstance(told, str) else None,
            extras={k: v for k, v in row.items() if k not in ("input", "output", "step", "score")},
        )


def _group(uid: object) -> str | None:
    """The sample's part of a uid."""
    if not isinstance(uid, str):
        return None
    parts = uid.rsplit("_", 2)
    return parts[0] if len(parts) == 3 and parts[1].isdigit() and parts[2].isdigit() else uid

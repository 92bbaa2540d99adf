"""prime-rl's token exports (`trainer.enable_token_export`): token_exports/step_N/rank_R.jsonl, one sequence a line.

Token ids with aligned columns, no text and no reward. A group is what shares its first prompt tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from agentrl.runs.others.base import (
    NO,
    SURE,
    Rollout,
    RolloutSource,
    Row,
    ints,
    key_of,
    numbers,
    row_of,
    turns_of_tokens,
    whole,
)  # fmt: skip


class TokenExport(RolloutSource):
    """See the module."""

    folder_is_step = True  # one file a rank

    @classmethod
    def recognises(cls, path: Path, first: Row | None) -> int:
        """See the base."""
        fits = first is not None and {"token_ids", "loss_mask"} <= first.keys() and "nodes" not in first
        return SURE if fits else NO

    def rollouts(self) -> Iterator[Rollout]:
        """See the base."""
        for i, row in enumerate(self.objects()):
            step, ids, mask = whole(row.get("step")), ints(row.get("token_ids")), row.get("loss_mask")
            if row.get("schema_version", 1) != 1:
                self.problem(f"rows of schema version {str(row['schema_version'])[:20]}, which is not known")
            elif step is None:
                self.problem("rows without a step")
            elif not ids or not isinstance(mask, list) or len(mask) != len(ids):
                self.problem("rows without token ids and a mask of equal length")
            else:
                yield Rollout("step", step, self._row(row, step, i, ids, mask))

    def _row(self, row: Row, step: int, i: int, ids: list[int], mask: list[object]) -> Row:
        size = len(ids)
        columns = {
            "logprobs": numbers(row.get("inference_logprobs"), size),
            "old_logprobs": numbers(row.get("trainer_logprobs"), size),
            "advantages": numbers(row.get("advantages"), size),
            "entropy": numbers(row.get("entropy"), size),
        }
        turns = turns_of_tokens(ids, mask, columns, self.words)
        first = turns[0]["prompt_ids"] if turns else ids
        prompt = self.words.text(first)
        advantages = [v for t in turns for v in t.get("advantages") or () if v is not None]
        return row_of(
            f"{step}.{row.get('rank', 0)}-{row.get('export_sequence_idx', i)}",
            f"{step}/{key_of(prompt)}",
            turns,
            question=prompt,
            prompt=prompt,
            advantage=sum(advantages) / len(advantages) if advantages else None,
            env_id=str(row.get("env_name") or ""),
        )

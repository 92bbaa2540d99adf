"""slime's `--save-debug-rollout-data`: ROLLOUT.pt and eval_ROLLOUT.pt, {"rollout_id", "samples": [Sample.to_dict()]}.

Read with `torch.load(weights_only=True)`, which makes tensors and plain values and runs nothing. A file with anything
else in it is refused, with the line that converts it where it was written.
"""

from __future__ import annotations

import shlex
import zipfile
import zlib
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
    answer_in,
    answers,
    ints,
    key_of,
    number,
    numbers,
    prompt_of_messages,
    question_of,
    row_of,
    turns_of_text,
    turns_of_tokens,
    whole,
)  # fmt: skip

HEAD = 4096  # bytes in which the names of a dump stand
CONVERT = (
    "import json, sys, torch; d = torch.load(sys.argv[1], weights_only=False); torch.save(json.loads("
    "json.dumps(d, default=lambda v: v.tolist() if hasattr(v, 'tolist') else str(v))), sys.argv[1] + '.plain.pt')"
)


class Slime(RolloutSource):
    """See the module."""

    suffixes = (".pt",)

    @classmethod
    def recognises(cls, path: Path, first: Row | None) -> int:
        """By the names of its parts in the archive; nothing is unpickled: a folder is full of other `.pt` files."""
        if path.suffix != ".pt":
            return NO
        try:
            with zipfile.ZipFile(path) as archive:
                inside = next((n for n in archive.namelist() if n.endswith("/data.pkl")), None)
                head = archive.open(inside).read(HEAD) if inside else b""
        except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error):
            return NO
        return SURE if b"samples" in head and b"rollout_id" in head else NO

    def rollouts(self) -> Iterator[Rollout]:
        """See the base."""
        data = self._load()
        samples = data.get("samples") if isinstance(data, dict) else None
        if not isinstance(samples, list):
            if data is not None:
                self.problem(".pt files without samples")
            return
        step = whole(data.get("rollout_id", self.number_in_name()))
        kind = "eval" if "eval_" in self.path.name else "step"
        for i, sample in enumerate(samples):
            if not isinstance(sample, dict):
                self.problem("samples that are no dictionaries")
            elif step is None:
                self.problem("samples without a rollout id")
            else:
                yield Rollout(kind, step, self._row(sample, step, i))

    def _load(self) -> Any:
        need("reading slime's .pt files", "torch")
        import torch

        try:
            return torch.load(self.path, map_location="cpu", weights_only=True)
        except (RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError) as error:
            self.problem(f".pt files that are broken (the last one: {' '.join(str(error).split())[:120]})")
        except Exception as error:
            if type(error).__name__ != "UnpicklingError":
                raise
            convert = f"python -c {shlex.quote(CONVERT)} {shlex.quote(self.path.name)}"
            self.problem(
                ".pt files that hold more than tensors and plain values, which are not read, as they could run code; "
                f"convert one where it was written: {convert}"
            )
        return None

    def _row(self, sample: Row, step: int, i: int) -> Row:
        prompt = sample.get("prompt")
        if isinstance(prompt, list):
            question, system, whole_prompt = prompt_of_messages(prompt)
        else:
            question, system = question_of(str(prompt or ""))
            whole_prompt = str(prompt or "")
        reward = sample.get("reward")
        group = sample.get("group_index")
        status = str(sample.get("status"))
        versions = sample.get("weight_versions")
        version = versions[-1] if isinstance(versions, list) and versions else None
        return row_of(
            f"{step}.{sample.get('index', i)}",
            f"{step}/{key_of(whole_prompt) if group is None else group}",
            self._turns(sample),
            reward=number(reward) if not isinstance(reward, dict) else None,
            question=question,
            system=system,
            prompt=whole_prompt,
            expected=answers(sample),
            truncated=status == "truncated",
            error=status if status in ("aborted", "failed") else None,
            policy_version=int(str(version)) if str(version).isdigit() else None,
            answer=answer_in(str(sample.get("response") or "")),
            extras={
                "response": sample.get("response"),
                "metadata": sample.get("metadata"),
                **({"reward": reward} if isinstance(reward, dict) else {}),
            },
        )

    def _turns(self, sample: Row) -> list[Row]:
        """By tokens where they are there; the text stands for them where both say the same number of turns."""
        texts = turns_of_text(str(sample.get("response") or ""))
        ids, size = ints(_plain(sample.get("tokens"))), whole(sample.get("response_length"))
        if not ids or not size or size > len(ids):
            return texts
        before = len(ids) - size
        mask = _plain(sample.get("loss_mask"))
        mask = mask if isinstance(mask, list) and len(mask) == size else [1] * size
        logprobs = numbers(_plain(sample.get("rollout_log_probs")), size)
        nothing: list[float | None] = [None] * before  # for the prompt
        columns = {"logprobs": None if logprobs is None else nothing + logprobs}
        turns = turns_of_tokens(ids, [0] * before + mask, columns, self.words)
        if self.words.tokenizer is None:
            if len(turns) == 1 and sample.get("response"):
                turns[0] |= {"action": sample["response"], "observation": ""}
            elif len(turns) == len(texts):
                for one, text in zip(turns, texts, strict=True):
                    one |= {"action": text["action"], "observation": text["observation"]}
        return turns


def _plain(value: Any) -> Any:
    """A tensor as a list."""
    return value.tolist() if hasattr(value, "tolist") else value

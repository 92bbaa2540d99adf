"""Three short runs whose every number is known: recorded with the code of commit 51a594a, and again on purpose since.

The second recording differs from the first in clip fractions and largest ratio (of tokens with an advantage alone), in
what weight decay of 0.01 did to norms and biases (it leaves them alone now: up to 0.1 % of a metric), and in metrics
that are new (cut_share, cut_turns, groups_equal, groups_out_of_reach; later validation and its error, which are the
evaluations'). Every token is the same. Evaluations are of a random subset of the questions, and `em` is their share of
correct responses: it was the mean reward.

The model is a random tiny Qwen2 that has learned nothing, the environment counts letters: nothing is warmed up, so that
little rounding has gathered before the first token is drawn, and few tokens are likely, so that it decides none. The
kernels for old CPUs (ATEN_CPU_CAPABILITY=default) draw the same tokens, with metrics within 1e-4 of these. Recorded,
with this file copied into a checkout of that commit, by

    PYTHONPATH=. python -m tests.train.golden OUT.json

Values change only on purpose: whoever records them again says why in the commit.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.spaces import Text

from tests.fakes import save_tiny_model
from tests.small import small_config, train_until, without_times

ENV_ID = "tests.train.golden:Golden/Letters-v0"


class Letters(gymnasium.Env):
    """Two turns; correct where the actions have an even number of letters, a fifth where it is divisible by three."""

    stop_strings = ()
    observation_space = action_space = Text(10_000)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.said = []
        return f"Question: {options['question']}\n", {}

    def step(self, action):
        self.said.append(action)
        if len(self.said) == 1:
            return " one two three ", 0.0, False, False, {"kind": "search", "valid": True}
        letters = sum(map(len, self.said))
        correct = letters % 2 == 0
        reward = 1.0 if correct else 0.2 if letters % 3 == 0 else 0.0
        return "", reward, True, False, {"kind": "answer", "valid": True, "correct": correct}


gymnasium.register("Golden/Letters-v0", Letters, disable_env_checker=True)

COMMON: dict[str, Any] = {
    "world": None,
    "env": {"id": ENV_ID},
    "rollout": {
        "prompts_per_step": 4, "group_size": 4, "max_tokens_per_turn": 4, "max_turns": 2, "max_context": 256,
        "temperature": 0.15,
    },
    "optim": {"lr": 2e-4, "weight_decay": 0.01},
    "eval": {"questions": 8, "every": 2, "temperature": 0.1},
    "log": {"rollout_groups": -1},
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "nthr": {
        "algorithm": {"nthr": {"enabled": True}, "loss": {"kl_coef": 0.05, "entropy_coef": 0.01}},
        "train": {"steps": 2, "mini_batches": 2, "epochs": 2, "delta_every": 1, "probe_every": 1, "probe_size": 2},
    },
    "llds": {
        "algorithm": {"loss": {"llds": {"enabled": True}}},
        "train": {"steps": 2, "mini_batches": 2, "delta_every": 2, "probe_every": 2, "probe_size": 2},
    },
    "grpo": {  # one update a batch: scores come from its own forward pass
        "train": {"steps": 2, "mini_batches": 1, "delta_every": 1, "probe_every": 0},
    },
}
QUESTIONS = ("where was Ada Rowan born?", "which city is it?", "one two three", "what is known?", "a region of Varn")


def played(folder: Path, case: str, **changes: Any) -> Path:
    """The run directory of a case, under `folder`; `changes` go to `model`."""
    save_tiny_model(folder / "model")
    rows = [{"question": f"{q} {i}", "golden_answers": ["x"]} for i in range(4) for q in QUESTIONS]
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"data": {split: str(folder / f"{split}.jsonl") for split in ("train", "test")}}
    config = small_config(folder, folder / "model", **COMMON, **CASES[case], **data, model=changes)
    return train_until(config)


def numbers(
    run: Path, metrics: Callable[..., Any], evals: Callable[..., Any], rollouts: Callable[..., Any]
) -> dict[str, Any]:
    """What is compared of a run, with the readers of a run directory."""
    rows = without_times(metrics(run))
    return {
        "metrics": rows,
        "evals": without_times(evals(run)),
        "rewards": [[row["reward"] for row in rollouts(run, n)] for n in range(len(rows))],
        "tokens": [[list(_ids(row)) for row in rollouts(run, n)] for n in range(len(rows))],
    }


def _ids(row: dict[str, Any]) -> Iterator[int]:
    for turn in row["turns"]:
        yield from turn["action_ids"]


def main() -> None:
    """Record."""
    try:
        from agentrl.runs.read import read_evals, read_metrics, read_rollouts
    except ImportError:  # where commit 51a594a had them
        from agentrl.runlog import read_evals, read_metrics, read_rollouts
    with tempfile.TemporaryDirectory() as folder:
        got = {
            case: numbers(played(Path(folder) / case, case), read_metrics, read_evals, read_rollouts) for case in CASES
        }
    Path(sys.argv[1]).write_text(json.dumps(got, separators=(",", ":")))


if __name__ == "__main__":
    main()

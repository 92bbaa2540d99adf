"""Other people's environments in agentrl's own training loop."""

import json
import sys

import pytest

from agentrl.config import RunConfig
from agentrl.train.start import train_run
from tests.fakes import save_tiny_model


@pytest.mark.slow
def test_a_step_is_trained_in_an_environment_behind_a_pipe_and_its_failures_are_counted(tmp_path):
    model = save_tiny_model(tmp_path / "model")
    rows = [{"id": f"q{i}", "question": "how many?", "golden_answers": ["4"]} for i in range(4)]
    rows[3]["how"] = "raise"  # at reset, in all episodes of this row
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    kwargs = {"env": "tests.envs.others.theirs:Skyrl", "python": sys.executable}
    config = RunConfig.model_validate({
        "name": "theirs", "model": {"path": str(model), "device": "cpu", "threads": 1},
        "data": {"train": str(tmp_path / "rows.jsonl")},
        "env": {"id": "agentrl/SkyRLGym-v0", "kwargs": kwargs},
        "rollout": {
            "prompts_per_step": 4, "group_size": 2, "max_tokens_per_turn": 8, "max_context": 256, "outage_wait_s": 0,
            "max_turns": 4,
        },
        "train": {"steps": 1}, "eval": {"questions": 0}, "log": {"name": "a", "runs_dir": str(tmp_path)},
    })  # fmt: skip
    train_run(config)
    [step] = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert (step["turns"], step["reward"], step["failed_rollouts"]) == (3.0, pytest.approx(0.75), 2.0)
    assert "answered_share" not in step  # their actions have no kinds: no alarm speaks of answers

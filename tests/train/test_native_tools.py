"""The tiny model in native tool-call form: a short run, its tokens, its metrics, and that it goes on bit for bit."""

import pytest

from agentrl.envs.calls.base import Call
from agentrl.envs.calls.hermes import Hermes
from agentrl.runs.read import read_evals, read_metrics, read_rollouts
from agentrl.train.build import build_world
from agentrl.train.start import resume_run
from tests.small import small_config, train_until, without_times

NATIVE = {
    "world": {"kind": "search_tools", "gold": True},
    "rollout": {"style": "chat", "tools": "native"},
    "warm_start": {"lookup_steps": 60, "demonstrations": 400, "epochs": 2, "threads": 1},
    "train": {"steps": 3, "delta_every": 1},
    "eval": {"questions": 20, "every": 1},
    "log": {"rollout_groups": -1},
}


@pytest.mark.slow
def test_the_tiny_model_is_warmed_up_and_trained_in_native_form(tmp_path):
    config = small_config(tmp_path / "whole", **NATIVE)
    run = train_until(config)
    world, metrics = build_world(config), read_metrics(run)
    assert len(metrics) == 3 and any(m["grad_norm"] > 0 for m in metrics)
    for m in metrics:
        assert 0.3 < m["valid_call_ratio"] <= 1 and m["calls/search"] > 0.3 and 0 < m["calls_per_turn"] <= 1
        assert 0 <= m["gold_found"] <= 1 and 0 <= m["gold_recall"] <= 1 and "repeated_queries" in m
    assert {"gold_found", "gold_recall", "repeated_queries"} <= set(read_evals(run)[-1])
    tokenizer, searched = world.tokenizer(), 0
    for step in range(3):
        for row in read_rollouts(run, step):
            opening = world.encode(world.form.question(row["task"]["question"]))
            assert row["turns"][0]["prompt_ids"] == opening
            for turn in row["turns"]:
                said = tokenizer.decode(turn["action_ids"]).removesuffix("<eos>").rstrip()
                assert said == turn["action"].rstrip()  # as the environment reads it
                calls = [c for c in Hermes().read(turn["action"]) if isinstance(c, Call)]
                if turn["info"].get("kind") == "search":
                    assert [calls[0].arguments["query"].strip()] == [turn["info"]["query"]]
                    searched += 1
    assert searched > 20

    parts = train_until(small_config(tmp_path / "parts", **NATIVE), steps=2)
    assert resume_run(parts, quiet=True).result.status == "finished"
    assert without_times(read_metrics(parts)) == without_times(metrics)

"""Values that a config refuses, and why. Files are tested in test_config_io.py."""

import pytest
from pydantic import ValidationError

from agentrl.config import RunConfig, TrainConfig, WorldConfig
from tests.small import merged

BASE = {"world": {}}
LLDS_MA = {"enabled": True, "answer_weight": "schedule"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rollout": {"group_size": 1}}, "group_size is 1; a group-relative advantage needs at least 2"),
        (
            {"rollout": {"max_context": 22}},
            "one turn may take max_tokens_per_turn = 22; set max_context to at least 44",
        ),
        ({"rollout": {"temperature": 0}}, "rollout.temperature is 0: all responses of a group are equal"),
        ({"rollout": {"temperature": -0.1}}, "greater than or equal to 0"),
        ({"rollout": {"style": "chats"}}, "'tag' or 'chat'"),
        ({"rollout": {"prompts_per_step": 0}}, "greater than 0"),
        ({"algorithm": {"name": "rloo_k"}}, "a pass@K advantage, but k is 1"),
        ({"algorithm": {"name": "rloo_k", "k": 9}}, r"algorithm.k = 9 is larger than rollout.group_size = 8"),
        ({"algorithm": {"k": 2}}, "grpo has no K; use one of rloo_k"),
        ({"algorithm": {"name": "pos_only", "nthr": {"enabled": True}}}, "pos_only has none; use grpo with nthr"),
        ({"algorithm": {"name": "reinforce", "nthr": {"enabled": True}}}, "reinforce has none for rewards of 0"),
        ({"algorithm": {"loss": {"dual_clip": 1}}}, "dual_clip is 1.0; it must be above 1"),
        ({"algorithm": {"loss": {"dual_clip": float("nan")}}}, "finite"),
        ({"algorithm": {"loss": {"entropy_coef": float("inf")}}}, "finite"),
        ({"algorithm": {"correct_threshold": float("nan")}}, "finite"),
        ({"algorithm": {"loss": {"clip_low": 1.5}}}, r"clip_low is 1\.5; a ratio cannot fall below 0"),
        ({"algorithm": {"loss": {"tis_cap": 0.5}}}, r"tis_cap is 0\.5; .*scales every token down: 2 is usual"),
        ({"algorithm": {"loss": {"nll_coef": -1}}}, "greater than or equal to 0"),
        ({"algorithm": {"loss": {"llds": {"enabled": True, "weight": 0}}}}, r"weight \(λ\) is 0, so that llds adds no"),
        ({"algorithm": {"loss": {"llds": {"answer_weight": -0.5}}}}, r"answer_weight is -0\.5; a negative weight"),
        ({"algorithm": {"name": "pos_only", "loss": {"llds": {"enabled": True}}}}, "with pos_only incorrect ones, too"),
        (
            {"algorithm": {"name": "reinforce", "loss": {"llds": {"enabled": True}}}},
            "with reinforce incorrect ones, to",
        ),
        ({"algorithm": {"name": "pos_only", "loss": {"dual_clip": 3}}}, "dual_clip bounds .* pos_only has none; drop"),
        ({"algorithm": {"nthr": {"baseline": "random"}}}, "baseline is random, .* but enabled is false"),
        ({"algorithm": {"nthr": {"enabled": True, "eta": -0.1}}}, r"eta is -0\.1; .* not negative"),
        ({"algorithm": {"nthr": {"beta": float("inf")}}}, "beta is inf, above which no score lies"),
        (
            {"world": {"kind": "arithmetic"}, "algorithm": {"loss": {"llds": LLDS_MA}}},
            "a single turn has no searches",
        ),
        (
            {
                "world": None,
                "data": {"train": "x"},
                "model": {"path": "y"},
                "env": {"id": "agentrl/Math-v0"},
                "algorithm": {"loss": {"llds": LLDS_MA}},
            },
            "a single turn has no searches",
        ),
        (
            {"algorithm": {"loss": {"llds": {"enabled": True}}}, "train": {"mini_batches": 1}},
            "llds is zero on the first",
        ),
        ({"algorithm": {"name": "pos_only"}, "guard": {"enabled": True}}, "would hold up incorrect responses, too"),
        ({"train": {"mini_batches": 1}, "guard": {"enabled": True}}, "guard.enabled protects with LLDS, which is zero"),
        ({"log": {"checkpoint_every": 0}, "guard": {"enabled": True}}, "on_critical is rollback but log.checkpoint_ev"),
        ({"train": {"mini_batches": 97}}, r"more than the responses of a step \(12 x 8\)"),
        ({"world": None}, "neither world nor data.train is set"),
        ({"data": {"train": "x.jsonl"}}, "both world and data.train are set"),
        (
            {"world": None, "data": {"train": "x"}, "warm_start": {}},
            "warm_start needs demonstrations: set warm_start.file",
        ),
        ({"world": None, "data": {"train": "x"}}, "builtin:tiny speaks only the built-in worlds' words"),
        ({"world": {"hops": []}}, r"hops is \[\]; each must be 1 to 4"),
        ({"world": {"hops": [5]}}, r"hops is \[5\]"),
        ({"world": {"levels": [0]}}, r"levels is \[0\]"),
        ({"world": {"people": 0}}, "greater than 0"),
        ({"retriever": {"url": "http://a", "index": "b"}}, "both url and index are set"),
        ({"model": {"device": "gpu"}}, "auto"),
        ({"model": {"tiny": {"layer": 3}}}, "Extra inputs"),
        ({"optim": {"lr": 0}}, "greater than 0"),
        ({"log": {"keep_checkpoints": 0}}, "greater than 0"),
    ],
)
def test_values_that_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        RunConfig.model_validate(merged(BASE, changes))


def test_values_at_the_border_are_taken():
    loss = {"clip_low": 1, "tis_cap": 1, "llds": LLDS_MA}
    nthr = {"enabled": True, "baseline": "random", "beta": float("-inf"), "eta": 0}
    config = RunConfig.model_validate(merged(BASE, {"algorithm": {"nthr": nthr, "loss": loss}}))
    assert config.algorithm.nthr.beta == float("-inf") and config.algorithm.nthr.eta == 0


def test_problems_that_need_the_whole_config_come_together():
    with pytest.raises(ValidationError) as caught:
        RunConfig.model_validate({"warm_start": {}, "rollout": {"temperature": 0}, "train": {"mini_batches": 1000}})
    text = str(caught.value)
    for part in ("neither world nor", "warm_start needs", "speaks only", "temperature is 0", "mini_batches = 1000"):
        assert part in text


def test_values_are_checked_on_assignment():
    config = TrainConfig()
    with pytest.raises(ValidationError):
        config.steps = -1
    assert config.steps == 50


def test_defaults_are_not_shared():
    first, second = RunConfig(world=WorldConfig()), RunConfig(world=WorldConfig())
    first.train.steps = 1
    first.env.kwargs["topk"] = 5
    first.rollout.stop.append("x")
    assert (second.train.steps, second.env.kwargs, second.rollout.stop) == (50, {}, [])
    assert RunConfig(world=WorldConfig()).env.kwargs == {}


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"eval": {"samples": 4}}, "eval.samples = 4 at eval.temperature 0"),
        ({"env": {"kwargs": {"max_turns": 9}}}, "env.kwargs.max_turns = 9 but rollout.max_turns = 6"),
        ({"seed": -1}, "greater than or equal to 0"),
        ({"optim": {"max_grad_norm": 0}}, "greater than 0"),
    ],
)
def test_evaluations_and_limits_that_cannot_be_meant_are_refused(changes, wanted):
    with pytest.raises(ValidationError, match=wanted):
        RunConfig.model_validate(merged(BASE, changes))


def test_those_that_can_are_not():
    RunConfig.model_validate(BASE | {"eval": {"samples": 4, "temperature": 0.7}, "env": {"kwargs": {"max_turns": 6}}})
    assert RunConfig.model_validate(BASE | {"optim": {"max_grad_norm": None}}).optim.max_grad_norm is None

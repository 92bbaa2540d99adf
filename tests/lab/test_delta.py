"""The Δ(x) experiment: one result per method and question, its table and its figure."""

import json

import pytest

from agentrl.errors import ConfigError
from agentrl.lab.delta import DeltaResult, plot_delta, run_delta
from agentrl.lab.groups import Step, delta_of, displacement
from agentrl.lab.methods import method_config


def a_result():
    values = {"grpo": [-2.0, 1.0, 0.0], "nthr": [-1.0, 1.0, 0.5]}
    return DeltaResult(["a", "b", "c"], [0.5, 0.25, 0.75], values, values, 1, "sgd", 1e-3)


def test_every_method_meets_the_same_rollouts_and_weights(lab):
    job, groups = lab
    said = []
    got = run_delta(job, groups, ["nthr", "grpo"], step=Step("sgd", 1e-3), say=said.append)
    for method, values in got.per_response.items():
        for group, value in zip(groups, values):
            algorithm = method_config(job.config.algorithm, method)
            alone = delta_of(group.batch, *displacement(job.local, group.batch, algorithm, step=Step("sgd", 1e-3)))
            assert value == alone[1]
    assert got.share_correct == [g.share_correct for g in groups] and not said
    assert json.loads(json.dumps(got.to_json()))["optimizer"] == "sgd"


def test_llds_needs_a_second_update_and_says_so(lab):
    job, groups = lab
    said = []
    one = run_delta(job, groups[:2], ["grpo", "llds"], step=Step("sgd", 0.05), say=said.append)
    assert one.per_response["llds"] == one.per_response["grpo"] and "--updates 2" in said[0]
    said.clear()
    more = run_delta(job, groups[:2], ["grpo", "llds"], step=Step("sgd", 0.05), updates=3, say=said.append)
    assert more.per_response["llds"] != more.per_response["grpo"] and not said and more.updates == 3


def test_scheduled_answer_weight_is_that_of_the_group(lab):
    job, groups = lab
    got = run_delta(job, groups[:2], ["llds_ma"], step=Step("sgd", 0.05), updates=2, say=lambda line: None)
    for group, value in zip(groups, got.per_response["llds_ma"]):
        searches = sum(u.info["kind"] == "search" and u.info["valid"] for t in group.trajectories for u in t.turns)
        algorithm = method_config(job.config.algorithm, "llds")
        algorithm.loss.llds.answer_weight = min(searches / len(group.trajectories) / 2, 1.0)
        step = {"step": Step("sgd", 0.05), "updates": 2}
        assert value == delta_of(group.batch, *displacement(job.local, group.batch, algorithm, **step))[1]


def test_an_unknown_method_is_refused_before_any_work(lab):
    job, groups = lab
    with pytest.raises(ConfigError, match="'gpro' is unknown"):
        run_delta(job, groups, ["grpo", "gpro"], say=lambda line: None)


def test_the_table_counts_displacement_and_wins():
    header, grpo, nthr = a_result().table()
    assert header[-1] == "above grpo" and grpo[-1] == "–"
    assert grpo[:6] == ("grpo", "-0.3333", "+0.0000", "-2.0000", "-0.33333", "0.67")
    assert nthr[-2:] == ("0.33", "2 of 2")  # on question b both are equal


def test_wins_over_random_are_shown_where_it_takes_part():
    values = {"grpo": [0.0, 0.0], "random": [1.0, 2.0], "nthr": [2.0, 1.0]}
    table = DeltaResult(["a", "b"], [0.5, 0.5], values, values, 1, "sgd", 1e-3).table()
    assert [row[-2:] for row in table] == [
        ("above grpo", "above random"), ("–", "0 of 2"), ("2 of 2", "–"), ("2 of 2", "1 of 2"),
    ]  # fmt: skip


@pytest.mark.slow
def test_the_figure_is_drawn_in_both_themes(tmp_path):
    written = plot_delta(a_result(), tmp_path / "new" / "delta")
    assert sorted(p.name for p in written) == sorted(
        f"delta-{t}.{k}" for t in ("light", "dark") for k in ("png", "svg")
    )
    assert all(p.stat().st_size > 5_000 for p in written)

"""One step, call by call: what the loop hands to the engine, for episodes that were written down here.

The engine is a formula (`tests.fakes.RecordingEngine`); advantages, displacement and order are worked out by hand.
"""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from agentrl.runs.log import RunLog
from agentrl.runs.read import read_rollouts
from agentrl.train.build import Job
from agentrl.train.trainer import Trainer, _comparable
from agentrl.types import Task, Trajectory, Turn
from tests.fakes import RecordingEngine
from tests.small import small_config


def episode(name, reward, *turns, error=None):
    """`turns` are (prompt ids, action ids); the letter of the name is the group."""
    made = tuple(Turn(p, a, [-1.0] * len(a), "x", "", 0.0, "stop") for p, a in turns)
    return Trajectory(name, name[0], "hand", 0, made, reward, reward == 1.0, True, False, error)


EPISODES = [
    episode("a0", 1.0, ([10, 11], [12, 13]), ([14], [15])),
    episode("a1", 0.0, ([10, 11], [16, 17, 18])),
    episode("a2", 0.0, ([10, 11], [20])),
    episode("b0", 1.0, ([30], [31, 32])),  # a group without contrast
    episode("b1", 1.0, ([30], [33])),
    episode("c0", 0.0, ([40, 41], [42, 43])),
    episode("c1", 1.0, ([40, 41], [44, 45, 46, 47])),
    episode("c2", math.nan, ([40, 41], [48]), error="tool: down"),
]
USED = EPISODES[:7]
SOFTENED = (17, 20, 43)  # NTHR's tokens: their advantages are divided by 4
HIGH, LOW = math.sqrt(2), -math.sqrt(0.5)  # GRPO: rewards 1, 0, 0 have mean 1/3 and deviation sqrt(2)/3
ADVANTAGES = {
    "a0": [HIGH, HIGH, HIGH],
    "a1": [LOW, LOW / 4, LOW],
    "a2": [LOW / 4],
    "b0": [0.0, 0.0],
    "b1": [0.0],
    "c0": [-1.0, -1.0 / 4],
    "c1": [1.0, 1.0, 1.0, 1.0],
}
CHANGE = {12: 1, 13: 0, 15: 1, 44: -1, 45: 1, 46: 0, 47: -1}  # by the updates, in 1/32 nats


def logprob(token, version):
    return -token / 64 - version * (token % 3 - 1) / 32  # fractions of two: exact in fp32


def reference(token):
    return -token / 128


def actions(t):
    return [x for u in t.turns for x in u.action_ids]


@pytest.fixture
def stepped(tmp_path):
    """(trainer, engine, record) of one step over EPISODES; `stepped(**changes)` plays it."""
    opened = []

    def play(**changes):
        config = small_config(tmp_path, rollout={"temperature": 0.7, "prompts_per_step": 3}, **changes)
        engine = RecordingEngine(logprob, reference, SOFTENED)
        run = RunLog.create(tmp_path, "hand", config)
        job = Job(
            config, engine, None, lambda: pytest.fail("an environment was made"), [Task(x, {}) for x in "abc"], []
        )
        told = []
        trainer = Trainer(job, run, say=told.append)
        trainer.told = told
        opened.append((trainer, run))
        asked = []

        def collect(tasks, size, prefix):
            asked.append((len(tasks), size, prefix))
            engine.sampled_tokens += sum(t.action_tokens for t in EPISODES)
            return EPISODES

        trainer.player = SimpleNamespace(collect=collect)
        trainer.stream.take = lambda n: trainer.job.train_tasks
        record = trainer.step()
        assert asked[0] == (3, 4, "0.0/")
        return trainer, engine, record

    yield play
    for trainer, run in opened:
        trainer.close()
        run.close()


def names(batch):
    """The episodes of a batch, by their tokens."""
    by_ids = {tuple(x for u in t.turns for x in [*u.prompt_ids, *u.action_ids]): t.sample_id for t in EPISODES}
    return [by_ids[tuple(ids[m].tolist())] for ids, m in zip(batch.input_ids, batch.attention_mask)]


def rows(batch, values):
    """Sample id to the (B, S) values of its action tokens; all others must be 0."""
    assert values.shape == batch.action_mask.shape and not values[~batch.action_mask].any()
    return {name: v[m].tolist() for name, v, m in zip(names(batch), values, batch.action_mask)}


WHOLE = {
    "algorithm": {"nthr": {"enabled": True}, "loss": {"kl_coef": 0.1}},
    "train": {"mini_batches": 2, "epochs": 2, "delta_every": 1, "probe_every": 1, "probe_size": 2},
}


def test_every_call_of_a_step(stepped):
    trainer, engine, _ = stepped(**WHOLE)
    config = trainer.config
    assert [name for name, _ in engine.calls] == ["score"] * 2 + ["update"] * 4 + ["sync"] + ["score"] * 2
    assert {arguments["temperature"] for name, arguments in engine.calls if name != "sync"} == {0.7}
    old, frozen, moved, probe = engine.named("score")
    assert names(old["batch"]) == names(frozen["batch"]) == [t.sample_id for t in USED]  # the failed one is left out
    assert old["nthr"] is config.algorithm.nthr and old["entropy"] is True and "reference" not in old
    assert frozen["reference"] is True
    assert names(moved["batch"]) == ["a0", "c1"]  # correct ones, of groups that also have an incorrect one
    assert names(probe["batch"]) == ["a0", "b0"]  # the first two correct ones


def test_each_row_of_a_mini_batch_has_its_own_numbers(stepped):
    trainer, engine, _ = stepped(**WHOLE)
    updates = engine.named("update")
    order = [names(u["batch"]) for u in updates]
    assert [len(part) for part in order] == [4, 3, 4, 3]
    epochs = [order[0] + order[1], order[2] + order[3]]
    assert all(sorted(epoch) == sorted(ADVANTAGES) for epoch in epochs)  # each row once an epoch
    assert epochs[0] != epochs[1] and epochs[0] != sorted(epochs[0])  # in an order of its own
    of = {t.sample_id: t for t in USED}
    for u in updates:
        batch = u["batch"]
        for name, values in rows(batch, u["advantages"]).items():
            assert values == pytest.approx(ADVANTAGES[name], rel=1e-6), name
        for name, values in rows(batch, u["old_logprobs"]).items():
            assert values == [logprob(x, 0) for x in actions(of[name])]
        for name, values in rows(batch, u["reference_logprobs"]).items():
            assert values == [reference(x) for x in actions(of[name])]
        kl = u["loss"].kl_coef  # 0 while the policy is the reference
        assert u["loss"] == trainer.config.algorithm.loss.model_copy(update={"kl_coef": kl}) and u["scores"] is None
    assert [u["loss"].kl_coef > 0 for u in updates] == [False, True, True, True]


def test_what_the_step_is_recorded_as(stepped):
    trainer, _, record = stepped(**WHOLE)
    m, tokens = record.metrics, sum(t.action_tokens for t in EPISODES)
    a0, c1 = (CHANGE[12] + CHANGE[13] + CHANGE[15]) / 32, sum(CHANGE[x] for x in (44, 45, 46, 47)) / 32
    assert m["delta_correct"] == pytest.approx((a0 / 3 + c1 / 4) / 2)
    assert m["delta_correct_seq"] == pytest.approx((a0 + c1) / 2)
    assert m["delta_negative_share"] == 0.5 and m["delta_later"] == pytest.approx(CHANGE[15] / 32)
    probe = [logprob(x, 1) for x in (12, 13, 15, 31, 32)]
    assert m["probe_logprob"] == pytest.approx(sum(probe) / 5)
    right = [logprob(x, 0) for t in USED if t.correct for x in actions(t)]
    assert m["logprob_correct"] == pytest.approx(sum(right) / len(right))
    assert (
        m["grad_norm"] == 2.5 and m["grad_norm_max"] == 4.0 and m["loss"] == 3.5
    )  # means over four updates, and the largest
    assert m["skipped_updates"] == 0.0 and m["failed_rollouts"] == 1.0 and m["reward"] == pytest.approx(4 / 7)
    assert m["groups_all_correct"] == pytest.approx(1 / 3)
    assert {g["group_id"]: g.get("delta") for g in record.groups} == pytest.approx(
        {"a": a0 / 3, "b": None, "c": c1 / 4}
    )
    assert trainer.tokens == tokens and m["tokens_per_s"] == pytest.approx(tokens / m["t_step_s"])
    assert trainer.step_number == 1 and record.step == 0
    by_id = {row["sample_id"]: row for row in read_rollouts(trainer.run.path, 0)}
    assert list(by_id) == [t.sample_id for t in EPISODES]
    for name, wanted in ADVANTAGES.items():
        got = [x for turn in by_id[name]["turns"] for x in turn["advantages"]]
        assert got == pytest.approx(wanted, abs=1e-6)
    assert by_id["c1"]["turns"][0]["delta_logprobs"] == pytest.approx(
        [CHANGE[x] / 32 for x in (44, 45, 46, 47)], abs=1e-6
    )
    assert "delta_logprobs" not in by_id["b0"]["turns"][0] and "advantages" not in by_id["c2"]["turns"][0]


def test_one_update_scores_while_it_updates(stepped):
    _, engine, record = stepped(train={"mini_batches": 1, "delta_every": 1, "probe_every": 0})
    assert [name for name, _ in engine.calls] == ["update", "sync", "score"]
    [update], [moved] = engine.named("update"), engine.named("score")
    assert names(update["batch"]) == [t.sample_id for t in USED]  # as `scores` has them
    assert update["reference_logprobs"] is None and update["temperature"] == 0.7
    right = [logprob(x, 0) for t in USED if t.correct for x in actions(t)]
    assert record.metrics["logprob_correct"] == pytest.approx(sum(right) / len(right))  # filled by the update
    assert names(moved["batch"]) == ["a0", "c1"]
    assert record.metrics["delta_correct_seq"] == pytest.approx((2 - 1) / 32 / 2)
    plain = {name: [v * 4 if x in SOFTENED else v for v, x in zip(ADVANTAGES[name], actions(t))] for name, t in
             zip(ADVANTAGES, USED)}  # fmt: skip
    for name, values in rows(update["batch"], update["advantages"]).items():
        assert values == pytest.approx(plain[name], rel=1e-6), name


@pytest.mark.parametrize("changes", [{"epochs": 2, "mini_batches": 1}, {"epochs": 1, "mini_batches": 2}])
def test_two_updates_are_scored_first(stepped, changes):
    _, engine, _ = stepped(train={**changes, "delta_every": 0, "probe_every": 0})
    assert [name for name, _ in engine.calls] == ["score", "update", "update", "sync"]
    assert engine.named("score")[0]["nthr"] is None and engine.named("update")[0]["scores"] is None


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 5, 7])
def test_a_batch_is_cut_into_exactly_as_many_parts_as_configured(stepped, parts):
    """7 responses in 5 parts made 4 updates, so that a linear schedule stopped short."""
    _, engine, _ = stepped(train={"mini_batches": parts, "epochs": 1, "delta_every": 0, "probe_every": 0})
    sizes = [len(update["batch"]) for update in engine.named("update")]
    assert len(sizes) == parts and sum(sizes) == len(USED) and max(sizes) - min(sizes) <= 1


def test_fewer_responses_than_parts_are_an_update_each(stepped):
    _, engine, _ = stepped(train={"mini_batches": 9, "epochs": 1, "delta_every": 0, "probe_every": 0})
    assert [len(update["batch"]) for update in engine.named("update")] == [1] * len(USED)


def test_the_metrics_that_need_correct_responses_are_of_methods_that_do(stepped):
    metrics = stepped(algorithm={"name": "pos_only"})[2].metrics
    assert metrics["groups_out_of_reach"] == 0.0 and metrics["groups_equal"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(("name", "lines"), [("pos_only", 1), ("grpo", 0)])
def test_rewards_that_vary_and_never_make_a_response_correct_are_told_at_the_first_step(
    stepped, monkeypatch, name, lines
):
    monkeypatch.setattr("tests.train.test_step.EPISODES", [replace(t, correct=False) for t in EPISODES])
    trainer, _, record = stepped(algorithm={"name": name, "correct_threshold": 9.0})
    assert record.metrics.get("groups_out_of_reach") == (pytest.approx(2 / 3) if lines else None)
    told = [line for line in trainer.told if "none reaches algorithm.correct_threshold = 9" in line]
    assert len(told) == lines and all("which pos_only needs" in line for line in told)


def test_dynamic_sampling_drops_groups_that_rounding_alone_has_parted():
    a, b = episode("a0", 0.1 + 0.2, ([1], [2])), episode("a1", 0.3, ([1], [3]))
    c, d = episode("b0", 0.3, ([1], [2])), episode("b1", 0.4, ([1], [3]))
    assert a.reward != b.reward
    assert _comparable([a, b, c, d], drop_equal=True) == [c, d]
    assert _comparable([a, b, c, d], drop_equal=False) == [a, b, c, d]


def test_other_methods_do_not_have_them(stepped):
    assert "groups_out_of_reach" not in stepped()[2].metrics


def test_an_engine_that_samples_ahead_is_not_asked_what_it_sampled(stepped, monkeypatch):
    monkeypatch.setattr(RecordingEngine, "samples_ahead", 1)
    trainer, _, _ = stepped(**WHOLE)  # the next step's episodes are counted by the time this one is recorded
    assert trainer.ahead.depth == 1
    assert trainer.tokens == sum(t.action_tokens for t in EPISODES)


@pytest.mark.parametrize("needed", [False, True])
def test_an_engine_whose_workers_may_die_gets_a_checkpoint_before_the_first_step(tmp_path, needed):
    config = small_config(tmp_path, train={"steps": 0})
    engine = RecordingEngine(logprob)
    engine.needs_first_checkpoint = needed
    saved = []
    with RunLog.create(tmp_path, "hand", config) as run:
        trainer = Trainer(Job(config, engine, None, lambda: None, [Task("a", {})], []), run)
        trainer.save = lambda: saved.append(trainer.step_number)
        trainer.train()
        trainer.close()
    assert saved == [0] * (1 + needed)  # a run of no steps saves once at its end

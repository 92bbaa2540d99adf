"""Supervised demonstrations: what is learned, from which tokens, and that nothing held out is ever shown."""

import math
import random

import pytest
import torch

from agentrl.config import WarmStartConfig
from agentrl.train import warmstart
from agentrl.train.build import build_job
from tests.small import small_config


@pytest.fixture
def job(tmp_path):
    return build_job(small_config(tmp_path), tmp_path)


def practice(**options):
    return WarmStartConfig(**{"lookup_steps": 0, "demonstrations": 64, "epochs": 1, "threads": 1, **options})


def run(job, said=None, **options):
    return warmstart.warm_start(
        job.engine, job.world, practice(**options), seed=0, say=said.append if said is not None else lambda line: None
    )


def test_it_learns_and_says_what_was_measured(job):
    said = []
    out = run(job, said, demonstrations=400, epochs=4, lr=1e-2)
    first, last = (float(line.split("loss ")[1].split(",")[0]) for line in (said[0], said[-1]))
    assert last < first < math.log(len(job.world.vocabulary)) / 2  # of a model that guesses words
    assert said[-1].startswith("demonstrations: step 50/50, loss ")
    assert out["demonstration_steps"] == 50 and 0.4 < out["demonstration_accuracy"] <= 1
    assert out["demonstration_loss"] == pytest.approx(last, abs=1e-3) and "lookup_steps" not in out
    assert out["parameters"] == sum(p.numel() for p in job.engine.model.parameters())


def test_practice_stops_early_where_it_is_good_enough(job):
    out = run(job, lookup_steps=60, lookup_batch=2, lookup_stop_accuracy=0.0)
    assert out["lookup_steps"] == warmstart.REPORT_EVERY
    assert out["demonstration_steps"] == 2


def test_the_sampler_has_the_new_weights_and_the_policy_is_still_version_0(job):
    run(job)
    assert job.engine.policy_version == 0 and job.engine.updates == 0
    assert not job.engine.optimizer.state  # reinforcement learning begins with an optimiser of its own
    ids = torch.tensor([job.world.encode("question: ")])
    fused = job.engine.fast
    assert torch.equal(fused.head, (fused.model.lm_head.weight * fused.model.model.norm.weight).t())
    assert torch.isfinite(job.engine.hidden(ids, torch.ones_like(ids))).all()


def test_the_same_seed_gives_the_same_weights(tmp_path):
    states = []
    for k in range(2):
        job = build_job(small_config(tmp_path), tmp_path)
        torch.rand(k)  # whatever else was drawn in the process
        run(job)
        states.append(job.engine.model.state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_held_out_names_are_never_shown(job, monkeypatch):
    shown = []
    encode = job.world.encode
    monkeypatch.setattr(job.world, "encode", lambda text: shown.append(text) or encode(text))
    run(job, demonstrations=300)
    held_out = {n for kind, names in job.world.entities["test"].items() if kind != "year" for n in names}
    words = {w for text in shown for w in text.split()}
    assert len(words) > 50 and not words & held_out


def test_only_actions_count_where_the_context_has_no_weight(job):
    segments = [("question: who ?", False), ("<search> a </search>", True), ("<information>", False)]
    ids, weights = warmstart._tokens(segments, job.world, 0.25)
    assert len(ids) == len(weights) == 7 and weights == [0.25] * 3 + [1.0] * 3 + [0.25]
    padded, weight = warmstart._pad([(ids, weights), ([1], [1.0])])
    assert padded.shape == weight.shape == (2, 7)
    assert padded[1].tolist() == [1] + [0] * 6 and weight[1].tolist() == [1.0] + [0.0] * 6


def test_epochs_use_every_demonstration_equally_often():
    demos = [([k] * (k % 7 + 1), [1.0]) for k in range(50)]
    batches = warmstart._epochs(demos, 8, 1024, random.Random(0))
    for _ in range(3):
        seen = [ids[0] for _ in range(7) for ids, _ in next(batches)]
        assert sorted(seen) == list(range(50))


@pytest.mark.parametrize(("bucket", "mixed"), [(1, True), (64, False)])
def test_batches_are_of_one_length_or_mixed(bucket, mixed):
    demos = [([i] * (10 if i % 2 else 30), [1.0]) for i in range(64)]
    batches = warmstart._epochs(demos, 8, bucket, random.Random(0))
    epoch = [next(batches) for _ in range(8)]
    assert sorted(ids[0] for batch in epoch for ids, _ in batch) == list(range(64))  # each demonstration once
    assert any(len({len(ids) for ids, _ in batch}) > 1 for batch in epoch) == mixed


@pytest.mark.parametrize("asked", [0, 1])
def test_it_has_its_own_number_of_threads(job, monkeypatch, asked):
    seen = []
    monkeypatch.setattr(warmstart, "warm_start", lambda *_: seen.append(torch.get_num_threads()) or {})
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        job.config.warm_start = WarmStartConfig(threads=asked)
        warmstart.warmed_up(job)
        assert seen == [asked or 2] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("decay", "last"), [(0.0, 1.0), (0.9, 0.1)])
def test_the_learning_rate_of_practice_falls_as_far_as_asked(job, monkeypatch, decay, last):
    rates = []

    class Recorded(torch.optim.AdamW):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "AdamW", Recorded)
    run(job, lookup_steps=60, lookup_batch=2, lookup_decay=decay, lookup_stop_accuracy=1.0, lookup_lr=1e-3)
    assert max(rates[:60]) <= 1e-3
    assert rates[59] == pytest.approx(1e-3 * (1 - decay * 59 / 60)) and rates[59] / 1e-3 == pytest.approx(
        last, abs=0.02
    )

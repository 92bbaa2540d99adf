"""Whole runs on clusters of one machine: the same training loop and run directory, deaths in mid-step, resumes."""

import json
import os
import signal
import time
from unittest.mock import patch

import pytest

from agentrl.config.files import load_config
from agentrl.errors import RunError
from agentrl.retriever.building import build_index
from agentrl.retriever.corpus import Passage
from agentrl.runs.read import read_evals, read_info, read_metrics, read_rollouts
from agentrl.train.start import resume_run
from tests.distributed.processes import core_of, pid_of
from tests.retriever.helpers import server_process
from tests.small import small_config, train_until

pytestmark = pytest.mark.timeout(900)


def resumed(run, note):
    """`resume_run`, and the trainer is shown to `note` before it starts."""
    from agentrl.train import start

    class Shown(start.Trainer):
        def train(self):
            note(self)
            return super().train()

    with patch.object(start, "Trainer", Shown):
        return resume_run(run, quiet=True)


def test_a_run_outlives_an_engine_and_resumes_after_a_worker(ray_here, tmp_path):
    changes = [
        "engine=openrlhf", "train.steps=8", "train.delta_every=2", "eval.questions=100", "eval.every=0",
        "rollout.prompts_per_step=12", "log.checkpoint_every=2", "log.rollout_groups=-1", "log.name=a",
        f"log.runs_dir={tmp_path}", "openrlhf.step_timeout_s=120",
    ]  # fmt: skip
    config = load_config("search_tiny", changes).config

    first = {}

    def meddle(trainer):
        engine, step = trainer.engine, trainer.step
        first["baseline"] = engine.handover.limit.baseline

        def deadly():
            if trainer.step_number == 1:
                os.kill(pid_of(engine.cluster.engines[0]), signal.SIGKILL)  # there is no other engine
            if trainer.step_number == 5:
                os.kill(pid_of(engine.cluster.workers[0]), signal.SIGKILL)
            return step()

        trainer.step = deadly

    with pytest.raises(RunError, match=r"a worker died while the training loop waited for .* Resume the run"):
        train_until(config, meddle=meddle)
    run = tmp_path / "a"
    assert read_info(run).status != "running"
    rows = read_metrics(run)
    assert [r["step"] for r in rows] == [0, 1, 2, 3, 4]  # it went on after step 1
    time.sleep(1.0)
    text = (run / "config.yaml").read_text()  # fewer workers are left, and they go on in the other stage
    fewer = text.replace("gpus_per_node: 2", "gpus_per_node: 1").replace("zero_stage: 2", "zero_stage: 3")
    assert fewer != text
    (run / "config.yaml").write_text(fewer)
    baselines = {}

    def note(trainer):
        baselines["resumed"] = trainer.engine.handover.limit.baseline

    assert resumed(run, note).result.status == "finished"
    saved = json.loads((run / "checkpoints" / "step-000008" / "engine.json").read_text())
    assert saved["workers"] == 1 and saved["zero_stage"] == 3
    assert saved["probe_baseline"] == baselines["resumed"] == first["baseline"]
    rows = read_metrics(run)
    assert [r["step"] for r in rows] == list(range(8))
    for n in range(8):  # weights reach vLLM after every step
        versions = {t["policy_version"] for r in read_rollouts(run, n) for t in r["turns"]}
        assert versions == {n}, n
    rewards = [r["reward"] for r in rows]
    assert sum(rewards[-3:]) > sum(rewards[:3])
    before, after = read_evals(run)
    assert after["em"] > before["em"] + 0.05


def test_an_asynchronous_run_resumes_after_an_engine_died_at_a_hand_over(ray_here, warm_model, tmp_path):
    config = small_config(
        tmp_path, warm_model, engine="openrlhf", train={"steps": 4}, eval={"questions": 4, "every": 2},
        algorithm={"loss": {"tis_cap": 2.0}}, log={"checkpoint_every": 2, "rollout_groups": -1},
        openrlhf={"asynchronous": True, "staleness": 1},
    )  # fmt: skip

    def meddle(trainer):
        handover = trainer.engine.handover
        broadcast = handover._broadcast

        def deadly():
            if handover.version == 2:  # of the third step
                core_of(trainer.engine.cluster.engines[0]).kill()
            return broadcast()

        handover._broadcast = deadly

    with pytest.raises(RunError, match=r"vLLM engine.* died while .* resume the run from its last checkpoint"):
        train_until(config, meddle=meddle)
    run = tmp_path / "a"
    assert [r["step"] for r in read_metrics(run)] == [0, 1]
    assert resume_run(run, quiet=True).result.status == "finished"
    assert len(read_metrics(run)) == 4
    seen = set()
    for n, row in enumerate(read_metrics(run)):
        assert "tis_capped_share" in row
        for r in read_rollouts(run, n):
            for t in r["turns"]:
                assert 0 <= n - t["policy_version"] <= 1
            seen.add((n, r["group_id"].partition("/")[2]))
    assert len({g for _, g in seen}) == len(seen) == 16  # the resume repeated no question and left none out


def test_a_retriever_dies_in_mid_step_and_a_frozen_reference_does_not_move(ray_here, warm_model, tmp_path):
    from agentrl.envs.worlds import make_world

    changes = {
        "engine": "openrlhf",
        # episodes of a step begin one after the other; lost ones are counted and not played again
        "rollout": {"concurrency": 4, "outage_wait_s": 0},
        "algorithm": {"loss": {"kl_coef": 0.1}},
        "train": {"steps": 3, "probe_size": 0},
        "log": {"rollout_groups": -1},
        "openrlhf": {"gpus_per_node": 2, "zero_stage": 3},
    }
    plain = small_config(tmp_path, warm_model)
    world = make_world("search", plain.seed, **plain.world.model_dump(exclude={"kind", "seed"}))
    build_index((Passage(p["id"], p["title"], p["text"]) for p in world.passages), tmp_path / "index")
    frozen = []
    with server_process(tmp_path / "index") as (url, first):
        config = small_config(tmp_path, warm_model, **changes, env={"kwargs": {"retriever": url}})
        port = url.rstrip("/").rpartition(":")[2]
        again = server_process(tmp_path / "index", "--port", port)

        def meddle(trainer):
            engine, rollouts, score, turn = trainer.engine, trainer.rollouts, trainer.engine.score, trainer.engine._turn
            turns = []

            async def deadly(*args):
                turns.append(args)
                if trainer.step_number == 1 and len(turns) == 12:
                    os.kill(first.pid, signal.SIGKILL)
                return await turn(*args)

            def collected(n):
                turns.clear()
                if n == 2:
                    first.wait()
                    again.__enter__()
                return rollouts(n)

            def scored(batch, **options):
                out = score(batch, **options)
                if options.get("reference"):
                    probe = trainer.first = getattr(trainer, "first", batch)
                    now = score(probe, temperature=1.0).logprobs
                    frozen.append((score(probe, temperature=1.0, reference=True).logprobs, now))
                return out

            trainer.rollouts, engine.score, engine._turn = collected, scored, deadly

        try:
            run = train_until(config, meddle=meddle)
        finally:
            again.__exit__(None, None, None)
    rows = read_metrics(run)
    failed = [r["failed_rollouts"] for r in rows]
    assert failed[0] == failed[2] == 0 and 0 < failed[1] < 16  # counted, and the run went on
    lost = [r for r in read_rollouts(run, 1) if r["error"]]
    assert len(lost) == failed[1] and all(f"ToolFailure: http://127.0.0.1:{port}" in r["error"] for r in lost)
    assert all(r["reward"] is None or r["reward"] != r["reward"] for r in lost)  # nobody knows, so not 0
    initial = frozen[0][1]  # the policy before its first update
    assert float((frozen[0][0] - initial).abs().max()) < 1e-5
    for reference, _ in frozen[1:]:
        assert (reference == frozen[0][0]).all()
    assert float((frozen[-1][1] - initial).abs().max()) > 0.01  # the policy did move
    assert rows[0]["kl"] < rows[2]["kl"]

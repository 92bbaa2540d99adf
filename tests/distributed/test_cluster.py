"""Whole clusters on one machine: Ray, DeepSpeed workers, vLLM engines, the same training loop and run directory."""

import asyncio
import os
import signal
import time

import pytest
import torch

from agentrl.batch import pack
from agentrl.config import LossConfig, NTHRConfig
from agentrl.config_io import load_config
from agentrl.errors import RunError
from agentrl.job import build_job
from agentrl.rollouts.chat import parts_of
from agentrl.rollouts.play import EnvPool, collect
from agentrl.run import resume_run
from agentrl.runlog import read_evals, read_info, read_metrics, read_rollouts
from tests.small import small_config, train_until

pytestmark = pytest.mark.timeout(900)
NTHR = NTHRConfig(enabled=True, method="exact")


def pid_of(actor):
    import ray

    return ray.get(actor.__ray_call__.remote(lambda self: os.getpid()), timeout=60)


@pytest.fixture(scope="module")
def ray_here():
    """One Ray for the module; every test starts and ends its own workers."""
    import ray

    from agentrl.engines.openrlhf import cpu

    os.environ.update(cpu.ENVIRONMENT)
    ray.init(num_cpus=24, num_gpus=8, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1",
             runtime_env={"env_vars": cpu.ENVIRONMENT})  # fmt: skip
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def two_by_two(ray_here, warm_model, tmp_path_factory):
    """Two ZeRO-3 workers and two engines, and the local engine, of the same weights."""
    folder = tmp_path_factory.mktemp("cluster")
    local = build_job(small_config(folder, warm_model, model={"fast_path": "off"}), folder)
    config = small_config(
        folder, warm_model, engine="openrlhf", openrlhf={"gpus_per_node": 2, "engines": 2, "zero_stage": 3}
    )
    said = []
    job = build_job(config, folder, say=said.append)
    yield job, local, said
    job.engine.close()


def episodes(job, tasks=5, **options):
    with EnvPool(job.make_env) as pool:
        return collect(
            job.engine, pool, job.train_tasks[:tasks], 4, chat=job.chat, config=job.config.rollout, **options
        )


def test_the_cluster_and_the_local_engine_agree(two_by_two):
    job, local, _ = two_by_two
    engine = job.engine
    rolled = episodes(job, seed=1)
    assert not [t.error for t in rolled if t.error]
    batch = pack(rolled, job.chat.tokenizer.pad_token_id)
    mine, theirs = (e.score(batch, nthr=NTHR, entropy=True) for e in (engine, local.engine))
    assert torch.allclose(mine.logprobs, theirs.logprobs, atol=1e-4)
    assert torch.allclose(batch.rollout_logprobs, theirs.logprobs, atol=1e-3)  # what vLLM said while sampling
    assert torch.equal(mine.nthr_selected, theirs.nthr_selected) and mine.metrics == pytest.approx(theirs.metrics)
    advantages = torch.randn(len(batch), 1, generator=torch.Generator().manual_seed(0)) * batch.action_mask
    for rows in (len(batch), 3, 1):  # ranks with as many rows, with more, and one without any
        index = torch.arange(rows)
        part = batch.rows(index)
        S = part.action_mask.shape[1]
        arguments = (part, advantages[index, :S], theirs.logprobs[index, :S])
        a, b = (e.update(*arguments, loss=LossConfig()) for e in (engine, local.engine))
        assert a == pytest.approx(b, rel=5e-2, abs=1e-2)
        if rows == len(batch):
            assert a == pytest.approx(b, rel=1e-3, abs=1e-5)
    version = engine.policy_version
    engine.sync()
    local.engine.sync()
    assert engine.policy_version == version + 1 and engine.sync_gap < 1e-3
    new = engine.score(batch).logprobs
    assert torch.allclose(new, local.engine.score(batch).logprobs, atol=0.1)
    assert float((new - mine.logprobs).abs().max()) > 0.05  # vLLM was compared with weights that had moved


def test_a_conversation_ends_at_its_stop_string_and_stays_on_its_engine(two_by_two):
    job, _, _ = two_by_two
    engine, tokenizer = job.engine, job.chat.tokenizer
    ids = job.chat.start(parts_of(*job.make_env().reset(seed=0, options=job.train_tasks[0].options)))

    async def three():
        return [await engine.sample(ids, max_tokens=16, stop=["</search>"], session=7) for _ in range(3)]

    samples = asyncio.run(three())
    assert samples[0] == samples[1] == samples[2]  # the same seed, prefix cached or not
    assert len(engine.router._home) == 1 and engine.router.load == [0, 0]
    engine.release(7)
    for s in samples:
        assert len(s.ids) == len(s.logprobs) <= 16
        assert s.stop == "length" or s.text.endswith("</search>") or s.ids[-1] == tokenizer.eos_token_id


def test_an_engine_that_dies_loses_no_turn(two_by_two):
    job, _, said = two_by_two
    engine = job.engine
    turn, calls = engine._turn, []

    async def deadly(index, ids, parameters):
        calls.append(index)
        if len(calls) == 10:
            os.kill(pid_of(engine.cluster.engines[1]), signal.SIGKILL)
        return await turn(index, ids, parameters)

    engine._turn = deadly
    try:
        rolled = episodes(job, seed=2)
    finally:
        engine._turn = turn
    assert len(rolled) == 20 and not [t.error for t in rolled if t.error]
    assert any("engine 1 died" in line for line in said)
    assert engine.router.alive == [True, False] and engine.router.load == [0, 0]
    engine.sync()  # starts it again, with the current weights
    assert engine.router.alive == [True, True]
    assert not [t.error for t in episodes(job, seed=3) if t.error]


def test_a_stale_output_head_is_caught_and_named(two_by_two):
    import ray

    from agentrl.engines.openrlhf.sync import SyncError

    job, _, _ = two_by_two
    engine = job.engine

    def corrupt(worker):
        worker.model_runner.model.lm_head.weight.data.mul_(1.5)

    def spoil(actor):  # runs beside the actor's event loop
        loop = actor.llm.output_handler.get_loop()
        asyncio.run_coroutine_threadsafe(actor.llm.collective_rpc(corrupt), loop).result(30)

    ray.get(engine.cluster.engines[0].__ray_call__.remote(spoil), timeout=60)
    with pytest.raises(SyncError, match=r"vLLM engine 0 .* (output head|embedding)"):
        engine._compare()
    engine.sync()  # all weights anew
    assert engine.sync_gap < 1e-3


def test_a_run_outlives_an_engine_and_resumes_after_a_worker(ray_here, tmp_path):
    changes = [
        "engine=openrlhf", "train.steps=8", "train.delta_every=2", "eval.questions=100", "eval.every=0",
        "rollout.prompts_per_step=12", "log.checkpoint_every=2", "log.rollout_groups=-1", "log.name=a",
        f"log.runs_dir={tmp_path}", "openrlhf.step_timeout_s=120",
    ]  # fmt: skip
    config = load_config("search_tiny", changes).config

    def meddle(trainer):
        engine, step = trainer.engine, trainer.step

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
    assert resume_run(run, quiet=True).result.status == "finished"
    rows = read_metrics(run)
    assert [r["step"] for r in rows] == list(range(8))
    for n in range(8):  # weights reach vLLM after every step
        versions = {t["policy_version"] for r in read_rollouts(run, n) for t in r["turns"]}
        assert versions == {n}, n
    rewards = [r["reward"] for r in rows]
    assert sum(rewards[-3:]) > sum(rewards[:3])
    before, after = read_evals(run)
    assert after["em"] > before["em"] + 0.05


def test_asynchronous_runs_train_on_samples_of_the_version_before(ray_here, warm_model, tmp_path):
    config = small_config(
        tmp_path, warm_model, engine="openrlhf", train={"steps": 4}, eval={"questions": 4, "every": 2},
        algorithm={"loss": {"tis_cap": 2.0}}, log={"checkpoint_every": 2, "rollout_groups": -1},
        openrlhf={"asynchronous": True, "staleness": 1},
    )  # fmt: skip
    run = train_until(config, steps=2)
    assert read_info(run).status == "stopped"
    assert resume_run(run, quiet=True).result.status == "finished"
    seen = set()
    for n, row in enumerate(read_metrics(run)):
        assert "tis_capped_share" in row
        for r in read_rollouts(run, n):
            for t in r["turns"]:
                assert 0 <= n - t["policy_version"] <= 1
                seen.add((n, r["task_id"] if "task_id" in r else r["group_id"]))
    assert len({g for _, g in seen}) == len(seen)  # the resume repeated no question and left none out

"""Two DeepSpeed workers and two vLLM engines on one machine: agreement, routing, deaths, hangs, stale weights."""

import asyncio
import os
import signal
from unittest.mock import patch

import pytest
import torch

from agentrl.batch import pack
from agentrl.config import LossConfig, NTHRConfig
from agentrl.errors import RunError
from agentrl.rollouts.chat import parts_of
from agentrl.rollouts.play import EnvPool, Player
from agentrl.train.build import build_job
from tests.distributed.processes import core_of, pid_of
from tests.small import small_config

pytestmark = pytest.mark.timeout(900)
NTHR = NTHRConfig(enabled=True, method="exact")


@pytest.fixture(scope="module")
def two_by_two(ray_here, warm_model, tmp_path_factory):
    """Two ZeRO-3 workers and two engines, and the local engine, of the same weights."""
    folder = tmp_path_factory.mktemp("cluster")
    local = build_job(small_config(folder, warm_model, model={"fast_path": "off"}), folder)
    config = small_config(
        folder,
        warm_model,
        engine="openrlhf",
        openrlhf={"gpus_per_node": 2, "engines": 2, "zero_stage": 3, "restarts": 5},
    )
    said = []
    job = build_job(config, folder, say=said.append)
    yield job, local, said
    job.engine.close()


def episodes(job, tasks=5, **options):
    with EnvPool(job.make_env) as pool:
        return Player(job.engine, pool, job.chat, job.config.rollout, **options).collect(job.train_tasks[:tasks], 4)


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
    assert engine.policy_version == version + 1 and engine.handover.gap < 1e-3
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


def test_more_prompts_than_vllm_prefills_at_once(two_by_two):
    job, _, said = two_by_two
    engine = job.engine
    said.clear()
    ids = job.chat.start(parts_of(*job.make_env().reset(seed=0, options=job.train_tasks[0].options)))
    contexts = [ids + [int(t) for t in torch.randint(5, 20, (120,))] for _ in range(200)]

    async def all_at_once():
        return await asyncio.gather(*(engine.sample(c, max_tokens=4, session=i) for i, c in enumerate(contexts)))

    samples = asyncio.run(all_at_once())
    assert len(samples) == 200 and all(1 <= len(s.ids) <= 4 for s in samples)
    assert not said and engine.router.load == [0, 0]  # nobody died of it
    for i in range(200):
        engine.release(i)


def meddle_at(engine, call, act):
    """While entered, `act()` happens at the given call for a turn."""
    turn, calls = engine._turn, []

    async def meddled(*args):
        calls.append(args[0])
        if len(calls) == call:
            act()
        return await turn(*args)

    return patch.object(engine, "_turn", meddled)


@pytest.mark.parametrize("who", ["actor", "its engine"])
def test_an_engine_that_dies_loses_no_turn(two_by_two, who):
    job, _, said = two_by_two
    engine = job.engine
    core = core_of(engine.cluster.engines[1])
    victim = core.pid if who == "its engine" else pid_of(engine.cluster.engines[1])
    said.clear()
    with meddle_at(engine, 10, lambda: os.kill(victim, signal.SIGKILL)):
        rolled = episodes(job, seed=2)
    assert len(rolled) == 20 and not [t.error for t in rolled if t.error]
    assert any("engine 1 died" in line for line in said)
    assert engine.router.alive == [True, False] and engine.router.load == [0, 0]
    core.wait(10)  # it does not outlive its actor, and holds no memory that the next one needs
    engine.sync()  # starts it again, with the current weights
    assert engine.router.alive == [True, True] and engine.handover.gap < 1e-3
    assert not [t.error for t in episodes(job, seed=3) if t.error]


def test_an_engine_that_hangs_is_replaced_and_loses_no_turn(two_by_two):
    import psutil

    job, _, said = two_by_two
    engine = job.engine
    victim = pid_of(engine.cluster.engines[0])
    said.clear()
    short = patch.object(job.config.openrlhf, "sample_timeout_s", 12.0)
    with short, meddle_at(engine, 10, lambda: os.kill(victim, signal.SIGSTOP)):
        rolled = episodes(job, seed=4)
    assert len(rolled) == 20 and not [t.error for t in rolled if t.error]
    assert any("has not answered within openrlhf.sample_timeout_s = 12 s" in line for line in said)
    assert engine.router.alive == [False, True]
    other = psutil.Process(pid_of(engine.cluster.engines[1]))
    core_of(engine.cluster.engines[1]).kill()  # and one that nobody asks for anything
    other.wait(30)
    engine.sync()
    assert engine.router.alive == [True, True] and "vLLM engine 1 died: it is started again" in said
    assert engine.handover.gap < 1e-3 and not [t.error for t in episodes(job, seed=6) if t.error]


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
    with pytest.raises(SyncError, match=r"vLLM engine 0 .* these parameters are not the trainer's: .*(head|embedding)"):
        engine.handover._compare()
    spoiled, well = engine.handover._probe(seed=99)
    assert well <= engine.handover.limit.nats < spoiled  # the probe alone would have seen it, too
    engine.sync()  # all weights anew
    assert engine.handover.gap < 1e-3


def test_adapters_reach_vllm_as_they_are_in_bfloat16(ray_here, warm_model, tmp_path):
    """A step far below what a merged bf16 weight could show is sampled from, and an adapter that is stale is named."""
    import ray

    from agentrl.engines.openrlhf.sync import SyncError

    config = small_config(
        tmp_path, warm_model, engine="openrlhf", model={"dtype": "bfloat16", "lora": {"rank": 4}}, optim={"lr": 1e-4}
    )
    job = build_job(config, tmp_path, say=lambda line: None)
    engine = job.engine
    try:
        batch = pack(episodes(job, seed=1), job.chat.tokenizer.pad_token_id)
        before = engine.handover._engines("weight_digest")[0][0]
        old = engine.score(batch).logprobs
        advantages = torch.randn(len(batch), 1, generator=torch.Generator().manual_seed(0)) * batch.action_mask
        engine.update(batch, advantages, old, loss=LossConfig())
        engine.sync()  # digest and probe pass
        after = engine.handover._engines("weight_digest")[0][0]
        changed = {g for g in after if after[g] != before[g]}
        assert changed and all(g.startswith("adapter of ") for g in changed)  # the base is never touched
        assert set(after) - changed >= {"embedding", "layer 0 attention", "layer 0 mlp"}

        def corrupt(worker):
            for lora in worker.model_runner.lora_manager._adapter_manager.get_adapter(1).loras.values():
                for b in lora.lora_b if isinstance(lora.lora_b, list) else [lora.lora_b]:
                    b.mul_(1.5)

        def spoil(actor):  # runs beside the actor's event loop
            loop = actor.llm.output_handler.get_loop()
            asyncio.run_coroutine_threadsafe(actor.llm.collective_rpc(corrupt), loop).result(30)

        ray.get(engine.cluster.engines[0].__ray_call__.remote(spoil), timeout=60)
        with pytest.raises(SyncError, match=r"these parameters are not the trainer's: adapter of layer"):
            engine.handover._compare()
    finally:
        engine.close()


def test_a_policy_worker_that_hangs_is_an_error_that_says_who_waits(two_by_two):
    """The last test: a rank that was left alone is of no more use."""
    job, _, _ = two_by_two
    engine = job.engine
    batch = pack(episodes(job, seed=5), job.chat.tokenizer.pad_token_id)
    victim = pid_of(engine.cluster.workers[1])
    os.kill(victim, signal.SIGSTOP)
    short = patch.object(job.config.openrlhf, "step_timeout_s", 3.0)
    try:
        with short, pytest.raises(RunError, match=r"waited 3 s for policy workers to score.* resume the run"):
            engine.score(batch)
    finally:
        os.kill(victim, signal.SIGKILL)

"""The engine around vLLM, played by a plain model (`fake`): hand-overs, the probe, sleep, failures, checkpoints."""

import asyncio
import json

import pytest
import torch

from agentrl.engines.vllm.memory import Split
from agentrl.engines.vllm.weights import base_weights
from agentrl.errors import ConfigError, SamplerError
from agentrl.runs.read import read_metrics, read_rollouts
from agentrl.train.build import build_job
from agentrl.train.start import resume_run
from tests.engines.vllm.fake import fake_vllm
from tests.small import small_config, train_until

FEW = {"prompts_per_step": 2, "group_size": 2, "max_tokens_per_turn": 6}


@pytest.fixture
def made(warm_model, tmp_path, request):
    changes = getattr(request, "param", {})
    with fake_vllm() as cores:
        config = small_config(tmp_path, warm_model, **{"rollout": {"sampler": "vllm"}, **changes})
        engine = build_job(config, tmp_path, say=lambda line: None).engine
        yield engine, cores[0]
        engine.close()


def ask(engine, n=2):
    async def go():
        return await asyncio.gather(*[engine.sample([5, 6, 7], max_tokens=4, session=k) for k in range(n)])

    return asyncio.run(go())


def nudge(engine, by=0.02):
    """Noise on all weights, as a share of each tensor's spread."""
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in engine.model.parameters():
            p.add_(torch.randn(p.shape, generator=g) * by * p.std())
    if engine.fast is not None:
        engine.fast.refresh()


def test_weights_are_handed_over_when_somebody_samples_and_once(made):
    engine, core = made
    assert core.calls == [] and engine.sampler.gap is None
    engine.sync()
    engine.sync()
    assert core.calls == [] and engine.policy_version == 2
    ask(engine)
    ask(engine)
    assert [c[0] for c in core.calls].count("load") == 1
    assert engine.sampler.limit.baseline == engine.sampler.gap < 1e-4
    engine.sync()
    ask(engine)
    assert [c[0] for c in core.calls].count("load") == 2 and ("sleep",) not in core.calls
    before = engine.sampled_tokens
    engine.sync()
    assert sum(len(s.ids) for s in ask(engine)) == engine.sampled_tokens - before  # a probe's tokens do not count


@pytest.mark.slow
def test_stale_weights_are_caught_and_nothing_is_sampled_after(made):
    engine, core = made
    ask(engine)
    core.forgets = True
    engine.sync()
    ask(engine)  # they have not moved
    nudge(engine)
    engine.sync()
    with pytest.raises(SamplerError) as caught:
        ask(engine)
    text = str(caught.value)
    assert "does not sample from the trainer's weights of version 2" in text and "at the first hand-over" in text
    assert "rollout.vllm.sync_tolerance" in text and caught.value.exit_code == 3
    core.forgets = False
    with pytest.raises(SamplerError):
        ask(engine)


def test_the_first_hand_over_is_held_to_a_fixed_limit(made):
    engine, core = made
    core.forgets = True  # it holds the random numbers that it began with
    with pytest.raises(SamplerError, match=r"twice with other seeds \(the first hand-over, at most 0\.01\)"):
        ask(engine)


def test_a_probe_that_fails_once_is_made_again_with_other_texts(made):
    engine, _ = made
    score, seen = engine.sampler.score, []

    def once(texts, prompt):
        seen.append([t[:prompt] for t in texts])
        own = score(texts, prompt)
        return [[x + 1.0 for x in row] for row in own] if len(seen) == 1 else own

    engine.sampler.score = once
    ask(engine)
    assert len(seen) == 2 and seen[0] != seen[1] and len(seen[0]) * 16 >= 64
    assert engine.sampler.gap < 1e-4


def test_a_parameter_that_got_no_weight_is_named(made):
    engine, core = made
    load = core.load
    core.load = lambda weights: load(w for w in weights if "layers.1.mlp" not in w[0])
    with pytest.raises(SamplerError, match=r"failed while taking new weights: .* got no weight .*layers\.1\.mlp"):
        ask(engine)


def test_a_failure_names_vllm_and_reaches_everybody_who_waits(made):
    engine, core = made
    ask(engine)
    core.fails = RuntimeError("CUDA error: an illegal memory access")

    async def go():
        tasks = [engine.sample([5, 6], max_tokens=3, session=k) for k in range(3)]
        return await asyncio.gather(*tasks, return_exceptions=True)

    out = asyncio.run(go())
    assert all(isinstance(e, SamplerError) for e in out)
    assert "vLLM" in str(out[0]) and "rollout.sampler" in str(out[0]) and "illegal memory access" in str(out[0])
    core.fails = None
    with pytest.raises(SamplerError):  # what it holds is not known any more
        ask(engine)


def test_cancelled_and_released_turns_are_taken_from_vllm(made):
    engine, core = made
    ask(engine)

    async def go():
        tasks = [asyncio.create_task(engine.sample([5, 6], max_tokens=30, session=k)) for k in range(3)]
        while not core.requests:
            await asyncio.sleep(0)
        tasks[0].cancel()
        engine.release(1)
        with pytest.raises(RuntimeError, match="session 2 is already sampling"):
            await engine.sample([5], max_tokens=2, session=2)
        return await asyncio.gather(*tasks, return_exceptions=True)

    out = asyncio.run(go())
    assert [isinstance(x, asyncio.CancelledError) for x in out] == [True, True, False]
    assert len([c for c in core.calls if c[0] == "abort"]) >= 2 and not core.requests and not engine.sampler.running


def test_a_turn_that_ends_early_is_aborted_and_one_without_budget_is_not(made):
    engine, core = made
    ask(engine)
    core.calls.clear()
    whole = ask(engine, 1)[0]
    aborted = [c for c in core.calls if c[0] == "abort"]
    assert bool(aborted) == (len(whole.ids) < 4)


@pytest.mark.parametrize("made", [{"rollout": {"sampler": "vllm", "vllm": {"max_sequences": 3}}}], indirect=True)
def test_no_more_than_max_sequences_are_decoded_at_once(made):
    engine, core = made
    assert len(ask(engine, 10)) == 10 and core.most == 3


def sleeping(monkeypatch):
    from agentrl.engines.vllm import engine

    monkeypatch.setattr(engine, "split", lambda *a: Split(0, 0, 0, 64e6, 0, sleeps=True))


@pytest.mark.slow
def test_where_memory_is_short_vllm_sleeps_while_the_model_trains(monkeypatch, warm_model, tmp_path):
    sleeping(monkeypatch)
    with fake_vllm() as cores:
        config = small_config(
            tmp_path, warm_model, rollout={"sampler": "vllm", **FEW}, train={"steps": 2}, optim={"lr": 1e-3}
        )
        run = train_until(config)
    core = cores[0]
    names = [c[0] for c in core.calls if c[0] not in ("abort", "close")]
    with fake_vllm() as awake:
        monkeypatch.undo()
        train_until(config.model_copy(update={"log": config.log.model_copy(update={"name": "b"})}))
    assert {c[0] for c in awake[0].calls} <= {"abort", "load", "close"}  # where there is room, it stays awake
    assert core.settings.sleep
    assert names[:3] == ["sleep", "wake_up", "load"]  # asleep as soon as it has started: a warm start may follow
    assert names.count("wake_up") == names.count("load") == 2  # once a step, however often the model is scored
    assert names.count("sleep") == 3
    assert len(read_metrics(run)) == 2


@pytest.mark.slow
def test_a_run_samples_with_vllm_and_its_checkpoint_keeps_the_baseline(warm_model, tmp_path):
    config = small_config(
        tmp_path, warm_model, rollout={"sampler": "vllm", **FEW}, train={"steps": 3},
        log={"checkpoint_every": 1, "rollout_groups": -1},
    )  # fmt: skip
    with fake_vllm() as cores:
        run = train_until(config, steps=2)
        loads = [c for c in cores[0].calls if c[0] == "load"]
        assert len(loads) == 2 and cores[0].calls[-1] == ("close",)
    state = json.loads((run / "checkpoints" / "step-000002" / "sampler.json").read_text())
    assert 0 < state["first_gap"] < 1e-4
    with fake_vllm() as cores:
        seen = []

        def meddle(trainer):
            begin = trainer.engine.load

            def load(path):
                begin(path)
                seen.append(trainer.engine.sampler.limit.baseline)

            trainer.engine.load = load

        from unittest.mock import patch

        from agentrl.train import start

        class Meddled(start.Trainer):
            def restore(self, path, state):
                meddle(self)
                super().restore(path, state)

        with patch.object(start, "Trainer", Meddled):
            assert resume_run(run, quiet=True).result.status == "finished"
    assert seen == [state["first_gap"]]
    for n in range(3):
        assert {t["policy_version"] for r in read_rollouts(run, n) for t in r["turns"]} == {n}


@pytest.mark.slow
def test_a_run_whose_vllm_fails_is_saved_and_resumes(warm_model, tmp_path):
    config = small_config(tmp_path, warm_model, rollout={"sampler": "vllm", **FEW}, train={"steps": 3})

    def meddle(trainer):
        step = trainer.step

        def deadly():
            if trainer.step_number == 2:
                trainer.engine.core.fails = RuntimeError("out of memory")
            return step()

        trainer.step = deadly

    with fake_vllm(), pytest.raises(SamplerError, match="failed while"):
        train_until(config, meddle=meddle)
    with fake_vllm():
        assert resume_run(tmp_path / "a", quiet=True).result.status == "finished"
    assert [r["step"] for r in read_metrics(tmp_path / "a")] == [0, 1, 2]


def test_too_little_memory_leaves_no_run_and_no_lock(warm_model, tmp_path, monkeypatch):
    from agentrl.engines.vllm import engine

    monkeypatch.setattr(engine, "free_bytes", lambda device, held: 1e6)
    with fake_vllm() as cores, pytest.raises(ConfigError, match=r"needs .* and 1\.0 MB are free in main memory"):
        train_until(small_config(tmp_path, warm_model, rollout={"sampler": "vllm"}))
    assert cores == [] and not (tmp_path / "a").exists()


def test_a_second_engine_on_the_card_is_refused_and_the_lock_is_given_back(warm_model, tmp_path, monkeypatch):
    from agentrl.engines.vllm import engine
    from agentrl.engines.vllm.card import CardLock

    monkeypatch.setattr(engine, "name_of", lambda device: "GPU-x")
    monkeypatch.setattr(engine, "CardLock", lambda card: CardLock(card, tmp_path))
    config = small_config(tmp_path, warm_model, rollout={"sampler": "vllm"})
    with fake_vllm():
        first = build_job(config, tmp_path, say=lambda line: None).engine
        with pytest.raises(ConfigError, match="samples with vLLM on this card"):
            build_job(config, tmp_path, say=lambda line: None)
        first.close()
        build_job(config, tmp_path, say=lambda line: None).engine.close()


def test_weights_have_the_names_of_a_checkpoint(warm_model, tmp_path):
    from safetensors import safe_open

    from agentrl.config import LoraConfig, ModelConfig
    from agentrl.engines.shared.loading import load_model, load_tokenizer

    plain = ModelConfig(path=str(warm_model), device="cpu")
    tokenizer = load_tokenizer(plain)
    with safe_open(warm_model / "model.safetensors", "pt") as file:
        saved = set(file.keys())
    assert {n for n, _ in base_weights(load_model(plain, tokenizer, 0))} == saved
    lora = plain.model_copy(update={"lora": LoraConfig(rank=2)})
    assert {n for n, _ in base_weights(load_model(lora, tokenizer, 0))} == saved


def test_the_trainer_scores_a_probe_as_a_plain_pass(made):
    engine, _ = made
    texts = [[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16]]
    own = engine._logprobs_of_texts(texts, 2)
    with torch.no_grad():
        logp = engine.model(torch.tensor(texts)).logits.log_softmax(-1)
    for row, text in enumerate(texts):
        assert own[row] == pytest.approx([float(logp[row, k - 1, text[k]]) for k in range(2, 6)], abs=1e-5)

"""The samplers that are programs of others, real ones on the CPU: vLLM in this process, and OpenRLHF's.

The contract is the one that torch's sampler passes in tests/engines/test_contract.py.
"""

import json

import pytest
import torch

from agentrl.config.files import load_config
from agentrl.errors import ConfigError, ModelError, SamplerError
from agentrl.runs.read import read_evals, read_metrics, read_rollouts
from agentrl.train.build import build_job
from agentrl.train.start import resume_run
from tests.engines import contract
from tests.small import small_config, train_until

pytestmark = pytest.mark.timeout(900)

SILENT = {"say": lambda line: None}
OF = {
    "vllm": {"rollout": {"sampler": "vllm", "vllm": {"max_sequences": 8}}},
    "openrlhf": {"engine": "openrlhf", "train": {"mini_batches": 1}, "openrlhf": {"max_sequences": 8}},
}


@pytest.fixture(scope="module")
def asked(warm_model, tmp_path_factory):
    """A question's ids, and the model with a second token that ends a turn."""
    folder = tmp_path_factory.mktemp("asked")
    ids = contract.question(build_job(small_config(folder, warm_model), folder))
    return ids, contract.with_end(warm_model, folder / "model", ids)


@pytest.fixture(scope="module", params=list(OF))
def sampled(request, asked, tmp_path_factory):
    if request.param == "openrlhf":
        request.getfixturevalue("ray_here")
    ids, model = asked
    folder = tmp_path_factory.mktemp("contract")
    engine = build_job(small_config(folder, model, optim={"lr": 1e-2}, **OF[request.param]), folder, **SILENT).engine
    yield contract.Sampled(engine, model, ids)
    engine.close()


@pytest.mark.parametrize("rule", contract.CONTRACT, ids=lambda rule: rule.__name__)
def test_every_sampler(sampled, rule):
    cluster = type(sampled.engine).__name__ == "OpenRLHFEngine"
    if cluster and rule is contract.a_turn_ends_with_the_token_that_completes_a_stop_string:
        pytest.xfail(
            "AutoTokenizer, by which vLLM loads the tokenizer of words, drops its spaces: no two words are found"
        )
    rule(sampled)


def test_new_weights(sampled, tmp_path):
    gap, moved = contract.after_an_update_it_samples_from_the_new_weights(sampled, tmp_path / "after")
    print(f"largest gap to the trainer after an update {gap:.2g} nats, which moved log-probabilities by {moved:.2g}")


def test_vllm_with_adapters_stale_weights_and_a_failure(asked, tmp_path):
    """Adapters go to vLLM as adapters; weights that did not arrive are caught; what vLLM raises is named."""
    ids, model = asked
    config = small_config(tmp_path, model, model={"lora": {"rank": 4}}, optim={"lr": 3e-2}, rollout={"sampler": "vllm"})
    threads, seed = torch.get_num_threads(), torch.initial_seed()
    state = torch.get_rng_state()
    engine = build_job(config, tmp_path, **SILENT).engine
    assert (torch.get_num_threads(), torch.initial_seed()) == (threads, seed)
    torch.set_num_threads(threads + 1)
    assert torch.get_num_threads() == threads + 1  # vLLM has not kept this function
    torch.set_num_threads(threads)
    assert torch.equal(state, torch.get_rng_state())
    s = contract.Sampled(engine, model, ids)
    contract.log_probabilities_are_of_the_distribution_sampled_from(s)
    core, loads = engine.core, []
    core.load = lambda weights: loads.append(list(weights)) or []
    first = engine.sampler.limit.baseline
    before = {n: p.detach().clone() for n, p in engine.model.named_parameters() if "lora_B" in n}
    with torch.no_grad():
        for p in before:
            engine.model.get_parameter(p).normal_(0, 0.05, generator=torch.Generator().manual_seed(1))
    engine.sync()
    moved = s.ask()
    assert not loads  # the base stays; the adapter came
    assert float(s.gaps(s.ids, moved).max()) > 0.01 and engine.sampler.gap < 1e-4 and first < 1e-4
    with torch.no_grad():
        ids_of = torch.tensor([s.ids + moved.ids])
        logp = engine.model(ids_of).logits[0].log_softmax(-1)[len(s.ids) - 1 : -1]
    own = logp.gather(-1, torch.tensor(moved.ids)[:, None])[:, 0]
    assert float((own - torch.tensor(moved.logprobs)).abs().max()) < 1e-4

    def broken():
        raise RuntimeError("out of memory")

    step, core.engine.step = core.engine.step, broken
    with pytest.raises(SamplerError, match=r"vLLM, .*\(rollout\.sampler\), failed while sampling: .* out of memory"):
        s.ask()
    core.engine.step = step
    engine.sampler.failure = None
    core.engine.abort_request(list(core.engine.output_processor.request_states))
    with torch.no_grad():
        for p in before:
            engine.model.get_parameter(p).normal_(0, 0.1, generator=torch.Generator().manual_seed(2))
    engine.sampler.hand_over = lambda: None
    engine.sync()
    with pytest.raises(SamplerError, match=r"does not sample from the trainer's weights of version 2"):
        s.ask()
    engine.close()


def test_a_model_that_vllm_refuses(tmp_path):
    tiny = {"hidden_size": 48, "heads": 2, "kv_heads": 2}  # heads of 24, which vLLM's attention does not take
    config = small_config(tmp_path, model={"tiny": tiny}, rollout={"sampler": "vllm"})
    with pytest.raises(ModelError, match=r"rollout\.sampler is vllm, and vLLM 0\.29\S* refuses this model .*24.*torch"):
        build_job(config, tmp_path, **SILENT)


def test_an_architecture_that_vllm_does_not_know():
    from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

    from agentrl.engines.vllm.core import Core, Settings

    model = OpenAIGPTLMHeadModel(OpenAIGPTConfig(vocab_size=64, n_embd=32, n_layer=1, n_head=1, n_positions=64))
    settings = Settings(dtype="float32", positions=64, sequences=2, cache_bytes=2**26, seed=0)
    with pytest.raises(
        ModelError, match=r"refuses this model \(OpenAIGPTLMHeadModel, float32\).*rollout\.sampler to torch"
    ):
        Core(model, settings)


def test_too_little_memory_for_both(warm_model, tmp_path):
    config = small_config(tmp_path, warm_model, rollout={"sampler": "vllm", "vllm": {"kv_cache_gb": 1e5}})
    with pytest.raises(ConfigError, match=r"needs 100\.\d TB and .* are free in main memory.*set .*max_sequences to"):
        build_job(config, tmp_path, **SILENT)


def test_a_search_run_with_vllm_resumes(tmp_path):
    changes = [
        "rollout.sampler=vllm", "train.steps=8", "train.delta_every=4", "eval.questions=100", "eval.every=0",
        "rollout.prompts_per_step=12", "log.checkpoint_every=4", "log.rollout_groups=-1", "log.name=a",
        f"log.runs_dir={tmp_path}",
    ]  # fmt: skip
    run = train_until(load_config("search_tiny", changes).config, steps=4)
    assert len(read_metrics(run)) == 4
    first = json.loads((run / "checkpoints" / "step-000004" / "sampler.json").read_text())["first_gap"]
    seen = []

    def resumed(run_dir):
        from unittest.mock import patch

        from agentrl.engines.vllm.engine import VLLMEngine

        load = VLLMEngine.load

        def noted(self, path):
            load(self, path)
            seen.append(self.sampler.limit.baseline)

        with patch.object(VLLMEngine, "load", noted):
            return resume_run(run_dir, quiet=True)

    assert resumed(run).result.status == "finished"
    assert seen == [first] and 0 < first < 1e-4
    rows = read_metrics(run)
    assert [r["step"] for r in rows] == list(range(8))
    for n in range(8):  # weights reach vLLM after every step
        assert {t["policy_version"] for r in read_rollouts(run, n) for t in r["turns"]} == {n}
    assert len(read_evals(run)) == 2  # eight steps are too few to learn from, with either sampler

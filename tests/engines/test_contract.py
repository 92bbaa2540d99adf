"""The contract of samplers: torch's, and vLLM's around a plain model. The real ones: tests/distributed."""

import pytest

from agentrl.train.build import build_job
from tests.engines import contract
from tests.engines.vllm.fake import fake_vllm
from tests.small import small_config


@pytest.fixture(scope="module", params=["torch", "vllm"])
def sampled(request, warm_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("contract")
    ids = contract.question(build_job(small_config(folder, warm_model), folder))
    model = contract.with_end(warm_model, folder / "model", ids)
    config = small_config(folder, model, rollout={"sampler": request.param, "vllm": {"max_sequences": 8}})
    with fake_vllm() as made:
        engine = build_job(config, folder, say=lambda line: None).engine
        assert len(made) == (request.param == "vllm")
        yield contract.Sampled(engine, model, ids)
        engine.close()


@pytest.mark.parametrize("rule", contract.CONTRACT, ids=lambda rule: rule.__name__)
def test_every_sampler(sampled, rule):
    rule(sampled)


def test_new_weights(sampled, tmp_path):
    contract.after_an_update_it_samples_from_the_new_weights(sampled, tmp_path / "after")

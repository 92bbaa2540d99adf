"""Weights on their way: packed, gathered once, and a turn in one piece. One worker in this process; vLLM is faked."""

import asyncio
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch

from agentrl.engines.openrlhf.buckets import add_bits, views

pytest.importorskip("ray")
from tests.distributed.workers import policy, weights
from tests.small import small_config


class Receiver:
    """Stands for a vLLM actor: what it was sent."""

    def __init__(self):
        self.calls = []
        self.receive = SimpleNamespace(remote=lambda *arguments: self.calls.append(arguments))
        self.reset_prefix_cache = SimpleNamespace(remote=lambda: None)


@pytest.mark.parametrize("stage", [2, 3])
def test_a_hand_over_is_a_few_packed_calls_with_one_gather(warm_model, tmp_path, stage):
    from agentrl.engines.openrlhf import policy as module

    worker = policy(small_config(tmp_path, warm_model, openrlhf={"zero_stage": stage}), warm_model)
    engines, sent, gathers = [Receiver(), Receiver()], [], []
    worker.vllm_engines = engines
    worker.trainer._model_update_group = SimpleNamespace(broadcast=lambda t, src, stream: sent.append(t.clone()))
    gathered = worker._gathered

    def counted(parameters, modifier=None):
        gathers.append(len(parameters))
        return gathered(parameters, modifier)

    worker._gathered = counted
    with patch.object(module.ray, "get", lambda references: None):
        digest = worker.broadcast()
    worker._gathered = gathered
    expected = weights(worker)
    assert len(sent) == len(gathers) == 1 and gathers[0] == len(expected)  # a small model: one bucket
    for engine in engines:
        ((names, dtype, shapes, handles, lora),) = engine.calls
        assert dtype == torch.float32 and handles is None and lora is None
        arrived = dict(zip(names, views(sent[0], shapes), strict=True))
        assert set(arrived) == set(expected)
        assert all(torch.equal(arrived[n], w) for n, w in expected.items())
    again = {}
    add_bits(again, list(expected.items()))
    assert digest == again


def test_a_turn_comes_in_one_piece_with_the_adapter():
    from vllm.sampling_params import RequestOutputKind

    from agentrl.engines.openrlhf.rollout import AgentRollout

    asked = {}

    async def generate(prompt, parameters, *, request_id, lora_request):
        asked.update(prompt=prompt, parameters=parameters, lora=lora_request)
        entries = [{7: SimpleNamespace(logprob=-0.5)}]
        yield SimpleNamespace(outputs=[SimpleNamespace(token_ids=[7], logprobs=entries, finish_reason="stop")])

    actor = SimpleNamespace(llm=SimpleNamespace(generate=generate), _adapter="the adapter")
    out = asyncio.run(AgentRollout.turn(actor, [1, 2], {"max_tokens": 3, "temperature": 1.0}))
    assert out == ([7], [-0.5], True)
    assert asked["parameters"].output_kind == RequestOutputKind.FINAL_ONLY and asked["parameters"].logprobs == 0
    assert asked["lora"] == "the adapter" and asked["prompt"]["prompt_token_ids"] == [1, 2]

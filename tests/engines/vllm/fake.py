"""vLLM's engine played by a plain model, with weights of its own that only `load` changes.

It is what `agentrl.engines.vllm.core.Core` is to the sampler. The real one is in tests/distributed.
"""

import copy
from contextlib import contextmanager
from unittest.mock import patch

import torch

from agentrl.engines.vllm.core import Token


class FakeCore:
    """See the module docstring."""

    made: list["FakeCore"] = []  # noqa: RUF012

    def __init__(self, model, settings):
        self.settings = settings
        self.model = copy.deepcopy(model)
        with torch.no_grad():
            for p in self.model.parameters():
                p.normal_(0, 0.3)  # nothing is loaded yet
        self.requests = {}
        self.waiting = []
        self.calls = []
        self.forgets = False  # whether `load` does nothing
        self.fails = None  # raised by the next step
        self.most = 0
        FakeCore.made.append(self)

    def add(self, request, ids, max_tokens, temperature, seed):
        generator = torch.Generator().manual_seed(seed)
        self.waiting.append((request, [list(ids), max_tokens, temperature, generator]))

    @torch.no_grad()
    def step(self):
        if self.fails is not None:
            raise self.fails
        while self.waiting and len(self.requests) < self.settings.sequences:
            name, request = self.waiting.pop(0)
            self.requests[name] = request
        self.most = max(self.most, len(self.requests))
        out = []
        for name, request in list(self.requests.items()):
            ids, left, temperature, generator = request
            logp = (self.model(torch.tensor([ids])).logits[0, -1] / (temperature or 1.0)).log_softmax(-1)
            token = int(logp.argmax() if temperature == 0 else torch.multinomial(logp.exp(), 1, generator=generator))
            ids.append(token)
            request[1] = left - 1
            if left == 1:
                del self.requests[name]
            out.append(Token(name, token, float(logp[token])))
        return out

    def abort(self, names):
        self.calls.append(("abort", tuple(names)))
        for name in names:
            self.requests.pop(name, None)
        self.waiting = [w for w in self.waiting if w[0] not in names]

    @torch.no_grad()
    def load(self, weights):
        self.calls.append(("load",))
        own = dict(self.model.named_parameters())
        for name, weight in weights:
            if not self.forgets:
                own[name].copy_(weight)
            own.pop(name)
        return sorted(own)

    def sleep(self):
        self.calls.append(("sleep",))
        if self.settings.sleep:
            with torch.no_grad():
                for p in self.model.parameters():
                    p.zero_()

    def wake_up(self):
        self.calls.append(("wake_up",))

    def close(self):
        self.calls.append(("close",))


@contextmanager
def fake_vllm(found="0.29.0", cuda=False):
    """vLLM seems to be installed in this version."""
    FakeCore.made.clear()
    with (
        patch("agentrl.engines.vllm.engine.Core", FakeCore),
        patch("agentrl.engines.vllm.preflight.version", lambda: found),
        patch("agentrl.engines.vllm.preflight.on_cuda", lambda config: cuda),
    ):
        yield FakeCore.made

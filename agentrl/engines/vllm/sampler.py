"""The interface of the built-in sampler (`engines.local.sampler`), with vLLM's engine below it.

Episodes call `sample` and wait; an asyncio task steps vLLM as long as anybody waits. vLLM is given tokens and gives
tokens: where a turn ends (stop strings, end of turn, budget) is decided here, by the built-in sampler's own test.

New weights are handed over late: `reset` only notes that there are some, the first `sample` after it brings them, and a
probe says whether they have arrived. The random numbers behind a request depend on (seed, policy version, session,
position) alone; the last bits of log-probabilities depend on who is decoded together, so that a run is not reproducible
bit for bit.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from typing import Protocol, TypeVar

from agentrl.engines.base import check_request
from agentrl.engines.shared.probe import Limit, mean_gap
from agentrl.engines.shared.text import TokenText
from agentrl.engines.vllm.core import Token
from agentrl.errors import AgentRLError, SamplerError
from agentrl.types import Sample, Stop

T = TypeVar("T")
TEXTS, PROMPT, CONTINUED = 8, 8, 16  # of a probe: texts, tokens of each prompt, tokens sampled after it


class Engine(Protocol):
    """What is asked of vLLM (`vllm.core.Core`)."""

    def add(self, request: str, ids: list[int], max_tokens: int, temperature: float, seed: int) -> None:
        """A turn."""

    def step(self) -> list[Token]:
        """Tokens of one round."""

    def abort(self, requests: list[str]) -> None:
        """Forget turns."""

    def sleep(self) -> None:
        """Give memory back."""

    def wake_up(self) -> None:
        """Take it again."""

    def close(self) -> None:
        """End."""


@dataclass(eq=False)
class _Request:
    name: str
    session: int | None
    max_tokens: int
    stop: tuple[str, ...]
    future: asyncio.Future[Sample]
    out: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class VLLMSampler:
    """See the module docstring."""

    def __init__(
        self,
        engine: Engine,
        hand_over: Callable[[], None],
        text: TokenText,
        score: Callable[[list[list[int]], int], list[list[float]]],
        *,
        ordinary: Sequence[int],
        limit: Limit,
        eos_ids: Sequence[int],
        seed: int,
        context_length: int,
    ) -> None:
        """`hand_over` puts the trainer's weights into `engine`, which is awake.

        `score` is the trainer's log π of what comes after the first n tokens of texts of one length, at temperature 1;
        `ordinary` are ids of plain tokens, with which the texts of a probe begin.
        """
        self.engine, self.hand_over, self.text, self.score = engine, hand_over, text, score
        self.ordinary, self.limit = ordinary, limit
        self.eos = frozenset(eos_ids)
        self.seed, self.context_length = seed, context_length
        self.policy_version = 0
        self.sampled_tokens = 0
        self.stale = True
        self.asleep = False
        self.failure: AgentRLError | None = None
        self.gap: float | None = None  # of the last hand-over, mean nats
        self.hand_over_s = 0.0  # of the last one
        self.running: dict[str, _Request] = {}
        self.driver: asyncio.Task[None] | None = None
        self._count = 0

    # ---------------------------------------------------------------------------------------------------- interface

    async def sample(
        self,
        ids: Sequence[int],
        *,
        max_tokens: int,
        stop: Sequence[str] = (),
        temperature: float = 1.0,
        session: int | None = None,
    ) -> Sample:
        """See `engines.base.Sampler.sample`. SamplerError where vLLM fails or does not hold the trainer's weights."""
        check_request(ids, max_tokens, self.context_length)
        self._ready()
        if session is not None and any(q.session == session for q in self.running.values()):
            raise RuntimeError(f"session {session} is already sampling; one conversation takes one turn at a time")
        loop = asyncio.get_running_loop()
        key = f"{self.seed}:{self.policy_version}:{session}:{len(ids)}".encode()
        request = _Request(self._name(), session, max_tokens, tuple(stop), loop.create_future())
        self._add(request.name, list(ids), max_tokens, temperature, _seed(key))
        self.running[request.name] = request
        if self.driver is None or self.driver.done() or self.driver.get_loop() is not loop:
            self.driver = loop.create_task(self._drive())
        try:
            return await request.future
        except asyncio.CancelledError:
            self._forget([request])
            raise

    def release(self, session: int) -> None:
        """Forget a conversation; unknown sessions are ignored. vLLM drops the least recently used keys by itself."""
        self._forget([q for q in self.running.values() if q.session == session])

    def reset(self, policy_version: int) -> None:
        """There are new weights: they are handed over when somebody samples."""
        self.policy_version = policy_version
        self.stale = True
        self._forget(list(self.running.values()))

    def rest(self) -> None:
        """The trainer needs the memory: vLLM gives back what it can, until somebody samples."""
        if not self.asleep and self.failure is None:
            self._guarded("going to sleep", self.engine.sleep)
            self.asleep = True

    def close(self) -> None:
        """End vLLM."""
        self._forget(list(self.running.values()))
        self.engine.close()

    # ------------------------------------------------------------------------------------------------------- weights

    def _ready(self) -> None:
        """vLLM is awake and holds the trainer's weights, or SamplerError."""
        if self.failure is not None:
            raise self.failure
        if not self.stale and not self.asleep:
            return
        begun = time.perf_counter()
        if self.asleep:
            self._guarded("waking up", self.engine.wake_up)
            self.asleep = False
            self.stale = True  # what slept has lost its weights
        self._guarded("taking new weights", self.hand_over)
        self._check()
        self.stale = False
        self.hand_over_s = time.perf_counter() - begun

    def _check(self) -> None:
        """The probe: one retry with another seed, then SamplerError."""
        gap, limit = math.inf, self.limit
        for attempt in (0, 1):
            gap = self._guarded("being compared with the trainer", partial(self._probe, attempt))
            if gap <= limit.nats:
                break
        else:
            first = "the first hand-over" if limit.baseline is None else f"{limit.baseline:.2g} at the first hand-over"
            self.failure = SamplerError(
                f"vLLM does not sample from the trainer's weights of version {self.policy_version}: over {TEXTS} texts "
                f"its log-probabilities differ by {gap:.3g} nats on average, twice with other seeds ({first}, at most "
                f"{limit.nats:.2g}). Resume the run from its last checkpoint to hand everything over anew, with "
                f"rollout.sampler torch if it comes again; set rollout.vllm.sync_tolerance to {2 * gap:.2g} only if "
                "the precision explains the gap"
            )
            raise self.failure
        self.gap = gap
        limit.learn(gap)

    def _probe(self, attempt: int) -> float:
        """Mean gap in nats over texts that vLLM samples after random plain tokens."""
        generator = random.Random(f"{self.seed}:{self.policy_version}:{attempt}")
        prompts = {self._name(): generator.choices(self.ordinary, k=PROMPT) for _ in range(TEXTS)}
        for name, ids in prompts.items():
            self.engine.add(name, ids, CONTINUED, 1.0, generator.getrandbits(31))
        told: dict[str, list[Token]] = {name: [] for name in prompts}
        while any(len(tokens) < CONTINUED for tokens in told.values()):
            for token in self.engine.step():
                if token.request in told:  # nobody else's: whoever was sampling is forgotten
                    told[token.request].append(token)
        texts = [ids + [t.token for t in told[name]] for name, ids in prompts.items()]
        return mean_gap([[t.logprob for t in tokens] for tokens in told.values()], self.score(texts, PROMPT))

    # ------------------------------------------------------------------------------------------------------- driving

    async def _drive(self) -> None:
        try:
            while True:
                await asyncio.sleep(0)  # who is just about to ask joins this round
                if not self.running:
                    return
                for token in self.engine.step():
                    if token.request in self.running:
                        self._take(self.running[token.request], token)
        except Exception as error:
            self.failure = _failed("sampling", error)
            for request in self.running.values():
                if not request.future.done():
                    request.future.set_exception(self.failure)
            self.running.clear()

    def _take(self, q: _Request, token: Token) -> None:
        """One more token of a turn; the turn ends where the built-in sampler would end it."""
        q.out.append(token.token)
        q.logprobs.append(token.logprob)
        stopped = token.token in self.eos or (
            q.stop and token.token in self.text.candidates(q.stop) and self.text.ends_with_stop(q.out, q.stop)
        )
        if stopped:
            self._finish(q, "stop")
        elif len(q.out) == q.max_tokens:
            self._finish(q, "length")

    def _finish(self, q: _Request, stop: Stop) -> None:
        del self.running[q.name]
        if len(q.out) < q.max_tokens:  # vLLM ends by itself what has no budget left
            self.engine.abort([q.name])
        self.sampled_tokens += len(q.out)
        ids = q.out[:-1] if q.out[-1] in self.eos else q.out
        if not q.future.done():
            q.future.set_result(Sample(q.out, q.logprobs, self.text.decode(ids), stop))

    def _forget(self, requests: list[_Request]) -> None:
        here = [q for q in requests if self.running.pop(q.name, None) is not None]
        if here and self.failure is None:
            self.engine.abort([q.name for q in here])
        for request in here:
            request.future.cancel()

    def _add(self, name: str, ids: list[int], max_tokens: int, temperature: float, seed: int) -> None:
        self._guarded("taking a turn", lambda: self.engine.add(name, ids, max_tokens, temperature, seed))

    def _guarded(self, what: str, call: Callable[[], T]) -> T:
        """`call`, whose exception is vLLM's failure."""
        try:
            return call()
        except AgentRLError:
            raise
        except Exception as error:
            self.failure = _failed(what, error)
            raise self.failure from error

    def _name(self) -> str:
        self._count += 1
        return str(self._count)


def _seed(key: bytes) -> int:
    return int.from_bytes(blake2b(key, digest_size=4).digest()) >> 1


def _failed(what: str, error: Exception) -> SamplerError:
    lines = str(error).strip().splitlines()
    return SamplerError(
        f"vLLM, which samples for this run (rollout.sampler), failed while {what}: {type(error).__name__}: "
        f"{lines[0] if lines else 'no message'}. Resume the run from its last checkpoint; where memory was short, with "
        "a smaller rollout.vllm.kv_cache_gb or rollout.vllm.max_sequences, or with rollout.sampler torch"
    )

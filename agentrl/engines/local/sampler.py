"""Sampling for many conversations at once: continuous batching over a row cache.

Episodes call `sample` when they need an action and wait; whoever is ready is decoded together. A conversation keeps
its row between turns, so that only the new tokens (the tool output) are fed. Rows whose turn has ended wait until
enough others have too, because one prefill of many rows is far cheaper than many of one.

Randomness is counted, not drawn: the uniform number behind each token depends on (seed, policy version, session,
position) alone, so that a run does not depend on which episodes happened to be batched together.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import torch
from torch import Tensor

from agentrl.engines.base import check_request
from agentrl.engines.local.cache import Plan, RowCache
from agentrl.engines.shared.text import TokenText
from agentrl.types import Sample, Stop

PREFILL_TOKENS = 16_384  # padded tokens of one prefill pass
QUIET_TICKS = 4  # event-loop rounds without news before an idle sampler starts a batch

# ids (n, C), index of each row's last real token (n,), cache, plan -> logits (n, V) fp32
NextLogits = Callable[[Tensor, Tensor, RowCache, Plan], Tensor]


@dataclass
class _Row:
    session: int | None
    known: list[int] = field(default_factory=list)  # tokens whose keys and values are in the cache
    request: _Request | None = None
    started: bool = False  # the request's context is in the cache


@dataclass
class _Request:
    ids: list[int]
    max_tokens: int
    stop: tuple[str, ...]
    temperature: float
    future: asyncio.Future[Sample]
    draw: Callable[[], float]  # uniform numbers
    out: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class BatchSampler:
    """See the module docstring. `next_logits` is the model."""

    def __init__(
        self,
        next_logits: NextLogits,
        text: TokenText,
        *,
        eos_ids: Sequence[int],
        seed: int,
        context_length: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.next_logits, self.text = next_logits, text
        self.eos = frozenset(eos_ids)
        self.seed, self.context_length, self.device = seed, context_length, device
        self.policy_version = 0
        self.cache = RowCache(device, dtype)
        self.rows: list[_Row | None] = []
        self.by_session: dict[int, int] = {}
        self.driver: asyncio.Task[None] | None = None
        self.arrivals = 0
        self.sampled_tokens = 0
        self.prefilled_tokens = 0

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
        """See `engines.base.Sampler.sample`."""
        check_request(ids, max_tokens, self.context_length)
        loop = asyncio.get_running_loop()
        key = f"{self.seed}:{self.policy_version}:{session}:{len(ids)}".encode()
        draw = random.Random(int.from_bytes(blake2b(key, digest_size=8).digest())).random
        request = _Request(list(ids), max_tokens, tuple(stop), temperature, loop.create_future(), draw)
        self._row_for(session).request = request
        self.arrivals += 1
        if self.driver is None or self.driver.done() or self.driver.get_loop() is not loop:
            self.driver = loop.create_task(self._drive())
        try:
            return await request.future
        except asyncio.CancelledError:
            self._forget_request(request)
            raise

    def release(self, session: int) -> None:
        """Forget a conversation; unknown sessions are ignored."""
        index = self.by_session.pop(session, None)
        if index is not None:
            self.rows[index] = None

    def reset(self, policy_version: int) -> None:
        """Forget everything: the weights changed, cached keys and values are those of another policy."""
        self.policy_version = policy_version
        self.rows, self.by_session = [], {}

    # ------------------------------------------------------------------------------------------------------- driving

    async def _drive(self) -> None:
        try:
            while True:
                active = [i for i, r in enumerate(self.rows) if r and r.request and r.started]
                if not active and await self._more_arrived():
                    continue
                waiting = [i for i, r in enumerate(self.rows) if r and r.request and not r.started]
                if not active and not waiting:
                    return
                if waiting and len(waiting) >= len(active):
                    self._prefill(waiting)
                else:
                    self._decode()
                await asyncio.sleep(0)
        except Exception as e:
            for row in self.rows:
                if row and row.request and not row.request.future.done():
                    row.request.future.set_exception(e)
            self.rows, self.by_session = [], {}

    async def _more_arrived(self) -> bool:
        """Wait for episodes that are just about to ask; True as soon as one has."""
        before = self.arrivals
        for _ in range(QUIET_TICKS):
            await asyncio.sleep(0)
        return self.arrivals != before

    def _prefill(self, waiting: list[int]) -> None:
        """Feed the new tokens of these rows and sample each one's first token."""
        fed: list[tuple[int, int]] = []  # (new tokens, row)
        for i in waiting:
            row = self.rows[i]
            assert row is not None and row.request is not None
            ids, known = row.request.ids, row.known
            if ids[: len(known)] != known or len(known) == len(ids):
                same = next((k for k, (a, b) in enumerate(zip(ids, known)) if a != b), min(len(ids), len(known)))
                row.known = known[: min(same, len(ids) - 1)]
            fed.append((len(ids) - len(row.known), i))
        fed.sort()
        while fed:
            take = 1
            while take < len(fed) and (take + 1) * fed[take][0] <= PREFILL_TOKENS:
                take += 1
            self._prefill_rows([i for _, i in fed[:take]])
            fed = fed[take:]

    def _prefill_rows(self, index: list[int]) -> None:
        rows = [self.rows[i] for i in index]
        requests = [r.request for r in rows if r is not None and r.request is not None]
        start = [len(r.known) for r in rows if r is not None]
        new = [q.ids[s:] for q, s in zip(requests, start)]
        longest = max(map(len, new))
        self.cache.reserve(len(self.rows), max(len(q.ids) + q.max_tokens for q in requests))
        ids = torch.tensor([n + [0] * (longest - len(n)) for n in new], device=self.device)
        count = torch.tensor([len(n) for n in new], device=self.device)
        plan = self.cache.plan(index, torch.tensor(start, device=self.device), count)
        logits = self.next_logits(ids, count - 1, self.cache, plan)
        self.prefilled_tokens += sum(map(len, new))
        for row, q in zip(rows, requests):
            assert row is not None
            row.known, row.started = list(q.ids), True
        self._take(index, logits)

    def _decode(self) -> None:
        """One token for every active row."""
        self._compact()
        active = [i for i, r in enumerate(self.rows) if r and r.request and r.started]
        n = active[-1] + 1
        ids, start, count = [0] * n, [0] * n, [0] * n
        for i in active:
            row = self.rows[i]
            assert row is not None and row.request is not None
            ids[i], start[i], count[i] = row.request.out[-1], len(row.known), 1
            row.known.append(ids[i])
        both = torch.tensor([ids, start, count], device=self.device)
        plan = self.cache.plan(n, both[1], both[2])
        logits = self.next_logits(both[0][:, None], both[2] * 0, self.cache, plan)
        self._take(active, logits if len(active) == n else logits[torch.tensor(active, device=self.device)])

    def _compact(self) -> None:
        """Close gaps once more than a third of the rows that would be computed are idle or gone."""
        active = [i for i, r in enumerate(self.rows) if r and r.request and r.started]
        if len(active) * 3 >= 2 * (active[-1] + 1):
            return
        chosen = set(active)
        order = active + [i for i, r in enumerate(self.rows) if r and i not in chosen]
        longest = max(len(self.rows[i].known) for i in order)  # type: ignore[union-attr]
        self.cache.keep(order, longest)
        self.rows = [self.rows[i] for i in order]
        self.by_session = {r.session: k for k, r in enumerate(self.rows) if r and r.session is not None}

    def _take(self, index: list[int], logits: Tensor) -> None:
        """Sample one token for each of the rows `index` from `logits` (n, V), and end the turns that are over."""
        requests: list[_Request] = [self.rows[i].request for i in index]  # type: ignore[union-attr, misc]
        temperatures = {q.temperature or 1.0 for q in requests}
        if temperatures != {1.0}:
            logits = logits / torch.tensor([q.temperature or 1.0 for q in requests], device=self.device)[:, None]
        logp = torch.log_softmax(logits, -1)
        u = torch.tensor([q.draw() for q in requests], device=self.device)
        token = _inverse_cdf(logp, u)
        greedy = [k for k, q in enumerate(requests) if q.temperature == 0]
        if greedy:
            token[greedy] = logits[greedy].argmax(-1)
        chosen = logp.gather(-1, token[:, None])[:, 0]
        for i, q, t, lp in zip(index, requests, token.tolist(), chosen.tolist()):
            q.out.append(t)
            q.logprobs.append(lp)
            if t in self.eos or (
                q.stop and t in self.text.candidates(q.stop) and self.text.ends_with_stop(q.out, q.stop)
            ):
                self._finish(i, "stop")
            elif len(q.out) == q.max_tokens:
                self._finish(i, "length")

    def _finish(self, index: int, stop: Stop) -> None:
        row = self.rows[index]
        assert row is not None and row.request is not None
        q = row.request
        row.request, row.started = None, False
        if row.session is None:
            self.rows[index] = None
        self.sampled_tokens += len(q.out)
        ids = q.out[:-1] if q.out[-1] in self.eos else q.out
        if not q.future.done():
            q.future.set_result(Sample(q.out, q.logprobs, self.text.decode(ids), stop))

    # ---------------------------------------------------------------------------------------------------------- rows

    def _row_for(self, session: int | None) -> _Row:
        index = None if session is None else self.by_session.get(session)
        if index is not None:
            row = self.rows[index]
            assert row is not None
            if row.request is not None:
                raise RuntimeError(f"session {session} is already sampling; one conversation takes one turn at a time")
            return row
        row = _Row(session)
        free = next((i for i, r in enumerate(self.rows) if r is None), None) if None in self.rows else None
        if free is None:
            free = len(self.rows)
            self.rows.append(row)
        else:
            self.rows[free] = row
        if session is not None:
            self.by_session[session] = free
        return row

    def _forget_request(self, request: _Request) -> None:
        for i, row in enumerate(self.rows):
            if row is not None and row.request is request:
                row.request, row.started = None, False
                if row.session is None:
                    self.rows[i] = None


def _inverse_cdf(logp: Tensor, u: Tensor) -> Tensor:
    """The token whose share of the cumulative distribution holds `u` (n,); logp (n, V). Never one of probability 0."""
    wide = logp.shape[-1] > 8192  # many tiny probabilities: sum in double
    cdf = logp.exp().cumsum(-1, dtype=torch.float64 if wide else torch.float32)
    target = (u.to(cdf.dtype) * cdf[:, -1])[:, None]
    return torch.searchsorted(cdf, target, right=True)[:, 0].clamp_(max=logp.shape[-1] - 1)

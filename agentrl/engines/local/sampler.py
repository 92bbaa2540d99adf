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
KEPT_BYTES = 64 << 20  # of a cache that stays while the model is trained: making it anew costs more than it holds
QUIET_TICKS = 4  # event-loop rounds without news before an idle sampler starts a batch

# ids (n, C), index of each row's last real token (n,), cache, plan -> logits (n, V) fp32
NextLogits = Callable[[Tensor, Tensor, RowCache, Plan], Tensor]


@dataclass(eq=False)
class _Row:
    """A row of the cache that a conversation keeps; `known` are the tokens whose keys and values are there."""

    index: int
    session: int | None
    known: list[int] = field(default_factory=list)


@dataclass(eq=False)
class _Request:
    """One turn. It waits until its context is in the cache, then it is active until it ends."""

    row: _Row
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
        self.rows: list[_Row | None] = []  # by row of the cache; None is free
        self.by_session: dict[int, _Row] = {}
        self.waiting: list[_Request] = []
        self.active: list[_Request] = []
        self.driver: asyncio.Task[None] | None = None
        self.arrivals = 0
        self.sampled_tokens = 0

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
        row = self._row_for(session)
        request = _Request(row, list(ids), max_tokens, tuple(stop), temperature, loop.create_future(), draw)
        self.waiting.append(request)
        self.arrivals += 1
        if self.driver is None or self.driver.done() or self.driver.get_loop() is not loop:
            self.driver = loop.create_task(self._drive())
        try:
            return await request.future
        except asyncio.CancelledError:
            self._end(request)
            raise

    def release(self, session: int) -> None:
        """Forget a conversation; unknown sessions are ignored. A turn that is being sampled raises in `sample`."""
        row = self.by_session.pop(session, None)
        if row is not None:
            self.rows[row.index] = None
            _fail([q for q in (*self.waiting, *self.active) if q.row is row], f"session {session} was released")
            self.waiting = [q for q in self.waiting if q.row is not row]
            self.active = [q for q in self.active if q.row is not row]

    def reset(self, policy_version: int) -> None:
        """Forget everything: the weights changed, cached keys and values are those of another policy.

        Turns that are being sampled raise in `sample`: half of their tokens would be of each policy.
        """
        self.policy_version = policy_version
        _fail([*self.waiting, *self.active], "the weights changed")
        self._clear()

    def rest(self) -> None:
        """Give the memory of a large cache back where no conversation is open; the next turn makes another one."""
        if not (self.by_session or self.waiting or self.active) and self.cache.bytes > KEPT_BYTES:
            self.cache.clear()
            self.rows = []

    # ------------------------------------------------------------------------------------------------------- driving

    async def _drive(self) -> None:
        try:
            while True:
                if not self.active and await self._more_arrived():
                    continue
                if not self.active and not self.waiting:
                    return
                if self.waiting and len(self.waiting) >= len(self.active):
                    self._prefill()
                else:
                    self._decode()
                await asyncio.sleep(0)
        except Exception as e:
            for request in _by_row([*self.waiting, *self.active]):
                if not request.future.done():
                    request.future.set_exception(e)
            self._clear()

    def _clear(self) -> None:
        self.rows, self.by_session, self.waiting, self.active = [], {}, [], []

    async def _more_arrived(self) -> bool:
        """Wait for episodes that are just about to ask; True as soon as one has."""
        before = self.arrivals
        for _ in range(QUIET_TICKS):
            await asyncio.sleep(0)
        return self.arrivals != before

    def _prefill(self) -> None:
        """Feed the new tokens of the requests that wait, and sample each one's first token."""
        for request in self.waiting:
            ids, known = request.ids, request.row.known
            if ids[: len(known)] != known or len(known) == len(ids):
                same = next((k for k, (a, b) in enumerate(zip(ids, known)) if a != b), min(len(ids), len(known)))
                request.row.known = known[: min(same, len(ids) - 1)]
        fed = _alike(sorted(self.waiting, key=lambda q: (_new_tokens(q), q.row.index)))
        while fed:
            take = 1
            while take < len(fed) and (take + 1) * _new_tokens(fed[take][0]) <= PREFILL_TOKENS:
                take += 1
            self._prefill_some(fed[:take])
            fed = fed[take:]

    def _prefill_some(self, groups: list[list[_Request]]) -> None:
        """Feed the first request of each list; the others, which begin alike, get a copy of its row."""
        fed, requests = [group[0] for group in groups], [q for group in groups for q in group]
        start = [len(q.row.known) for q in fed]
        new = [q.ids[s:] for q, s in zip(fed, start)]
        longest = max(map(len, new))
        self.cache.reserve(len(self.rows), max(len(q.ids) + q.max_tokens for q in requests))
        ids = torch.tensor([n + [0] * (longest - len(n)) for n in new], device=self.device)
        count = torch.tensor([len(n) for n in new], device=self.device)
        plan = self.cache.plan([q.row.index for q in fed], torch.tensor(start, device=self.device), count)
        logits = self.next_logits(ids, count - 1, self.cache, plan)
        for first, *others in groups:
            if others:
                self.cache.copy(first.row.index, [q.row.index for q in others], len(first.ids))
        logits = logits.repeat_interleave(torch.tensor([len(g) for g in groups], device=self.device), 0)
        for request in requests:
            request.row.known = list(request.ids)
            self.waiting.remove(request)
            self.active.append(request)
        self._take(requests, logits)

    def _decode(self) -> None:
        """One token for every active request."""
        self._compact()
        active = _by_row(self.active)
        n = active[-1].row.index + 1
        ids, start, count = [0] * n, [0] * n, [0] * n
        for request in active:
            i, known = request.row.index, request.row.known
            ids[i], start[i], count[i] = request.out[-1], len(known), 1
            known.append(ids[i])
        both = torch.tensor([ids, start, count], device=self.device)
        plan = self.cache.plan(n, both[1], both[2])
        logits = self.next_logits(both[0][:, None], both[2] * 0, self.cache, plan)
        if len(active) < n:
            logits = logits[torch.tensor([q.row.index for q in active], device=self.device)]
        self._take(active, logits)

    def _compact(self) -> None:
        """Close gaps once more than a third of the rows that would be computed are idle or gone."""
        active = [q.row for q in _by_row(self.active)]
        if len(active) * 3 >= 2 * (active[-1].index + 1):
            return
        chosen = {row.index for row in active}
        order = active + [row for row in self.rows if row is not None and row.index not in chosen]
        self.cache.reserve(len(self.rows), 0)  # the newest may still wait for their first tokens
        self.cache.keep([row.index for row in order], max(len(row.known) for row in order))
        for index, row in enumerate(order):
            row.index = index
        self.rows = list(order)

    def _take(self, requests: list[_Request], logits: Tensor) -> None:
        """Sample one token for each of the requests from `logits` (n, V), and end the turns that are over."""
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
        for q, t, lp in zip(requests, token.tolist(), chosen.tolist()):
            q.out.append(t)
            q.logprobs.append(lp)
            if t in self.eos or (
                q.stop and t in self.text.candidates(q.stop) and self.text.ends_with_stop(q.out, q.stop)
            ):
                self._finish(q, "stop")
            elif len(q.out) == q.max_tokens:
                self._finish(q, "length")

    def _finish(self, request: _Request, stop: Stop) -> None:
        self._end(request)
        out = request.out
        self.sampled_tokens += len(out)
        ids = out[:-1] if out[-1] in self.eos else out
        if not request.future.done():
            request.future.set_result(Sample(out, request.logprobs, self.text.decode(ids), stop))

    def _end(self, request: _Request) -> None:
        """Take a request off its list; the row stays with its session, or is free where there is none."""
        for requests in (self.waiting, self.active):
            if request in requests:
                requests.remove(request)
                if request.row.session is None:
                    self.rows[request.row.index] = None

    # ---------------------------------------------------------------------------------------------------------- rows

    def _row_for(self, session: int | None) -> _Row:
        """The row of a session, or the first that is free."""
        if session is not None and (known := self.by_session.get(session)) is not None:
            if any(q.row is known for q in (*self.waiting, *self.active)):
                raise RuntimeError(f"session {session} is already sampling; one conversation takes one turn at a time")
            return known
        if None not in self.rows:
            self.rows.append(None)
        row = _Row(self.rows.index(None), session)
        self.rows[row.index] = row
        if session is not None:
            self.by_session[session] = row
        return row


def _fail(requests: list[_Request], why: str) -> None:
    """Nobody who waits for a turn may wait for ever."""
    for request in requests:
        if not request.future.done() and not request.future.get_loop().is_closed():
            request.future.set_exception(RuntimeError(f"{why} while it was sampling"))


def _by_row(requests: list[_Request]) -> list[_Request]:
    return sorted(requests, key=lambda q: q.row.index)


def _alike(requests: list[_Request]) -> list[list[_Request]]:
    """Requests that begin with the same context, as the episodes of a group do, together; the order is kept."""
    out: dict[object, list[_Request]] = {}
    for q in requests:
        out.setdefault(id(q) if q.row.known else tuple(q.ids), []).append(q)
    return list(out.values())


def _new_tokens(request: _Request) -> int:
    """Tokens that are not in the cache yet."""
    return len(request.ids) - len(request.row.known)


def _inverse_cdf(logp: Tensor, u: Tensor) -> Tensor:
    """The token whose share of the cumulative distribution holds `u` (n,); logp (n, V). Never one of probability 0."""
    wide = logp.shape[-1] > 8192  # many tiny probabilities: sum in double
    cdf = logp.exp().cumsum(-1, dtype=torch.float64 if wide else torch.float32)
    target = (u.to(cdf.dtype) * cdf[:, -1])[:, None]
    return torch.searchsorted(cdf, target, right=True)[:, 0].clamp_(max=logp.shape[-1] - 1)

"""The output head: one pass over the vocabulary that yields log π, entropy and the products that NTHR needs.

For an action token t with hidden state h_t and logits z_t (already divided by the temperature), the prediction error is
g_t = onehot(y_t) - softmax(z_t), times the slope of the softcap where the model has one. NTHR needs, within a group,
Σ_v g_tv (M h_t)_v with M = Σ_correct g hᵀ (NTHR §5). Two routes give the same number:

    Gram       Σ_i ⟨g_t, g_i⟩⟨h_t, h_i⟩ over the group's correct tokens i
    aggregate  Σ over blocks of the vocabulary of g_t · (M h_t)

Neither g (N, V) nor M (V, d) is ever held: both run over blocks of the vocabulary. The Gram route needs no second look
at the logits: as a streaming softmax does, it works on exp(z - largest so far) and divides by the normaliser at the
end. Only the columns of tokens that occur are left out of that sum and added from the final softmax, because there
onehot - p cancels. The aggregate route needs the normaliser first and computes the logits again.

Left out on purpose: a softmax over part of the vocabulary. Every probability here has the full normaliser.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from agentrl.errors import AlgorithmError

BLOCK_ELEMENTS = 2 * 1024 * 1024  # logits held at once: 8 MB in fp32, which a CPU's cache holds
GPU_BLOCK_ELEMENTS = 32 * 1024 * 1024  # 128 MB: a kernel over 8 MB is done before the next one is launched
GRAM_ELEMENTS = 8 * 1024 * 1024  # pairs of tokens held at once: 32 MB in fp32
CHUNK_TOKENS = 2048  # tokens looked at together; a group on the Gram route always is

Columns = slice | Tensor  # of the vocabulary: a block, or (n,) ids in ascending order
Span = tuple[int, int, int]  # a group's tokens: first, number of correct ones (which lead), one past the last


@dataclass(frozen=True)
class Head:
    """π = softmax(cap tanh((W h + b) / cap) / temperature); W is `weight`, plus B A of an adapter where there is one.

    Logits are computed in `dtype` as the model does, and are fp32 from there on (fp64 where they were).
    """

    weight: Tensor  # (V, d)
    bias: Tensor | None = None  # (V,)
    softcap: float | None = None
    temperature: float = 1.0
    low_rank: tuple[Tensor, Tensor] | None = None  # A (r, d) and B (V, r), its scale folded in
    dtype: torch.dtype | None = None  # None: that of the weight

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise AlgorithmError(
                f"temperature is {self.temperature}; a greedy policy has no gradient: sample with one above 0"
            )

    @property
    def vocabulary(self) -> int:
        """V."""
        return self.weight.shape[0]

    def logits(self, hidden: Tensor, columns: Columns) -> Tensor:
        """(N, d) to (N, n), divided by the temperature, at least fp32; a new tensor."""
        dtype = self.dtype or self.weight.dtype
        h = hidden.to(dtype)
        z = F.linear(h, self.weight[columns].to(dtype), None if self.bias is None else self.bias[columns].to(dtype))
        if self.low_rank is not None:
            a, b = self.low_rank
            z = z + F.linear(F.linear(h, a.to(dtype)), b[columns].to(dtype))
        z = z.to(torch.promote_types(dtype, torch.float32))
        if self.softcap:
            z = z.div_(self.softcap).tanh_().mul_(self.softcap)
        return z.div_(self.temperature) if self.temperature != 1.0 else z

    @property
    def result(self) -> torch.dtype:
        """Of what a pass over the head yields: fp32, or fp64 where logits are."""
        return torch.promote_types(self.dtype or self.weight.dtype, torch.float32)

    def slope(self, logits: Tensor) -> Tensor | None:
        """∂logits / ∂(W h) without its factor 1/temperature, (N, n); None where it is 1 everywhere."""
        return 1.0 - (logits * (self.temperature / self.softcap)).square_() if self.softcap else None

    def error(self, hidden: Tensor, token_ids: Tensor, logsumexp: Tensor, columns: Columns) -> Tensor:
        """g (N, n): onehot - p on `columns`, times the slope."""
        z = self.logits(hidden, columns)
        slope = self.slope(z)
        g = _subtract_from_onehot(z.sub_(logsumexp[:, None]).exp_(), token_ids, columns)
        return g if slope is None else g.mul_(slope)


def _subtract_from_onehot(p: Tensor, token_ids: Tensor, columns: Columns) -> Tensor:
    """onehot(token_ids) - p on `columns`, in place of p (N, n)."""
    n = p.shape[1]
    if isinstance(columns, slice):
        at = token_ids - (columns.start or 0)
        hit = (at >= 0) & (at < n)
    else:
        at = torch.searchsorted(columns, token_ids).clamp_(max=n - 1)
        hit = columns[at] == token_ids
    return p.neg_().scatter_add_(1, at.clamp(0, n - 1)[:, None], hit.to(p.dtype)[:, None])


def block_elements(device: torch.device) -> int:
    """How many logits are held at once on `device`."""
    return BLOCK_ELEMENTS if device.type == "cpu" else GPU_BLOCK_ELEMENTS


def blocks(total: int, rows: int, device: torch.device) -> list[slice]:
    """Ranges of 0..total in even parts, so that a (rows, part) tensor has about `block_elements` elements."""
    most = max(64, block_elements(device) // max(rows, 1))
    size = -(-total // -(-total // most)) if total else 1
    return [slice(a, min(a + size, total)) for a in range(0, total, size)]


def prefers_gram(tokens: int, correct: int, n: int, d: int, again: int = 0) -> bool:
    """Whether tokens x correct pairs cost less than n x d entries of M (`again`: logits that the latter needs anew)."""
    return tokens * correct * (n + d) <= (tokens + correct + again) * n * d and tokens * correct <= GRAM_ELEMENTS


# ---------------------------------------------------------------------------------------------------- the one pass


@dataclass(frozen=True)
class HeadPass:
    """What one pass knows of each token, all (N,) of the head's `result` type."""

    logprobs: Tensor  # log π of the token, nats
    logsumexp: Tensor  # of the logits divided by the temperature
    entropy: Tensor | None  # nats
    scores: Tensor | None  # NTHR, full vocabulary; 0 outside the spans


@dataclass(frozen=True)
class _Statistics:
    """What the pass fills in, all (N,) and 0 before; the normaliser is in two parts.

    `part` is a view: what is written there is written here.
    """

    logprobs: Tensor
    top: Tensor  # the largest logit
    log_total: Tensor  # log Σ exp(logit - top)
    entropy: Tensor
    scores: Tensor

    @classmethod
    def zeros(cls, n: int, head: Head, device: torch.device) -> _Statistics:
        return cls(*torch.zeros(5, n, device=device, dtype=head.result))

    def part(self, start: int, end: int) -> _Statistics:
        return _Statistics(
            self.logprobs[start:end],
            self.top[start:end],
            self.log_total[start:end],
            self.entropy[start:end],
            self.scores[start:end],
        )

    def write(self, own: Tensor, top: Tensor, log_total: Tensor) -> None:
        """log π from the token's `own` logit less `top`, and the normaliser."""
        self.logprobs.copy_(own - log_total)
        self.top.copy_(top)
        self.log_total.copy_(log_total)


@torch.no_grad()
def head_pass(
    head: Head,
    hidden: Tensor,
    token_ids: Tensor,
    *,
    entropy: bool = False,
    spans: list[Span] | None = None,
    chunk_tokens: int = CHUNK_TOKENS,
) -> HeadPass:
    """log π of `token_ids` (N,) given `hidden` (N, d), and exact NTHR scores of the groups that `spans` name.

    `spans` ascend without overlap. Memory beside the results is a few times `block_elements` plus GRAM_ELEMENTS,
    whatever the number of tokens and the size of the vocabulary.
    """
    n, d = hidden.shape
    stats = _Statistics.zeros(n, head, hidden.device)
    with torch.autocast(hidden.device.type, enabled=False):
        for start, end, inside in _bundles(n, d, spans or [], head, chunk_tokens):
            part = stats.part(start, end)
            h, y = hidden[start:end], token_ids[start:end]
            if (end - start) * head.vocabulary <= block_elements(hidden.device):
                _dense(head, h, y, inside, part, entropy)
            else:
                _streamed(head, h, y, inside, part, entropy)
        lse = stats.top + stats.log_total
        for start, correct, end in spans or []:
            if not _takes_gram(start, correct, end, head, d):
                rows = slice(start, end)
                stats.scores[rows] = column_scores(
                    head, hidden[rows], token_ids[rows], lse[rows], correct, chunk_tokens=chunk_tokens
                )
    return HeadPass(stats.logprobs, lse, stats.entropy if entropy else None, None if spans is None else stats.scores)


def _takes_gram(start: int, correct: int, end: int, head: Head, d: int) -> bool:
    return prefers_gram(end - start, correct, head.vocabulary, d, again=end - start)


def _bundles(n: int, d: int, spans: list[Span], head: Head, chunk: int) -> Iterator[tuple[int, int, list[Span]]]:
    """Ranges of about `chunk` tokens that tear no Gram group, with the spans inside, relative to the range."""
    gram = [s for s in spans if _takes_gram(*s, head, d)]
    start = 0
    while start < n:
        end = min(start + chunk, n)
        inside: list[Span] = []
        while gram and gram[0][0] < end:
            first, correct, last = gram[0]
            if last > end:
                if first > start:
                    end = first  # leave it to the next range
                    break
                end = last  # it is longer than a chunk
            inside.append((first - start, correct, last - start))
            gram.pop(0)
        yield start, end, inside
        start = end


def _dense(head: Head, hidden: Tensor, y: Tensor, spans: list[Span], out: _Statistics, entropy: bool) -> None:
    """All logits fit: (N, V) is held once and turned into p and g in place."""
    everything = slice(0, head.vocabulary)
    z = head.logits(hidden, everything)
    slope = head.slope(z) if spans else None
    top = z.amax(1)
    z.sub_(top[:, None])
    own = z.gather(1, y[:, None])[:, 0]
    e = z.exp()
    total = e.sum(1)
    log_total = total.log()
    out.write(own, top, log_total)
    if entropy:
        out.entropy[:] = log_total - z.clamp_(min=-200.0).mul_(e).sum(1) / total  # the clamp keeps 0 * -inf out
    if not spans:
        return
    g = _subtract_from_onehot(e.div_(total[:, None]), y, everything)
    if slope is not None:
        g.mul_(slope)
    for a, correct, b in spans:
        out.scores[a:b] = _finish(g[a:b] @ g[a : a + correct].t(), hidden[a:b], head)


def _streamed(head: Head, hidden: Tensor, y: Tensor, spans: list[Span], out: _Statistics, entropy: bool) -> None:
    """Blocks of the vocabulary, with a running maximum; products of pairs are scaled to the final one at the end."""
    n = len(y)
    top = torch.full_like(out.top, -1e30)  # below every logit, and finite
    total, own, heat = (torch.zeros_like(top) for _ in range(3))
    parts = blocks(head.vocabulary, n, y.device)
    occurring = torch.unique(y)
    edges = torch.tensor([p.stop for p in parts], device=y.device)
    cuts = [0, *torch.searchsorted(occurring, edges).tolist()]  # occurring[cuts[i] : cuts[i + 1]] lie in parts[i]
    pairs = [top.new_zeros(b - a, correct) for a, correct, b in spans]
    room = top.new_empty(n * max(p.stop - p.start for p in parts) if entropy else 0)  # made once
    for i, block in enumerate(parts):
        z = head.logits(hidden, block)
        slope = head.slope(z) if spans else None
        at = y - block.start
        hit = (at >= 0) & (at < z.shape[1])
        own = torch.where(hit, z.gather(1, at.clamp(0, z.shape[1] - 1)[:, None])[:, 0], own)
        above = torch.maximum(top, z.amax(1))
        shrink = (top - above).exp()
        z.sub_(above[:, None])
        if entropy:  # Σ e·(z - top), moved to the new top
            z.clamp_(min=-200.0)
            heat = shrink * (heat + (top - above).clamp(min=-1e3) * total)
            e = torch.exp(z, out=room[: z.numel()].view_as(z))
            heat += z.mul_(e).sum(1)
        else:
            e = z.exp_()
        top = above
        total = total * shrink + e.sum(1)
        if spans:
            e.index_fill_(1, occurring[cuts[i] : cuts[i + 1]] - block.start, 0.0)
        if slope is not None:
            e.mul_(slope)
        for (a, correct, b), k in zip(spans, pairs):
            k.mul_(shrink[a:b, None]).mul_(shrink[None, a : a + correct])
            k.addmm_(e[a:b], e[a : a + correct].t())
        del z, e  # before the next block is made
    log_total = total.log()
    out.write(own - top, top, log_total)
    if entropy:
        out.entropy[:] = log_total - heat / total
    if not spans:
        return
    for (a, correct, _), k in zip(spans, pairs):
        k.div_(total[a : a + len(k), None]).div_(total[None, a : a + correct])
    for part in blocks(len(occurring), n, y.device):
        g = head.error(hidden, y, top + log_total, occurring[part])
        for (a, correct, b), k in zip(spans, pairs):
            k.addmm_(g[a:b], g[a : a + correct].t())
    for (a, _, b), k in zip(spans, pairs):
        out.scores[a:b] = _finish(k, hidden[a:b], head)


def _finish(pairs: Tensor, hidden: Tensor, head: Head) -> Tensor:
    """Σ_i ⟨g_t, g_i⟩⟨h_t, h_i⟩ (T,) from the first product (T, P) and hidden (T, d)."""
    right = hidden[: pairs.shape[1]].to(pairs.dtype)
    rows = blocks(len(hidden), hidden.shape[1], hidden.device)
    scores = torch.cat([(pairs[r] @ right).mul_(hidden[r]).sum(1) for r in rows])
    return scores if head.temperature == 1.0 else scores / head.temperature**2


# ------------------------------------------------------------------------------------------- with a known normaliser


@torch.no_grad()
def column_scores(
    head: Head,
    hidden: Tensor,
    token_ids: Tensor,
    logsumexp: Tensor,
    correct: int,
    *,
    columns: Tensor | None = None,
    chunk_tokens: int = CHUNK_TOKENS,
) -> Tensor:
    """Σ over `columns` (n,) ascending (all of the vocabulary without) of g_tv (M h_t)_v: (T,) fp32, for one group.

    hidden (T, d), token_ids, logsumexp (T,); the first `correct` tokens are those of correct responses.
    """
    n_tokens, d = hidden.shape
    scores = torch.zeros(n_tokens, device=hidden.device)
    chunks = [slice(a, min(a + chunk_tokens, n_tokens)) for a in range(0, n_tokens, chunk_tokens)]
    right = [slice(a, min(a + chunk_tokens, correct)) for a in range(0, correct, chunk_tokens)]
    width = head.vocabulary if columns is None else len(columns)
    with torch.autocast(hidden.device.type, enabled=False):
        h = hidden.float() if len(chunks) == 1 else None
        for block in blocks(width, max(min(n_tokens, chunk_tokens), d), hidden.device):
            at = block if columns is None else columns[block]
            if h is not None:  # g of all tokens at once
                g = head.error(hidden, token_ids, logsumexp, at)
                if prefers_gram(n_tokens, correct, g.shape[1], d):
                    scores += ((g @ g[:correct].t()) @ h[:correct]).mul_(h).sum(1)
                else:
                    scores += (h @ (g[:correct].t() @ h[:correct]).t()).mul_(g).sum(1)
                continue
            m = torch.zeros(block.stop - block.start, d, device=hidden.device)
            for r in right:
                m.addmm_(head.error(hidden[r], token_ids[r], logsumexp[r], at).t(), hidden[r].float())
            for r in chunks:
                g = head.error(hidden[r], token_ids[r], logsumexp[r], at)
                scores[r] += (hidden[r].float() @ m.t()).mul_(g).sum(1)
    return scores if head.temperature == 1.0 else scores / head.temperature**2

"""NTHR: soften the penalty on tokens of wrong responses that resemble what correct responses say (NTHR §5 and Thm 4.4).

Source: Deng et al. 2025, *On the Effect of Negative Gradient in Group Relative Deep Reinforcement Optimization*, arXiv
2505.18830, §5, Algorithm 1, §7.3-7.4; GWHES from Thm 4.4. Within a group, with the prediction error g_t of each action
token (`head.py`) and M = Σ_correct g hᵀ:

    s_t = g_tᵀ M h_t, which is ⟨∇_W log π(y_t), Σ_correct ∇_W log π⟩ for the output head W       Eq. (7)
    τ   = β · min over correct responses of the mean of their tokens' scores
    η   = 2·|½ - p| multiplies the advantage of tokens of incorrect responses with s_t > τ

`exact` sums over the whole vocabulary and is the definition. `vstar` sums over the tokens that occur in the group (the
paper's shortcut), with probabilities that keep the full normaliser. `auto` measures on the first groups of a batch how
often the two select the same, and takes `vstar` for the rest where that is at least `AGREEMENT`; where the vocabulary
is small, exact costs no more and is taken at once.

A group is *mixed* if it has action tokens of both correct and incorrect responses. Any other has nothing to protect or
nothing to soften: its scores are 0, no token is selected whatever β, η is 1, and τ and GWHES are not a number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from agentrl.algorithms.head import CHUNK_TOKENS, Head, HeadPass, Span, column_scores, head_pass
from agentrl.errors import AlgorithmError, nearest

METHODS = ("exact", "vstar", "auto")
ETAS = ("2|0.5-p|", "0", "p", "1-p")
AGREEMENT = 0.995  # share of incorrect tokens on which V* must decide as the definition does
SAMPLE_TOKENS = 1000  # incorrect tokens on which `auto` measures that share
SMALL_VOCABULARY = 4096  # up to here the whole vocabulary costs about as much as the tokens that occur


@dataclass(frozen=True)
class NTHRResult:
    """N tokens in the order they were given, Γ groups in ascending order of their id (Γ = 1 for one group)."""

    scores: Tensor  # (N,) fp32
    thresholds: Tensor  # (Γ,) τ
    selected: Tensor  # (N,) bool: incorrect tokens whose advantage is multiplied by η
    eta: Tensor  # (Γ,)
    gwhes: Tensor  # (Γ,)
    factor: Tensor  # (N,) η where selected, 1 elsewhere
    group_ids: Tensor  # (Γ,) int64
    agreement: float | None = None  # of V* with exact, where `auto` measured it


@dataclass(frozen=True)
class Layout:
    """Which response and which group a token belongs to. Tokens are ordered by group, correct responses first."""

    response: Tensor  # (N,) index of the token's response
    group: Tensor  # (B,) slot of the response's group, 0..Γ-1
    correct: Tensor  # (B,) bool
    groups: int  # Γ

    def order(self) -> Tensor:
        """(N,) the permutation that puts tokens into the order this class asks for; stable."""
        return torch.argsort(2 * self.group[self.response] + (~self.correct[self.response]), stable=True)

    def part(self, tokens: slice) -> Layout:
        """The same responses and groups with only some of the tokens."""
        return replace(self, response=self.response[tokens])

    def spans(self) -> list[Span]:
        """The tokens of each mixed group."""
        kind = 2 * self.group[self.response] + (~self.correct[self.response])
        counts = torch.bincount(kind, minlength=2 * self.groups).view(-1, 2).tolist()
        out, start = [], 0
        for right, wrong in counts:
            if right and wrong:
                out.append((start, right, start + right + wrong))
            start += right + wrong
        return out


@dataclass
class Agreement:
    """What `auto` has measured so far in this batch."""

    same: int = 0
    tokens: int = 0

    @property
    def share(self) -> float | None:
        """Of incorrect tokens, those on which V* and exact decide alike; None before a measurement."""
        return self.same / self.tokens if self.tokens else None


@torch.no_grad()
def nthr_scores(
    hidden: Tensor,
    token_ids: Tensor,
    head_weight: Tensor,
    response_ids: Tensor,
    correct: Tensor,
    group_ids: Tensor | None = None,
    *,
    head_bias: Tensor | None = None,
    temperature: float = 1.0,
    method: str = "exact",
    chunk_tokens: int = CHUNK_TOKENS,
    softcap: float | None = None,
    beta: float = 1.0,
    eta: str | float = "2|0.5-p|",
    baseline: str | None = None,
    seed: int = 0,
) -> NTHRResult:
    """Scores, threshold and selection of the action tokens of one group, or of many with `group_ids`.

    hidden (N, d): the input of the output head; token_ids (N,); response_ids, group_ids (N,): any integers in any
    order, response ids unique within a group; correct (N,) bool, the same for all tokens of a response; head_weight
    (V, d); head_bias (V,). temperature and softcap: those of the policy that sampled. chunk_tokens bounds the memory,
    not the result. beta: factor of the threshold, -inf selects every incorrect token. eta: one of `ETAS` or a number.
    baseline "random": as many tokens per response, chosen uniformly with `seed`. p is the share of correct responses
    among those that have tokens here. Raises AlgorithmError.
    """
    if baseline not in (None, "random"):
        raise AlgorithmError(f"baseline {baseline!r} does not exist; use 'random' or None")
    if group_ids is None:
        group_ids = torch.zeros_like(response_ids)
    _check_tokens(hidden, token_ids, head_weight, response_ids, correct, group_ids)
    groups, slot = torch.unique(group_ids, return_inverse=True)
    pairs, response = torch.unique(torch.stack([slot, response_ids]), dim=1, return_inverse=True)
    right = torch.zeros(pairs.shape[1], dtype=torch.int64, device=response.device)
    right.index_add_(0, response, correct.long())
    size = torch.bincount(response, minlength=pairs.shape[1])
    if bool(((right != 0) & (right != size)).any()):
        i = int(((right != 0) & (right != size)).nonzero()[0])
        raise AlgorithmError(
            f"response {int(pairs[1, i])} has {int(right[i])} tokens marked correct and {int(size[i] - right[i])} not; "
            "correctness belongs to the whole response"
        )
    layout = Layout(response, pairs[0], right > 0, len(groups))
    order = layout.order()
    layout = replace(layout, response=response[order])
    draw = torch.rand(len(order), generator=torch.Generator().manual_seed(seed)) if baseline else None
    _, result = nthr_pass(
        Head(head_weight, head_bias, softcap, temperature), hidden[order], token_ids[order], layout,
        method=method, chunk_tokens=chunk_tokens, beta=beta, eta=eta, draw=draw,
    )  # fmt: skip
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    return replace(
        result,
        scores=result.scores[back],
        selected=result.selected[back],
        factor=result.factor[back],
        group_ids=groups,
    )


@torch.no_grad()
def nthr_pass(
    head: Head,
    hidden: Tensor,
    token_ids: Tensor,
    layout: Layout,
    *,
    method: str = "exact",
    entropy: bool = False,
    chunk_tokens: int = CHUNK_TOKENS,
    beta: float = 1.0,
    eta: str | float = "2|0.5-p|",
    draw: Tensor | None = None,
    agreement: Agreement | None = None,
) -> tuple[HeadPass, NTHRResult]:
    """log π, entropy and NTHR of N tokens from one pass over the output head.

    hidden (N, d) and token_ids (N,) in the order of `layout`. draw (N,): random numbers that select in place of the
    scores (`random_like`). agreement: carries what `auto` measures from one part of a batch to the next. Group ids of
    the result are slots. Raises AlgorithmError, also where logits are not finite.
    """
    if method not in METHODS:
        raise AlgorithmError(f"method {method!r} does not exist{nearest(method, METHODS)}; known: {', '.join(METHODS)}")
    if math.isnan(beta):
        raise AlgorithmError("beta is not a number; 1 is the paper's value, -inf selects every incorrect token")
    spans = layout.spans()
    agreement = agreement or Agreement()
    if method == "auto" and head.vocabulary <= SMALL_VOCABULARY:
        method = "exact"
    cut = _sample(spans, SAMPLE_TOKENS - agreement.tokens) if method == "auto" else 0
    passes = []
    if cut:
        here, first = slice(0, cut), [s for s in spans if s[2] <= cut]
        passes.append(
            _one_method(head, hidden[here], token_ids[here], layout.part(here), first, "exact", entropy, chunk_tokens)
        )
        _measure(agreement, head, hidden[here], token_ids[here], layout.part(here), first, passes[0], beta)
    if method == "auto":
        method = "vstar" if (agreement.share or 0.0) >= AGREEMENT else "exact"
    if cut < len(hidden) or not cut:
        here, rest = slice(cut, len(hidden)), [(a - cut, n, b - cut) for a, n, b in spans if a >= cut]
        passes.append(
            _one_method(head, hidden[here], token_ids[here], layout.part(here), rest, method, entropy, chunk_tokens)
        )
    done = passes[0] if len(passes) == 1 else _joined(passes)
    assert done.scores is not None
    result = _select(done.scores, layout, beta, eta)
    if draw is not None:
        selected = random_like(result.selected, layout.response, draw)
        result = replace(result, selected=selected, factor=_factor(selected, result.eta, layout))
    return done, replace(result, agreement=agreement.share)


def _one_method(
    head: Head,
    hidden: Tensor,
    y: Tensor,
    layout: Layout,
    spans: list[Span],
    method: str,
    entropy: bool,
    chunk_tokens: int,
) -> HeadPass:
    """The pass with scores by `exact` or `vstar`."""
    exact = spans if method == "exact" else None
    done = head_pass(head, hidden, y, entropy=entropy, spans=exact, chunk_tokens=chunk_tokens)
    finite = done.logsumexp.isfinite()
    if not bool(finite.all()):
        i = int((~finite).nonzero()[0])
        own = layout.response == layout.response[i]  # (N,); the order of a response's tokens is kept
        raise AlgorithmError(
            f"the logits of {int((~finite).sum())} of {len(y)} action tokens are not finite (one is number "
            f"{int(own[: i + 1].sum())} of the {int(own.sum())} of its response, id {int(y[i])}); the weights have "
            "diverged: go back to the last checkpoint and lower optim.lr"
        )
    if exact is not None:
        return done
    return replace(done, scores=_vstar(head, hidden, y, done.logsumexp, spans, chunk_tokens))


def _vstar(head: Head, hidden: Tensor, y: Tensor, lse: Tensor, spans: list[Span], chunk_tokens: int) -> Tensor:
    """Scores over the tokens that occur in each group; `lse` is over the whole vocabulary."""
    scores = torch.zeros(len(y), device=y.device)
    for a, right, b in spans:
        scores[a:b] = column_scores(
            head, hidden[a:b], y[a:b], lse[a:b], right, columns=torch.unique(y[a:b]), chunk_tokens=chunk_tokens
        )
    return scores


def _sample(spans: list[Span], tokens: int) -> int:
    """Where the first groups end that have `tokens` incorrect tokens together."""
    end = 0
    for a, right, b in spans:
        if tokens <= 0:
            break
        tokens -= b - a - right
        end = b
    return end


def _measure(
    agreement: Agreement, head: Head, hidden: Tensor, y: Tensor, layout: Layout, spans: list[Span], exact: HeadPass,
    beta: float,
) -> None:  # fmt: skip
    """Add to `agreement` the incorrect tokens of these groups."""
    assert exact.scores is not None
    vstar = _vstar(head, hidden, y, exact.logsumexp, spans, CHUNK_TOKENS)
    same = _select(exact.scores, layout, beta, 1.0).selected == _select(vstar, layout, beta, 1.0).selected
    for a, right, b in spans:
        agreement.same += int(same[a + right : b].sum())
        agreement.tokens += b - a - right


def _joined(passes: list[HeadPass]) -> HeadPass:
    def cat(parts: list[Tensor | None]) -> Tensor | None:
        tensors = [p for p in parts if p is not None]
        return torch.cat(tensors) if tensors else None

    logprobs, lse = torch.cat([p.logprobs for p in passes]), torch.cat([p.logsumexp for p in passes])
    return HeadPass(logprobs, lse, cat([p.entropy for p in passes]), cat([p.scores for p in passes]))


# -------------------------------------------------------------------------------------------------------- selection


def _select(scores: Tensor, layout: Layout, beta: float, eta: str | float) -> NTHRResult:
    """Thresholds, selection, η and GWHES from the scores (N,)."""
    B, G, group = len(layout.group), layout.groups, layout.group
    n = torch.bincount(layout.response, minlength=B)
    total = scores.new_zeros(B, dtype=torch.float64).index_add_(0, layout.response, scores.double())
    kind = 2 * group + (~layout.correct)  # (B,): correct and incorrect responses of each group
    tokens = torch.bincount(kind, weights=n.double(), minlength=2 * G).view(G, 2)
    responses = torch.bincount(kind, minlength=2 * G).view(G, 2)
    sums = torch.bincount(kind, weights=total, minlength=2 * G).view(G, 2)
    mixed = (tokens > 0).all(1)  # (G,)
    p = responses[:, 0] / responses.sum(1).clamp(min=1)
    mean = torch.where(layout.correct & (n > 0), total / n.clamp(min=1), math.inf)  # (B,)
    lowest = mean.new_full((G,), math.inf).scatter_reduce_(0, group, mean, "amin")
    tau = (torch.full_like(lowest, beta) if math.isinf(beta) else beta * lowest).where(mixed, math.nan)
    of_token = group[layout.response]
    wrong = ~layout.correct[layout.response]
    selected = (scores > tau[of_token]) & wrong  # nothing is larger than a threshold that is not a number
    factor_of_group = eta_values(eta, p).where(mixed, 1.0)
    odds = ((1 - p) / p).sqrt()  # p⁺ = (1-p)/√(p(1-p)), and p⁻ is its inverse
    gwhes = (sums[:, 1] / odds - sums[:, 0] * odds).where(mixed, math.nan)
    return NTHRResult(
        scores,
        tau.float(),
        selected,
        factor_of_group.float(),
        gwhes.float(),
        _factor(selected, factor_of_group, layout),
        torch.arange(G, device=scores.device),
    )


def _factor(selected: Tensor, eta: Tensor, layout: Layout) -> Tensor:
    return torch.where(selected, eta.float()[layout.group[layout.response]], 1.0)


def eta_values(eta: str | float, p: Tensor) -> Tensor:
    """η for the share p of correct responses; both (Γ,)."""
    if eta == "2|0.5-p|":
        return 2 * (0.5 - p).abs()
    if eta == "p":
        return p
    if eta == "1-p":
        return 1 - p
    try:
        value = float(eta)
    except ValueError:
        names = ", ".join(ETAS)
        raise AlgorithmError(f"eta is {eta!r}{nearest(str(eta), ETAS)}; known: {names}, or a number") from None
    if not math.isfinite(value):
        raise AlgorithmError(f"eta is {value}; it multiplies advantages and must be finite, for example 0.5")
    return torch.full_like(p, value)


def random_like(selected: Tensor, response: Tensor, draw: Tensor) -> Tensor:
    """As many tokens of every response as in `selected` (N,): those with the smallest `draw` (§5.3 of the paper).

    response (N,): any integers; draw (N,): uniform on [0, 1).
    """
    _, slot, size = torch.unique(response, return_inverse=True, return_counts=True)
    order = torch.argsort(slot.double() + draw.double().to(slot.device))  # by response, at random within
    first = size.cumsum(0) - size
    rank = torch.empty_like(slot)
    rank[order] = torch.arange(len(slot), device=slot.device) - first[slot[order]]
    wanted = torch.zeros_like(size).index_add_(0, slot, selected.long())
    return rank < wanted[slot]


def _check_tokens(hidden: Tensor, token_ids: Tensor, weight: Tensor, *per_token: Tensor) -> None:
    """Shapes and ranges; per_token: response_ids, correct, group_ids."""
    shapes = [tuple(t.shape) for t in (hidden, token_ids, weight, *per_token)]
    names = "hidden (N, d), token_ids (N,), head_weight (V, d), response_ids, correct and group_ids (N,)"
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise AlgorithmError(f"shapes are {shapes}; wanted are {names}")
    if any(t.shape != hidden.shape[:1] for t in (token_ids, *per_token)):
        raise AlgorithmError(f"shapes are {shapes}; wanted are {names}")
    if per_token[1].dtype != torch.bool:
        raise AlgorithmError(f"correct is {per_token[1].dtype}; give bool, one per token: rewards >= threshold")
    if not len(token_ids):
        raise AlgorithmError("there are no action tokens to score; leave empty groups out")
    low, high = int(token_ids.min()), int(token_ids.max())
    if low < 0 or high >= len(weight):
        raise AlgorithmError(f"token ids run from {low} to {high}, but the head has {len(weight)} rows")

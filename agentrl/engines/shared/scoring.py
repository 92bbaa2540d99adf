"""The scoring pass of an engine's model: log π_old, entropy, and NTHR from the same hidden states and logits.

Without NTHR, rows are scored in micro-batches. With it, a group must be looked at whole: the model's forward is still
micro-batched by token budget, the hidden states of the action tokens of whole groups are collected on the device, and
one pass over the output head yields everything. Only (N,) results leave the device. Where whole groups fit into a
micro-batch, an update's own forward pass yields the same (`GroupScores`, used by `updates.loss_of_rows`).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from agentrl.algorithms.head import Head, HeadPass
from agentrl.algorithms.nthr import Agreement, Layout, NTHRResult, nthr_pass
from agentrl.batch import TokenBatch, micro_batches
from agentrl.config import NTHRConfig
from agentrl.engines.base import Scorer, ScoreResult
from agentrl.engines.shared.head import OutputHead
from agentrl.errors import ModelError

HELD = 4  # hidden states are collected over this many micro-batches at most,
HELD_BYTES = 32 * 1024 * 1024  # and up to this size, or of one group where that is more


@torch.no_grad()
def score_batch(
    engine: Scorer, batch: TokenBatch, temperature: float, nthr: NTHRConfig | None, entropy: bool
) -> ScoreResult:
    """See `engines.base.Engine.score`."""
    if nthr is not None:
        return _score_with_nthr(engine, batch, temperature, nthr, entropy)
    shape = batch.action_mask.shape
    out = ScoreResult(torch.zeros(shape), torch.zeros(shape) if entropy else None)
    score_rows(engine, batch, torch.arange(len(batch)), temperature, out)
    return out


@torch.no_grad()
def score_rows(engine: Scorer, batch: TokenBatch, rows: Tensor, temperature: float, out: ScoreResult) -> None:
    """log π of the rows `rows` into `out`, and entropy where `out` has one; in micro-batches."""
    for index in micro_batches(batch.lengths()[rows], engine.micro_batch_tokens):
        here = rows[index]
        part = batch.rows(here).to(engine.device)
        logprobs, entropy = engine.logprobs(part, temperature, entropy=out.entropy is not None)
        write_rows(out, here, logprobs, entropy)


def write_rows(out: ScoreResult, rows: Tensor, logprobs: Tensor, entropy: Tensor | None) -> None:
    """A micro-batch's values (n, S'), on any device, into the rows `rows` of `out` (B, S)."""
    out.logprobs[rows, : logprobs.shape[1]] = logprobs.detach().cpu()
    if out.entropy is not None and entropy is not None:
        out.entropy[rows, : entropy.shape[1]] = entropy.detach().cpu()


def _score_with_nthr(
    engine: Scorer, batch: TokenBatch, temperature: float, nthr: NTHRConfig, entropy: bool
) -> ScoreResult:
    shape = batch.action_mask.shape
    out = ScoreResult(torch.zeros(shape), torch.zeros(shape) if entropy else None)
    groups = GroupScores(engine, batch, temperature, nthr, out)
    most = min(HELD * engine.micro_batch_tokens, HELD_BYTES // (4 * engine.head.module.weight.shape[1]))
    for index in _whole_groups(batch, most):
        groups.fill(index, _hidden_of_actions(engine, batch.rows(index)))
    groups.finish()
    return out


class GroupScores:
    """Fills a `ScoreResult` by whole groups from the head's inputs: log π, entropy where it has one, and NTHR."""

    def __init__(
        self, engine: Scorer, batch: TokenBatch, temperature: float, nthr: NTHRConfig, out: ScoreResult
    ) -> None:
        self.batch, self.nthr, self.out = batch, nthr, out
        self.device, self.most = engine.device, engine.micro_batch_tokens
        self.head = nthr_head(engine.head, temperature, torch.bfloat16 if engine.config.dtype == "bfloat16" else None)
        self.agreement = Agreement()
        self.draw = _draw(batch) if nthr.baseline == "random" else None
        shape = batch.action_mask.shape
        out.nthr_scores, out.nthr_factor = torch.zeros(shape), torch.ones(shape)
        out.nthr_selected, out.gwhes = torch.zeros(shape, dtype=torch.bool), {}

    def fill(self, index: Tensor, hidden: Tensor) -> HeadPass:
        """The rows `index`: whole groups, correct ones first. hidden (N, d): the head's inputs at their action tokens.

        Writes what is known of them, and returns what the pass over the head has found.
        """
        part, nthr = self.batch.rows(index), self.nthr
        mask = part.action_mask
        ids, group = torch.unique(part.group_ids, return_inverse=True)
        layout = Layout(mask.nonzero()[:, 0], group, part.correct, len(ids))
        done, result = nthr_pass(
            self.head, hidden, part.input_ids[:, 1:][mask].to(self.device), _on(layout, self.device),
            method=nthr.method, entropy=self.out.entropy is not None, beta=nthr.beta, eta=nthr.eta,
            draw=None if self.draw is None else self.draw[index, : mask.shape[1]][mask], agreement=self.agreement,
        )  # fmt: skip
        _fill(self.out, index, mask, done, result)
        assert self.out.gwhes is not None
        self.out.gwhes |= {int(g): v for g, v in zip(ids, result.gwhes.tolist()) if v == v}
        return done

    def finish(self) -> None:
        """The metrics of all groups."""
        self.out.metrics |= nthr_metrics(self.batch, self.out)
        if self.agreement.share is not None:
            self.out.metrics["nthr_agreement"] = self.agreement.share

    def micro_batches(self, rows: Tensor) -> tuple[Tensor, list[Tensor]]:
        """All rows of the groups of `rows`, and the same in parts of whole groups, correct ones first in each."""
        batch = self.batch
        wanted = torch.isin(batch.group_ids, batch.group_ids[rows]).nonzero()[:, 0]
        part = batch.rows(wanted)
        parts = [wanted[index] for index in group_batches(part.lengths(), part.group_ids, part.correct, self.most)]
        return wanted, parts


def group_batches(lengths: Tensor, groups: Tensor, correct: Tensor, most: int) -> list[Tensor]:
    """Rows of whole groups, correct ones first in each, with a padded size of at most `most` tokens.

    All tensors (B,). A group that is larger is a batch alone.
    """
    order = torch.argsort(2 * groups + (~correct), stable=True)
    _, sizes = torch.unique_consecutive(groups[order], return_counts=True)
    out: list[Tensor] = []
    start = end = longest = 0
    for size in sizes.tolist():
        here = int(lengths[order[end : end + size]].max())
        if end > start and max(longest, here) * (end + size - start) > most:
            out.append(order[start:end])
            start, longest = end, 0
        longest, end = max(longest, here), end + size
    return [*out, order[start:end]] if end > start else out


def whole_groups_fit(batch: TokenBatch, most: int) -> bool:
    """Whether each group of `batch` fits into a micro-batch of `most` tokens, padding included."""
    lengths, groups = batch.lengths(), batch.group_ids
    return all(int(lengths[groups == g].max()) * int((groups == g).sum()) <= most for g in groups.unique())


def nthr_metrics(batch: TokenBatch, scored: ScoreResult) -> dict[str, float]:
    """`nthr_selected`, the share of tokens of incorrect responses in mixed groups, and `nthr_eta`; absent without."""
    assert scored.gwhes is not None and scored.nthr_selected is not None and scored.nthr_factor is not None
    out: dict[str, float] = {}
    mixed = torch.isin(batch.group_ids, torch.tensor(list(scored.gwhes), dtype=torch.int64))
    penalised = batch.action_mask & (mixed & ~batch.correct)[:, None]
    if bool(penalised.any()):
        out["nthr_selected"] = float(scored.nthr_selected[penalised].float().mean())
    if bool(scored.nthr_selected.any()):
        out["nthr_eta"] = float(scored.nthr_factor[scored.nthr_selected].mean())
    return out


def _draw(batch: TokenBatch) -> Tensor:
    """Random numbers (B, S) that are the same in a resumed run: their seed is read off the batch."""
    place = torch.arange(1, batch.input_ids.shape[1] + 1)
    seed = int((batch.input_ids * batch.attention_mask * place).sum())
    return torch.rand(batch.action_mask.shape, generator=torch.Generator().manual_seed(seed))


def _fill(out: ScoreResult, index: Tensor, mask: Tensor, done: HeadPass, result: NTHRResult) -> None:
    """Write the (N,) results of the rows `index`, whose action tokens are `mask` (n, S), into the (B, S) tensors."""
    pairs = [
        (out.logprobs, done.logprobs), (out.entropy, done.entropy), (out.nthr_scores, result.scores),
        (out.nthr_selected, result.selected), (out.nthr_factor, result.factor),
    ]  # fmt: skip
    row, column = mask.nonzero().unbind(1)
    at = (index[row], column)
    for target, value in pairs:
        if target is not None and value is not None:
            target[at] = value.cpu()


def _whole_groups(batch: TokenBatch, most: int) -> Iterator[Tensor]:
    """Rows of whole groups, correct ones first in each, with about `most` tokens in all; every row once."""
    order = torch.argsort(2 * batch.group_ids + (~batch.correct), stable=True)
    lengths = batch.lengths()[order]
    _, sizes = torch.unique_consecutive(batch.group_ids[order], return_counts=True)
    start = end = tokens = 0
    for size in sizes.tolist():
        group = int(lengths[end : end + size].sum())
        if end > start and tokens + group > most:
            yield order[start:end]
            start, tokens = end, 0
        end += size
        tokens += group
    if end > start:
        yield order[start:end]


def _hidden_of_actions(engine: Scorer, part: TokenBatch) -> Tensor:
    """The head's input at the action tokens of `part`, (N, d) in the order of rows and positions, on the device."""
    mask = part.action_mask
    place = (mask.flatten().cumsum(0) - 1).view_as(mask)
    out: Tensor | None = None
    for index in micro_batches(part.lengths(), engine.micro_batch_tokens):
        rows = part.rows(index)
        here = rows.action_mask
        ids, attention = rows.input_ids[:, :-1].to(engine.device), rows.attention_mask[:, :-1].to(engine.device)
        hidden = engine.hidden(ids, attention)[here.to(engine.device)]
        if out is None:
            out = hidden.new_empty(int(mask.sum()), hidden.shape[1])
        out[place[index][:, : here.shape[1]][here].to(engine.device)] = hidden
    assert out is not None
    return out


def _on(layout: Layout, device: torch.device) -> Layout:
    return Layout(layout.response.to(device), layout.group.to(device), layout.correct.to(device), layout.groups)


def nthr_head(head: OutputHead, temperature: float, dtype: torch.dtype | None) -> Head:
    """The output head as matrices. Raises ModelError where it is not W h + b, with or without a LoRA adapter."""
    found = head.matrices(temperature, dtype)
    if found is None:
        raise ModelError(
            f"NTHR needs the output head's matrix, and the head of this model is a {type(head.module).__name__}; leave "
            "the head out of model.lora.targets, name another with model.head, or switch algorithm.nthr off"
        )
    return found

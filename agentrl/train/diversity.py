"""How different the responses of one step are, from their sampled tokens alone: no further pass of the model.

- *within a question*: mean distance (1 - Jaccard, of token pairs) of neighbours in a group.
- *between questions*: the same of responses to different questions.
- *mutual information* of question and token, in nats per token: entropy of all tokens minus the mean entropy of each
  question's. Near 0 the responses do not depend on the question (template collapse: Wang et al., "RAGEN-2",
  arXiv 2604.06268, who score each response under all other prompts; this is a bag of tokens, which costs nothing).
  Entropies have the Miller-Madow correction (distinct - 1) / (2 n), since few tokens look too certain.
- *control tokens*: share of special tokens among the sampled ones, the end of a turn left out. It estimates the mean
  probability that the policy gives to them.

Left out on purpose: embeddings and a judge, which cost more than they tell here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import pairwise

from agentrl.types import Trajectory


def diversity(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """`diversity_within`, `diversity_between` and `question_information`, where there is enough to compare."""
    groups: dict[str, list[list[int]]] = {}
    for t in trajectories:
        tokens = [i for u in t.turns for i in u.action_ids]
        if t.error is None and tokens:
            groups.setdefault(t.group_id, []).append(tokens)
    pairs = [[frozenset(pairwise(r)) | {(r[0], -1)} for r in group] for group in groups.values()]
    within = [_distance(a, b) for group in pairs for a, b in pairwise(group)]
    between = [_distance(a, b) for one, other in pairwise(pairs) for a, b in zip(one, other)]
    out = {}
    if within:
        out["diversity_within"] = sum(within) / len(within)
    if between:
        out["diversity_between"] = sum(between) / len(between)
        out["question_information"] = information([[i for r in g for i in r] for g in groups.values()])
    return out


def _distance(a: frozenset[tuple[int, int]], b: frozenset[tuple[int, int]]) -> float:
    return 1 - len(a & b) / len(a | b)


def information(tokens: Sequence[Sequence[int]]) -> float:
    """Mutual information (nats) of the list that a token is in and the token; never below 0."""
    counts = [Counter(one) for one in tokens]
    total: Counter[int] = sum(counts, Counter())
    n = total.total()
    return max(0.0, _entropy(total) - sum(c.total() / n * _entropy(c) for c in counts))


def _entropy(counts: Counter[int]) -> float:
    """Of the shares, in nats, with the Miller-Madow correction."""
    n = counts.total()
    return -sum(c / n * math.log(c / n) for c in counts.values()) + (len(counts) - 1) / (2 * n)


def control_tokens(trajectories: Sequence[Trajectory], special: Collection[int]) -> dict[str, float]:
    """`control_tokens`: the share of `special` ids among the sampled tokens, without what ends a turn."""
    known, found, total = frozenset(special), 0, 0
    for t in trajectories:
        if t.error is None:
            for u in t.turns:
                inside = u.action_ids[:-1] if u.stop == "stop" else u.action_ids
                found += sum(i in known for i in inside)
                total += len(u.action_ids)
    return {"control_tokens": found / total} if total else {}

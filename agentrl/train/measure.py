"""One step's rollouts, scores and updates as canonical signals (names: `agentrl.monitors.signals`).

A signal that was not measured is absent, never 0. Means over tokens are over action tokens only.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from agentrl.algorithms import Displacement
from agentrl.batch import TokenBatch
from agentrl.envs.evidence import query_key, stands_in
from agentrl.rewards import all_equal
from agentrl.types import Task, Trajectory, Turn


def _mean(x: Tensor) -> float | None:
    return float(x.float().mean()) if x.numel() else None


def present(values: dict[str, float | None]) -> dict[str, float]:
    """Without the entries that were not measured."""
    return {k: float(v) for k, v in values.items() if v is not None}


def rollout_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """What the episodes themselves tell; failed ones count in what concerns tools, and as failed."""
    good = [t for t in trajectories if t.error is None]
    turns = [u for t in good for u in t.turns]
    searches = [u for u in turns if u.info.get("kind") == "search"]
    calls = [u.info for t in trajectories for u in t.turns]
    latency = [info["latency_s"] for info in calls if "latency_s" in info]
    tools = bool(latency) or any("error" in info or "retries" in info for info in calls)
    could_search = [u for u in turns if u.info.get("searchable", "kind" in u.info)]
    out: dict[str, float | None] = {
        "failed_rollouts": float(len(trajectories) - len(good)),
        "tool_latency_s": sum(latency) / len(latency) if latency else None,
        "tool_errors": float(sum(bool(info.get("error")) for info in calls)) if tools else None,
        "tool_retries": float(sum(info.get("retries", 0) for info in calls)) if tools else None,
    }
    if good:
        out |= {
            "reward": sum(t.reward for t in good) / len(good),
            "correct_rate": sum(t.correct for t in good) / len(good),
            "response_length": sum(t.action_tokens for t in good) / len(good),
            "context_length": sum(len(u.prompt_ids) + len(u.action_ids) for u in turns) / len(good),
            "answered_share": _answered(good),
            "truncated_share": sum(t.truncated for t in good) / len(good),
            "cut_share": sum(any(u.stop == "length" for u in t.turns) for t in good) / len(good),
            "cut_turns": sum(u.stop == "length" for u in turns) / len(turns),
            "turns": len(turns) / len(good),
            "valid_search_ratio": sum(bool(u.info.get("valid")) for u in searches) / len(turns)
            if could_search
            else None,
            "distinct_queries": _distinct_queries(good),
            "shared_first_retrieval": _shared_first_retrieval(good),
            "answer_in_retrieved": _answer_in_retrieved(good) if could_search else None,
        }
        judged = [u for u in turns if "valid" in u.info]
        out["valid_action_ratio"] = sum(bool(u.info["valid"]) for u in judged) / len(judged) if judged else None
        out |= call_metrics(turns) | search_metrics(good) | reward_metrics(good)
    return present(out)


def search_metrics(good: Sequence[Trajectory]) -> dict[str, float]:
    """What searches found, and whether answers rest on it; nothing where nobody searched.

    `gold_recall` is the mean over turns that search, `gold_found` over episodes, both of tasks that name gold passages;
    `repeated_queries` is the share of queries that the episode had asked before, `supported_answers` the share of
    answers that stand in what the episode was shown.
    """
    searches = [u.info for t in good for u in t.turns if u.info.get("kind") == "search"]
    if not searches:
        return {}
    recall = [info["gold_recall"] for info in searches if "gold_recall" in info]
    found = [u.info["gold_found"] for t in good if (u := _last_with(t, "gold_found")) is not None]
    again = [repeated for t in good for repeated in _repeated(t)]
    answers = [(str(t.turns[-1].info.get("answer") or ""), [u.observation for u in t.turns[:-1]]) for t in good]
    supported = [stands_in(answer, shown) for answer, shown in answers if answer.strip()]
    lists = {"gold_recall": recall, "gold_found": found, "repeated_queries": again, "supported_answers": supported}
    return {name: sum(values) / len(values) for name, values in lists.items() if values}


def _last_with(t: Trajectory, key: str) -> Turn | None:
    return next((u for u in reversed(t.turns) if key in u.info), None)


def _repeated(t: Trajectory) -> Iterator[bool]:
    """Of each query of the episode: whether it was asked before."""
    asked: set[str] = set()
    for u in t.turns:
        if u.info.get("kind") == "search" and "query" in u.info:
            for query in map(query_key, map(str, u.info.get("queries", [u.info["query"]]))):
                yield query in asked
                asked.add(query)


def reward_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """`rewards/NAME`: the mean of each reward, unweighted, over the episodes whose environment names several.

    Episodes without an answer have none of them and are left out.
    """
    of: dict[str, list[float]] = defaultdict(list)
    for t in trajectories:
        for name, value in t.turns[-1].info.get("rewards", {}).items():
            of[name].append(float(value))
    return {f"rewards/{name}": sum(values) / len(values) for name, values in sorted(of.items())}


def call_metrics(turns: Sequence[Turn]) -> dict[str, float]:
    """Calls of tools in environments that list them (`info["calls"]`), together and by tool; nothing without any.

    `calls/NAME` is a share of all calls, `call_failures/NAME` the share of a tool's own calls that raised or were late,
    `bad_calls/KIND` the share of all calls that could not be made for that reason.
    """
    listed = [u.info["calls"] for u in turns if "calls" in u.info]
    calls = [call for of_turn in listed for call in of_turn]
    if not calls:
        return {}
    made = [c for c in calls if "problem" not in c]
    by_tool: dict[str, list[bool]] = defaultdict(list)
    for call in made:
        by_tool[call["tool"]].append(bool(call.get("failed")))
    kinds = Counter(c["problem"] for c in calls if "problem" in c)
    out = {"valid_call_ratio": len(made) / len(calls), "calls_per_turn": len(calls) / len(turns)}
    if made:
        out["call_failures"] = sum(map(sum, by_tool.values())) / len(made)
    for name, failed in sorted(by_tool.items()):
        out |= {f"calls/{name}": len(failed) / len(calls), f"call_failures/{name}": sum(failed) / len(failed)}
    return out | {f"bad_calls/{kind}": n / len(calls) for kind, n in sorted(kinds.items())}


def valid_searches(trajectories: Sequence[Trajectory]) -> float:
    """V_s of LLDS App. B.3: the mean number of executed searches (or calls of other tools) per episode.

    Of environments that do not say what kind of action a turn was, every turn but the last counts that they did not
    call invalid.
    """
    count = 0
    for t in trajectories:
        for u in t.turns:
            search = u.info["kind"] not in ("answer", "invalid") if "kind" in u.info else u is not t.turns[-1]
            count += search and bool(u.info.get("valid", True))
    return count / len(trajectories)


def _answered(good: Sequence[Trajectory]) -> float | None:
    """Share of the episodes with an answer, of environments that say what kind of action a turn was."""
    kinds = [{u.info.get("kind") for u in t.turns} for t in good]
    if not any(k - {None} for k in kinds):
        return None
    return sum("answer" in k for k in kinds) / len(good)


def _distinct_queries(good: Sequence[Trajectory]) -> float | None:
    """Different queries per group, over the groups that searched."""
    queries: dict[str, set[str]] = defaultdict(set)
    for t in good:
        found = {u.info["query"] for u in t.turns if u.info.get("kind") == "search" and "query" in u.info}
        if found:
            queries[t.group_id] |= found
    return sum(len(q) for q in queries.values()) / len(queries) if queries else None


def _answer_in_retrieved(good: Sequence[Trajectory]) -> float | None:
    """Of the answers that earned a reward, the share that stands in what the episode's own searches returned.

    It falls when answers are guessed or remembered. Compared without regard to case; empty answers are left out.
    """
    found = total = 0
    for t in good:
        answer = str(t.turns[-1].info.get("answer") or "").strip().lower() if t.turns else ""
        if answer and t.reward > 0:
            total += 1
            found += any(answer in u.observation.lower() for u in t.turns[:-1])
    return found / total if total else None


def _shared_first_retrieval(good: Sequence[Trajectory]) -> float | None:
    """How often an incorrect response's first search returned a passage that a correct sibling's first search did."""
    first: dict[str, list[tuple[bool, frozenset[str]]]] = defaultdict(list)
    for t in good:
        hit = next((u.info.get("retrieved") for u in t.turns if u.info.get("kind") == "search"), None)
        if hit:
            first[t.group_id].append((t.correct, frozenset(hit)))
    shared = total = 0
    for group in first.values():
        known = frozenset().union(*(docs for ok, docs in group if ok))
        if known:
            for ok, docs in group:
                if not ok:
                    total += 1
                    shared += bool(docs & known)
    return shared / total if total else None


def _by_group(batch: TokenBatch) -> tuple[dict[int, list[float]], dict[int, list[bool]]]:
    """Rewards, and which responses are correct, by group id."""
    rewards: dict[int, list[float]] = defaultdict(list)
    correct: dict[int, list[bool]] = defaultdict(list)
    for g, r, c in zip(batch.group_ids.tolist(), batch.rewards.tolist(), batch.correct.tolist()):
        rewards[g].append(r)
        correct[g].append(c)
    return rewards, correct


def group_metrics(batch: TokenBatch) -> dict[str, float]:
    """Spread of rewards within groups, and the shares of groups without any contrast."""
    rewards, correct = _by_group(batch)
    n = len(rewards)
    std = [torch.tensor(r).std(unbiased=False).item() for r in rewards.values()]
    return {
        "reward_group_std": sum(std) / n,
        "groups_equal": sum(all_equal(r) for r in rewards.values()) / n,
        "groups_all_correct": sum(all(c) for c in correct.values()) / n,
        "groups_all_wrong": sum(not any(c) for c in correct.values()) / n,
    }


def out_of_reach(batch: TokenBatch) -> dict[str, float]:
    """Share of groups that have contrast but no correct response; for methods that learn from correct ones."""
    rewards, right = _by_group(batch)
    lost = sum(not any(right[g]) and not all_equal(r) for g, r in rewards.items())
    return {"groups_out_of_reach": lost / len(rewards)}


def score_metrics(batch: TokenBatch, logprobs: Tensor, entropy: Tensor | None) -> dict[str, float]:
    """Likelihoods under the policy before the update, and the sampler's disagreement with it. All (B, S)."""
    mask = batch.action_mask
    log_ratio = (logprobs - batch.rollout_logprobs)[mask]
    gap = log_ratio.abs()
    out: dict[str, float | None] = {"mismatch": _mean(gap), "mismatch_max": float(gap.max()) if gap.numel() else None}
    # Schulman's k3 estimate of KL(sampler || trainer) on the sampler's own tokens: never negative, little variance
    out["kl_sampler"] = _mean(log_ratio.clamp(max=20.0).exp() - 1.0 - log_ratio)
    per_response = (logprobs * mask).sum(1)
    for name, rows in (("correct", batch.correct), ("incorrect", ~batch.correct)):
        out[f"logprob_{name}"] = _mean(logprobs[mask & rows[:, None]])
        out[f"logprob_{name}_seq"] = _mean(per_response[rows])
        these = mask & rows[:, None]
        out[f"logprob_{name}_first"] = _mean(logprobs[these & (batch.turn_ids == 0)])
        out[f"logprob_{name}_later"] = _mean(logprobs[these & (batch.turn_ids > 0)])
    if entropy is not None:
        out["entropy"] = _mean(entropy[mask])
    return present(out)


def mixed_rows(batch: TokenBatch) -> Tensor:
    """(B,) bool: responses of groups that have both a correct and an incorrect one."""
    n = int(batch.group_ids.max()) + 1
    total = torch.bincount(batch.group_ids, minlength=n)
    right = torch.bincount(batch.group_ids, weights=batch.correct.float(), minlength=n)
    return ((right > 0) & (right < total))[batch.group_ids]


def delta_metrics(batch: TokenBatch, moved: Displacement) -> dict[str, float]:
    """Signals of how far an update moved the correct responses of mixed groups of `batch`."""
    turn = batch.turn_ids[moved.rows]  # (R, S), -1 off action
    out = {
        "delta_correct": _mean(moved.row_per_token),
        "delta_correct_seq": _mean(moved.change.sum(1)),
        "delta_negative_share": sum(d <= 0 for d in moved.of_group.values()) / len(moved.of_group),
        "delta_first": _mean(moved.change[turn == 0]),
        "delta_later": _mean(moved.change[turn > 0]),
    }
    return present(out)


def group_rows(
    batch: TokenBatch,
    trajectories: Sequence[Trajectory],
    logprobs: Tensor,
    delta: dict[int, float],
    task_of: dict[str, Task],
    failed: Sequence[Trajectory] = (),
) -> list[dict[str, Any]]:
    """One dictionary per question: what alarms name as responsible. `failed`: rollouts that are not in the batch."""
    out: dict[int, dict[str, Any]] = {}
    per_token = (logprobs * batch.action_mask).sum(1) / batch.action_mask.sum(1).clamp(min=1)
    for t, g, lp in zip(trajectories, batch.group_ids.tolist(), per_token.tolist()):
        row = out.setdefault(g, {"group_id": t.group_id, "rewards": [], "sample_ids": [], "correct_logprobs": []})
        row["rewards"].append(t.reward)
        row["sample_ids"].append(t.sample_id)
        if t.correct:
            row["correct_logprobs"].append(lp)
    of_group = {row["group_id"]: row for row in out.values()}
    for t in failed:
        row = of_group.setdefault(t.group_id, {"group_id": t.group_id, "rewards": [], "sample_ids": []})
        row["errors"] = row.get("errors", 0) + 1
        row["sample_ids"].insert(0, t.sample_id)  # where tools fail, these are the ones to look at
    for row in of_group.values():
        task = task_of[row["group_id"]]
        row["task_id"], row["question"] = task.id, task.options.get("question")
        if task.env:
            row["env"] = task.env
    for g, row in out.items():
        row["reward_mean"] = sum(row["rewards"]) / len(row["rewards"])
        right = row.pop("correct_logprobs")
        if right:
            row["logprob_correct"] = sum(right) / len(right)
        if g in delta:
            row["delta"] = delta[g]
    return list(of_group.values())

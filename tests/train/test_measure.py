"""Signals of a step, against plain loops over small hand-made episodes and batches."""

import math
from dataclasses import replace

import pytest
import torch

from agentrl.algorithms import displacement
from agentrl.batch import TokenBatch
from agentrl.monitors.signals import SIGNALS
from agentrl.train import measure as M
from agentrl.types import Task, Trajectory, Turn


def turn(tokens=2, prompt=3, **info):
    return Turn([0] * prompt, [1] * tokens, [-1.0] * tokens, "a", "o", 0.0, "stop", info)


def trajectory(name, *turns, reward=0.0, truncated=False, error=None, group="g"):
    return Trajectory(name, group, "e", 0, turns, reward, reward == 1.0, not truncated, truncated, error)


def search(query, *found, **info):
    return turn(kind="search", valid=True, query=query, retrieved=list(found), latency_s=0.5, **info)


ANSWER = turn(kind="answer", valid=True)
INVALID = turn(tokens=6, kind="invalid", valid=False)


def test_calls_of_tools_are_counted_together_and_by_tool():
    episodes = [
        trajectory(
            "a",
            turn(
                kind="tool", valid=False,
                calls=[{"tool": "s"}, {"tool": "o", "failed": True}, {"tool": "x", "problem": "unknown"}],
            ),
            turn(kind="tool", valid=False, calls=[{"tool": "", "problem": "json"}]),
            ANSWER,
        ),
        trajectory("b", turn(kind="tool", valid=True, calls=[{"tool": "s"}]), ANSWER, reward=1.0),
    ]  # fmt: skip
    got = M.rollout_metrics(episodes)
    wanted = {
        "valid_call_ratio": 3 / 5, "calls_per_turn": 5 / 5, "call_failures": 1 / 3, "calls/s": 2 / 5, "calls/o": 1 / 5,
        "call_failures/s": 0.0, "call_failures/o": 1.0, "bad_calls/unknown": 1 / 5, "bad_calls/json": 1 / 5,
    }  # fmt: skip
    assert {k: got[k] for k in wanted} == pytest.approx(wanted)
    assert {k for k in got if k.startswith(("calls", "call_", "bad_calls", "valid_call"))} == set(wanted)
    assert not any("call" in k for k in M.rollout_metrics([trajectory("c", ANSWER)]))


def test_searches_are_held_against_gold_passages_and_answers_against_what_was_shown():
    said = turn(kind="answer", valid=True, answer="The O.", gold_found=0.5)
    episodes = [
        trajectory("a", search("Who? ", "d1", gold_recall=0.5, gold_found=0.5), said, reward=1.0),
        trajectory(
            "b",
            search("x", "d2", gold_recall=0.0, gold_found=0.0),
            search("X", "d1", gold_recall=0.5, gold_found=0.5, queries=["X", "y", "Y!"]),
            turn(kind="answer", valid=True, answer="elsewhere"),
        ),
        trajectory("c", turn(kind="answer", valid=True, answer="x", gold_found=0.0)),  # shown nothing
    ]
    got = M.search_metrics(episodes)
    assert got == pytest.approx(
        {"gold_recall": 1 / 3, "gold_found": 1 / 3, "repeated_queries": 2 / 5, "supported_answers": 1 / 3}
    )
    assert {k: M.rollout_metrics(episodes)[k] for k in got} == got and set(got) <= set(SIGNALS)
    assert M.search_metrics([trajectory("d", ANSWER)]) == {}
    assert M.search_metrics([trajectory("e", search("q", "d1"), ANSWER)]) == {"repeated_queries": 0.0}


def test_rollout_metrics():
    episodes = [
        trajectory("a", search("q1", "d1", "d2"), ANSWER, reward=1.0),
        trajectory("b", search("q1", "d2"), search("q2", retries=2), INVALID, truncated=True),
        trajectory("c", ANSWER, reward=0.5),
        trajectory("d", search("q9", "d1"), turn(error="down"), reward=math.nan, error="down"),
    ]
    got = M.rollout_metrics(episodes)
    assert got == pytest.approx(
        {
            "failed_rollouts": 1,
            "reward": 1.5 / 3,
            "correct_rate": 1 / 3,
            "response_length": (4 + 10 + 2) / 3,
            "context_length": (10 + 19 + 5) / 3,
            "answered_share": 2 / 3,
            "truncated_share": 1 / 3,
            "cut_share": 0.0,
            "cut_turns": 0.0,
            "turns": 6 / 3,
            "valid_search_ratio": 3 / 6,
            "valid_action_ratio": 5 / 6,
            "distinct_queries": 2,
            "tool_latency_s": 0.5,
            "tool_errors": 1,  # the one that lost its episode
            "tool_retries": 2,
            "shared_first_retrieval": 1.0,  # b's first search found d2, as a's did
            "repeated_queries": 0.0,
        }
    )


def test_responses_and_turns_that_end_at_the_token_limit_are_counted():
    cut = replace(turn(), stop="length")
    got = M.rollout_metrics([trajectory("a", turn(), cut), trajectory("b", cut, cut), trajectory("c", turn())])
    assert (got["cut_share"], got["cut_turns"], got["truncated_share"]) == (pytest.approx(2 / 3), 3 / 5, 0.0)


def test_where_nothing_can_be_searched_no_answer_is_called_remembered():
    """Math runs logged answer_in_retrieved 0."""
    said = turn(kind="answer", valid=True, answer="42", searchable=False)
    assert "answer_in_retrieved" not in M.rollout_metrics([trajectory("a", said, reward=1.0)])


def test_groups_of_rounded_rewards_are_equal_and_those_out_of_reach_are_counted():
    b = batch([0.3, 0.30000001, 0.2, 0.5, 1, 0], [0, 0, 1, 1, 2, 2], [[1]] * 6)
    assert M.group_metrics(b)["groups_equal"] == pytest.approx(1 / 3)
    assert M.out_of_reach(b) == {"groups_out_of_reach": pytest.approx(1 / 3)}


def test_what_was_not_measured_is_absent():
    got = M.rollout_metrics([trajectory("a", turn(), error="down")])
    assert got == {"failed_rollouts": 1.0}
    got = M.rollout_metrics([trajectory("a", turn(), reward=1.0)])
    absent = {
        "distinct_queries",
        "tool_latency_s",
        "shared_first_retrieval",
        "valid_action_ratio",
        "answer_in_retrieved",
        "tool_errors",
        "tool_retries",
        "valid_search_ratio",
    }
    assert not absent & set(got)
    called = M.rollout_metrics([trajectory("a", search("q", "d"), ANSWER, reward=1.0)])
    assert called["tool_errors"] == called["tool_retries"] == 0.0  # measured, and none
    stopped = M.rollout_metrics([trajectory("a", ANSWER, reward=1.0)])
    assert stopped["valid_search_ratio"] == 0.0  # it could have searched
    mathematics = turn(kind="answer", valid=True, searchable=False)
    assert "valid_search_ratio" not in M.rollout_metrics([trajectory("a", mathematics, reward=1.0)])
    assert M.present({"a": None, "b": 0}) == {"b": 0.0}


def test_shared_first_retrieval_counts_within_groups():
    episodes = [
        trajectory("a", search("x", "d1"), reward=1.0, group="1"),
        trajectory("b", search("x", "d1", "d9"), group="1"),  # shares
        trajectory("c", search("x", "d3"), group="1"),  # does not
        trajectory("d", INVALID, group="1"),  # searched nothing
        trajectory("e", search("x", "d1"), group="2"),  # nobody in its group is correct
    ]
    assert M.rollout_metrics(episodes)["shared_first_retrieval"] == 0.5


def test_valid_searches_are_those_that_were_executed():
    late = turn(kind="search", valid=False)  # a search in the final turn, which is not executed
    episodes = [
        trajectory("a", search("q1"), INVALID, search("q2"), ANSWER),
        trajectory("b", search("q1"), late, truncated=True),
        trajectory("c", turn(kind="calc", valid=True), ANSWER),
        trajectory("d", ANSWER),
        trajectory("e", turn(), turn(valid=False), turn()),  # an environment that does not say what a turn was
    ]
    assert M.valid_searches(episodes) == (2 + 1 + 1 + 0 + 1) / 5


def test_distinct_queries_are_per_group_that_searched():
    episodes = [
        trajectory("a", search("x", "d"), search("y", "d"), group="1"),
        trajectory("b", search("x", "d"), group="1"),
        trajectory("c", search("x", "d"), group="2"),
        trajectory("d", ANSWER, group="3"),
    ]
    assert M.rollout_metrics(episodes)["distinct_queries"] == 1.5


def test_answers_are_looked_for_in_what_the_episode_retrieved():
    def episode(name, observation, answer, reward):
        last = turn(kind="answer", valid=True, answer=answer)
        return trajectory(name, replace(search("q", "d"), observation=observation), last, reward=reward)

    episodes = [
        episode("a", "Doc 1: Paris is a city", " paris", 1.0),
        episode("b", "Doc 1: Rome is a city", "Paris", 1.0),  # remembered
        episode("c", "Doc 1: Rome is a city", "Oslo", 0.0),  # earned nothing
        episode("d", "Doc 1: Rome is a city", "", 1.0),  # said nothing
        trajectory("e", turn(kind="answer", valid=True, answer="Paris"), reward=1.0),  # retrieved nothing
    ]
    assert M.rollout_metrics(episodes)["answer_in_retrieved"] == pytest.approx(1 / 3)


def batch(rewards, groups, mask, turns=None, sampled=None):
    """A batch of B rows of S columns; a response is correct where its reward is 1."""
    mask = torch.tensor(mask, dtype=torch.bool)
    B, S = mask.shape
    rewards = torch.tensor(rewards, dtype=torch.float32)
    turn_ids = torch.where(mask, 0, -1) if turns is None else torch.tensor(turns)
    return TokenBatch(
        input_ids=torch.zeros(B, S + 1, dtype=torch.int64),
        attention_mask=torch.ones(B, S + 1, dtype=torch.bool),
        action_mask=mask,
        turn_ids=turn_ids,
        answer_mask=torch.zeros(B, S, dtype=torch.bool),
        rollout_logprobs=torch.zeros(B, S) if sampled is None else torch.tensor(sampled),
        rewards=rewards,
        correct=rewards == 1,
        group_ids=torch.tensor(groups),
    )


def test_group_metrics_and_mixed_rows():
    b = batch([1, 0, 1, 1, 0, 0.5], [0, 0, 2, 2, 1, 1], [[1]] * 6)  # groups need not be neighbours or in order
    got = M.group_metrics(b)
    assert got == pytest.approx(
        {
            "reward_group_std": (0.5 + 0.0 + 0.25) / 3,
            "groups_equal": 1 / 3,
            "groups_all_correct": 1 / 3,
            "groups_all_wrong": 1 / 3,
        }
    )
    assert M.mixed_rows(b).tolist() == [True, True, False, False, False, False]


@pytest.fixture(params=range(5))
def random_batch(request):
    """Rows of several groups and turns, with gaps between turns and padding, and two sets of log-probabilities."""
    g = torch.Generator().manual_seed(request.param)
    B, S = 8, 9
    mask = torch.rand(B, S, generator=g) < 0.6
    mask[torch.arange(B), torch.randint(0, S, (B,), generator=g)] = True  # nobody says nothing
    turns = torch.where(mask, (torch.arange(S) // 4).expand(B, S), -1)
    groups = torch.randint(0, 3, (B,), generator=g).tolist()
    groups = [sorted(set(groups)).index(x) for x in groups]
    rewards = torch.randint(0, 2, (B,), generator=g).tolist()
    old, new = (-3 * torch.rand(B, S, generator=g) * mask for _ in range(2))
    sampled = (old + 0.1 * torch.randn(B, S, generator=g)) * mask
    return batch(rewards, groups, mask.tolist(), turns.tolist(), sampled.tolist()), old, new


def tokens(b, keep=lambda row, column: True):
    B, S = b.action_mask.shape
    return [(i, s) for i in range(B) for s in range(S) if b.action_mask[i, s] and keep(i, s)]


def mean(values):
    values = [float(v) for v in values]
    return sum(values) / len(values) if values else None


def test_score_metrics(random_batch):
    b, old, entropy = random_batch
    right, wrong = (tokens(b, lambda i, s, ok=ok: bool(b.correct[i]) == ok) for ok in (True, False))
    rows = {ok: [i for i in range(len(b)) if bool(b.correct[i]) == ok] for ok in (True, False)}
    seq = {ok: mean(sum(old[i, s] for j, s in tokens(b) if j == i) for i in rows[ok]) for ok in rows}
    gaps = [abs(float(old[i, s] - b.rollout_logprobs[i, s])) for i, s in tokens(b)]
    expected = {
        "mismatch": mean(gaps),
        "mismatch_max": max(gaps),
        "logprob_correct": mean(old[t] for t in right),
        "logprob_incorrect": mean(old[t] for t in wrong),
        "logprob_correct_seq": seq[True],
        "logprob_incorrect_seq": seq[False],
        "kl_sampler": mean(math.exp(d) - 1 - d for d in (float(old[t] - b.rollout_logprobs[t]) for t in tokens(b))),
        "logprob_correct_first": mean(old[t] for t in right if b.turn_ids[t] == 0),
        "logprob_correct_later": mean(old[t] for t in right if b.turn_ids[t] > 0),
        "logprob_incorrect_first": mean(old[t] for t in wrong if b.turn_ids[t] == 0),
        "logprob_incorrect_later": mean(old[t] for t in wrong if b.turn_ids[t] > 0),
        "entropy": mean(entropy[t] for t in tokens(b)),
    }
    expected = {k: v for k, v in expected.items() if v is not None}
    assert M.score_metrics(b, old, entropy) == pytest.approx(expected, abs=1e-5)
    assert "entropy" not in M.score_metrics(b, old, None)


def delta(b, old, new):
    """The signals, and Δ per token by group."""
    moved = displacement(old, new, b.action_mask, b.group_ids, b.correct)
    return M.delta_metrics(b, moved), moved.of_group


def test_delta_metrics(random_batch):
    b, old, new = random_batch
    b.correct[:] = True  # the trainer gives correct responses of mixed groups alone
    got, by_group = delta(b, old, new)
    change = {i: [float(new[j, s] - old[j, s]) for j, s in tokens(b) if j == i] for i in range(len(b))}
    per_token = {i: mean(c) for i, c in change.items()}
    groups = sorted(set(b.group_ids.tolist()))
    per_group = {g: mean(per_token[i] for i in change if int(b.group_ids[i]) == g) for g in groups}
    where = {
        name: [t for t in tokens(b) if (b.turn_ids[t] == 0) == first] for name, first in (("first", 1), ("later", 0))
    }
    expected = {
        "delta_correct": mean(per_token.values()),
        "delta_correct_seq": mean(sum(c) for c in change.values()),
        "delta_negative_share": mean(d <= 0 for d in per_group.values()),
        "delta_first": mean(new[t] - old[t] for t in where["first"]),
        "delta_later": mean(new[t] - old[t] for t in where["later"]),
    }
    assert got == pytest.approx({k: v for k, v in expected.items() if v is not None}, abs=1e-5)
    assert by_group == pytest.approx(per_group, abs=1e-5)


def test_delta_weighs_responses_and_not_tokens():
    """One response of one token that fell by 1, one of three that rose by 0.1 each."""
    b = batch([1, 1], [0, 0], [[1, 0, 0], [1, 1, 1]])
    old = torch.zeros(2, 3)
    new = torch.tensor([[-1.0, 9.0, 9.0], [0.1, 0.1, 0.1]])  # the nines are off action
    got, by_group = delta(b, old, new)
    assert got["delta_correct"] == pytest.approx((-1 + 0.1) / 2) == by_group[0]
    assert got["delta_correct_seq"] == pytest.approx((-1 + 0.3) / 2)
    assert got["delta_negative_share"] == 1.0 and "delta_later" not in got


def test_group_rows_name_questions():
    b = batch([1, 0, 0, 0], [0, 0, 1, 1], [[1, 1], [1, 0], [1, 1], [0, 1]])
    episodes = [
        trajectory(f"s{i}", turn(), reward=float(r), group=f"g{g}")
        for i, (r, g) in enumerate(zip(b.rewards.tolist(), b.group_ids.tolist()))
    ]
    tasks = {"g0": Task("q7", {"question": "who?"}), "g1": Task("q8", {})}
    logprobs = torch.tensor([[-1.0, -3.0], [-5.0, -5.0], [-7.0, -7.0], [-7.0, -7.0]])
    first, second = M.group_rows(b, episodes, logprobs, {0: -0.5}, tasks)
    assert first == {
        "group_id": "g0", "rewards": [1.0, 0.0], "sample_ids": ["s0", "s1"], "task_id": "q7", "question": "who?",
        "reward_mean": 0.5, "logprob_correct": -2.0, "delta": -0.5,
    }  # fmt: skip
    assert second["question"] is None and "delta" not in second and "logprob_correct" not in second


def test_failed_rollouts_are_named_with_their_question():
    b = batch([1, 0], [0, 0], [[1], [1]])
    episodes = [trajectory("s0", turn(), reward=1.0), trajectory("s1", turn())]
    failed = [trajectory("s2", turn(), error="down"), trajectory("s3", turn(), error="down", group="h")]
    tasks = {"g": Task("q1", {"question": "who?"}), "h": Task("q2", {"question": "where?"})}
    known, lost = M.group_rows(b, episodes, torch.zeros(2, 1), {}, tasks, failed)
    assert known["errors"] == 1 and known["sample_ids"] == ["s2", "s0", "s1"] and known["rewards"] == [1.0, 0.0]
    assert lost == {
        "group_id": "h", "rewards": [], "sample_ids": ["s3"], "errors": 1, "task_id": "q2", "question": "where?",
    }  # fmt: skip


def test_names_are_canonical(random_batch):
    b, old, new = random_batch
    made = M.score_metrics(b, old, new) | delta(b, old, new)[0] | M.group_metrics(b)
    made |= M.rollout_metrics([trajectory("a", search("q", "d"), ANSWER, reward=1.0)])
    assert set(made) - set(SIGNALS) == set()

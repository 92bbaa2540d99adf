"""The canonical signals: what each is called, its unit, and what other trainers call it.

Metric names of other trainers are read from their logging code: TRL `trl/trainer/grpo_trainer.py`, verl
`verl/trainer/ppo/metric_utils.py` (and Search-R1's `env/*` additions), OpenRLHF `openrlhf/trainer/ray/ppo_actor.py` and
`ppo_trainer.py`, SkyRL `skyrl/train/trainer.py` (earlier `skyrl_train/trainer.py`). Left out on purpose: verl's
`actor/ppo_kl` (divergence of one update, not from the reference) and `actor/pg_clipfrac_lower` (its dual-clip share,
not tokens below 1 - ε).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from agentrl.errors import AgentRLError, nearest

Direction = Literal["up", "down", "none"]  # the direction that is good
Section = Literal["reward", "likelihood", "update", "algorithm", "episodes", "tools", "time"]


@dataclass(frozen=True)
class Signal:
    """One number per step. `overview`: shown first by a dashboard."""

    name: str
    unit: str
    direction: Direction
    section: Section
    description: str
    overview: bool = False


def _table(rows: Iterable[tuple[str, str, Direction, Section, str, bool]]) -> dict[str, Signal]:
    return {row[0]: Signal(*row) for row in rows}


# Log-probabilities are in nats and over action tokens only (prompt and tool-output tokens are context).
SIGNALS: dict[str, Signal] = _table(
    [
        ("reward", "reward", "up", "reward", "mean reward of the step's episodes", True),
        ("correct_rate", "share", "up", "reward", "share of episodes counted as correct", False),
        ("reward_group_std", "reward", "none", "reward", "mean standard deviation of the reward in a group", False),
        ("groups_equal", "share", "down", "reward", "groups in which all rewards are equal: no contrast", False),
        ("groups_out_of_reach", "share", "down", "reward", "groups with contrast but no correct response", False),
        ("groups_all_correct", "share", "none", "reward", "groups in which every response is correct", False),
        ("groups_all_wrong", "share", "down", "reward", "groups in which every response is wrong", False),
        ("validation", "reward", "up", "reward", "mean of the held-out rewards or accuracies", False),
        ("validation_error", "reward", "none", "reward", "standard error of that mean, where it is known", False),
        ("validation_at_zero", "count", "down", "reward", "data sets whose held-out success is near 0", False),
        ("logprob_correct", "nats/token", "up", "likelihood", "mean log π of correct responses, sampling policy", True),
        ("logprob_incorrect", "nats/token", "none", "likelihood", "the same over incorrect responses", True),
        ("logprob_correct_seq", "nats/response", "up", "likelihood", "log π of correct responses, per response", False),
        ("logprob_incorrect_seq", "nats/response", "none", "likelihood", "the same over incorrect responses", False),
        ("logprob_correct_first", "nats/token", "up", "likelihood", "correct responses, first action only", False),
        ("logprob_correct_later", "nats/token", "up", "likelihood", "correct responses, later actions", False),
        ("logprob_incorrect_first", "nats/token", "none", "likelihood", "incorrect responses, first action", False),
        ("logprob_incorrect_later", "nats/token", "none", "likelihood", "incorrect responses, later actions", False),
        ("delta_correct", "nats/token", "up", "likelihood", "change of correct responses' log π by the update", True),
        ("delta_correct_seq", "nats/response", "up", "likelihood", "Δ per response", False),
        ("delta_negative_share", "share", "down", "likelihood", "share of groups with Δ ≤ 0", False),
        ("delta_first", "nats/token", "up", "likelihood", "Δ of the first action", False),
        ("delta_later", "nats/token", "up", "likelihood", "Δ of later actions", False),
        ("probe_logprob", "nats/token", "up", "likelihood", "log π of a fixed set of stored correct responses", True),
        ("entropy", "nats/token", "none", "update", "mean entropy of the policy", True),
        ("grad_norm", "norm", "none", "update", "gradient norm before clipping, mean over the step's updates", True),
        ("grad_norm_max", "norm", "none", "update", "the largest of the step's gradient norms", False),
        ("clip_fraction", "share", "down", "update", "tokens whose ratio left [1 - ε_low, 1 + ε_high]", True),
        ("clip_fraction_low", "share", "down", "update", "tokens with a ratio below 1 - ε_low", False),
        ("clip_fraction_high", "share", "down", "update", "tokens with a ratio above 1 + ε_high", False),
        ("ratio_max", "ratio", "down", "update", "largest ratio of new to old probability", False),
        ("kl", "nats/token", "none", "update", "divergence from the reference policy", True),
        ("mismatch", "nats/token", "down", "update", "mean |log π sampled − log π scored| of sampled tokens", False),
        ("mismatch_max", "nats", "down", "update", "the largest such difference", False),
        ("kl_sampler", "nats/token", "down", "update", "divergence of the trainer's policy from the sampler", False),
        ("loss", "loss", "none", "update", "the loss", False),
        ("pg_loss", "loss", "none", "update", "its policy term alone", False),
        ("lr", "1", "none", "update", "learning rate", False),
        ("skipped_updates", "count", "down", "update", "updates dropped because they were not finite", False),
        ("nthr_selected", "share", "none", "algorithm", "incorrect tokens whose penalty NTHR softened", False),
        ("nthr_eta", "factor", "none", "algorithm", "mean NTHR factor of the selected tokens", False),
        ("nthr_agreement", "share", "up", "algorithm", "incorrect tokens on which V* decides as exact does", False),
        ("llds_loss", "loss", "none", "algorithm", "value of the LLDS term", False),
        ("llds_open_share", "share", "none", "algorithm", "share of LLDS gates that are open", False),
        ("truncated_masked_share", "share", "none", "algorithm", "truncated responses, left out of the loss", False),
        ("llds_noise", "nats/√token", "none", "algorithm", "rounding between two passes over one policy", False),
        ("response_length", "tokens", "none", "episodes", "action tokens per response", True),
        ("context_length", "tokens", "none", "episodes", "tokens of an episode, tool output included", False),
        ("truncated_share", "share", "down", "episodes", "episodes cut by turns, context or the environment", False),
        ("cut_share", "share", "down", "episodes", "responses with a turn cut at rollout.max_tokens_per_turn", False),
        ("cut_turns", "share", "down", "episodes", "turns cut at rollout.max_tokens_per_turn", False),
        ("answered_share", "share", "up", "episodes", "episodes that end with an answer", False),
        ("turns", "count", "none", "episodes", "actions per episode", False),
        ("valid_action_ratio", "share", "up", "episodes", "actions that the environment could read", True),
        ("valid_call_ratio", "share", "up", "episodes", "tool calls that name a tool and arguments it takes", False),
        ("calls_per_turn", "count", "none", "episodes", "tool calls of a turn", False),
        ("call_failures", "share", "down", "tools", "tool calls that raised or were late", False),
        ("valid_search_ratio", "share", "up", "episodes", "actions that are executed searches", True),
        ("distinct_queries", "count", "none", "episodes", "different queries per group", False),
        ("shared_first_retrieval", "share", "none", "episodes", "incorrect first searches like a correct one", False),
        ("answer_in_retrieved", "share", "up", "episodes", "rewarded answers that stand in what was retrieved", False),
        ("gold_recall", "share", "up", "episodes", "gold passages that a search finds, mean over searches", False),
        ("gold_found", "share", "up", "episodes", "gold passages that the searches of an episode find", False),
        ("repeated_queries", "share", "down", "episodes", "queries that the episode had asked before", False),
        ("supported_answers", "share", "up", "episodes", "answers that stand in what the episode was shown", False),
        ("diversity_within", "share", "none", "episodes", "distance of responses to one question", False),
        ("diversity_between", "share", "none", "episodes", "distance of responses to different questions", False),
        ("question_information", "nats/token", "up", "episodes", "mutual information of question and token", False),
        ("control_tokens", "share", "down", "episodes", "control tokens sampled in the middle of turns", False),
        ("tool_latency_s", "s", "down", "tools", "mean duration of a tool call", False),
        ("tool_errors", "count", "down", "tools", "failed tool calls", False),
        ("tool_timeouts", "count", "down", "tools", "tool calls of the validation that ran out of time", False),
        ("tool_success", "count", "up", "tools", "tool calls of the validation that succeeded", False),
        ("tool_retries", "count", "down", "tools", "repeated tool calls", False),
        ("failed_rollouts", "count", "down", "tools", "episodes lost to infrastructure failures", False),
        ("tokens_per_s", "tokens/s", "up", "time", "sampled tokens per second", False),
        ("t_rollout_s", "s", "none", "time", "sampling", False),
        ("t_score_s", "s", "none", "time", "scoring under the old policy", False),
        ("t_update_s", "s", "none", "time", "the update", False),
        ("t_delta_s", "s", "none", "time", "scoring again for Δ", False),
        ("t_step_s", "s", "none", "time", "the whole step", False),
    ]
)  # fmt: skip

# Other trainers' names, best first. Prefixes such as "train/" are dropped before the comparison.
_VERL = {
    "reward": ("critic/score/mean", "critic/rewards/mean"),
    "entropy": ("actor/entropy", "actor/entropy_loss"),
    "grad_norm": ("actor/grad_norm",),
    "clip_fraction": ("actor/pg_clipfrac",),
    "kl": ("actor/kl_loss", "actor/reward_kl_penalty", "critic/kl"),
    "loss": ("actor/pg_loss",),
    "lr": ("actor/lr",),
    "response_length": ("response_length/mean",),
    "truncated_share": ("response_length/clip_ratio",),
    "mismatch": ("training/rollout_probs_diff_mean",),
    "mismatch_max": ("training/rollout_probs_diff_max",),
    "kl_sampler": ("rollout_corr/kl",),
    "turns": ("num_turns/mean", "training/num_turns/mean", "env/number_of_actions/mean"),
    "valid_action_ratio": ("env/ratio_of_valid_action",),
    "answered_share": ("env/finish_ratio",),
    "question_information": ("collapse_first_turn_sample/mi_estimate", "collapse_trajectory_sample/mi_estimate"),
    "t_step_s": ("timing_s/step",),
    "t_rollout_s": ("timing_s/gen",),
    "t_score_s": ("timing_s/old_log_prob",),
    "t_update_s": ("timing_s/update_actor",),
    "tokens_per_s": ("perf/throughput",),
}
_TRL = {
    "reward": ("reward",),
    "reward_group_std": ("reward_std",),
    "groups_equal": ("frac_reward_zero_std",),
    "entropy": ("entropy",),
    "grad_norm": ("grad_norm",),
    "clip_fraction": ("clip_ratio/region_mean", "clip_ratio"),
    "clip_fraction_low": ("clip_ratio/low_mean",),
    "clip_fraction_high": ("clip_ratio/high_mean",),
    "kl": ("kl",),
    "loss": ("loss",),
    "lr": ("learning_rate",),
    "response_length": ("completions/mean_length", "completion_length"),
    "truncated_share": ("completions/clipped_ratio",),
    "mismatch": ("sampling/sampling_logp_difference/mean",),
    "mismatch_max": ("sampling/sampling_logp_difference/max",),
    "t_step_s": ("step_time",),
}
_OPENRLHF = {
    "reward": ("reward", "rollout/reward_mean", "return"),
    "entropy": ("entropy_loss",),
    "grad_norm": ("actor_grad_norm", "grad_norm"),
    "clip_fraction": ("ppo_clip_ratio",),
    "kl": ("kl",),
    "loss": ("policy_loss",),
    "lr": ("actor_lr",),
    "response_length": ("response_length", "rollout/response_length_mean"),
    "context_length": ("total_length",),
    "truncated_share": ("rollout/truncated_rate",),
    "mismatch": ("vllm_kl",),
    "t_rollout_s": ("timing/generation",),
    "t_step_s": ("timing/step_total",),
}
_SKYRL = {
    "reward": ("reward/avg_raw_reward", "loss/avg_final_rewards"),
    "entropy": ("policy/policy_entropy",),
    "grad_norm": ("policy/raw_grad_norm", "policy/grad_norm"),
    "clip_fraction": ("policy/loss_metrics/clip_ratio", "policy/ppo_clip_ratio"),
    "kl": ("policy/policy_kl", "loss/avg_kl"),
    "loss": ("policy/policy_loss", "policy/final_loss"),
    "lr": ("policy/policy_lr",),
    "response_length": ("generate/avg_assistant_tokens", "generate/avg_num_tokens", "policy/response_length"),
    "mismatch": ("policy/rollout_train_logprobs_abs_diff_mean",),
    "mismatch_max": ("policy/rollout_train_logprobs_abs_diff_max",),
    "t_step_s": ("timing/step",),
    "t_rollout_s": ("timing/generate",),
}
_TINKER = {
    "reward": ("env/all/reward/total", "reward/mean"),
    "correct_rate": ("env/all/correct",),
    "entropy": ("optim/entropy",),
    "kl_sampler": ("optim/kl_sample_train_v1", "optim/kl_sample_train_v2"),
    "lr": ("optim/lr",),
    "turns": ("env/all/turns_per_episode",),
    "response_length": ("env/all/ac_tokens_per_turn",),
    "groups_all_correct": ("env/all/by_group/frac_all_good",),
    "groups_all_wrong": ("env/all/by_group/frac_all_bad",),
    "t_step_s": ("time/total",),
}
_SLIME = {
    "reward": ("rollout/raw_reward", "rollout/rewards"),
    "entropy": ("entropy_loss",),
    "clip_fraction": ("pg_clipfrac",),
    "kl": ("kl_loss",),
    "loss": ("pg_loss",),
    "lr": ("lr-pg_0",),
    "response_length": ("rollout/response_lengths", "rollout/response_len/mean"),
    "truncated_share": ("rollout/truncated_ratio", "rollout/truncated"),
    "mismatch": ("train_rollout_logprob_abs_diff",),
    "t_rollout_s": ("perf/rollout_time",),
    "t_step_s": ("perf/step_time",),
}
_PRIME_RL = {
    "reward": ("Reward", "reward/all/mean"),
    "entropy": ("Entropy", "entropy/mean", "entropy/all/mean"),
    "grad_norm": ("Grad. Norm", "optim/grad_norm"),
    "kl_sampler": ("Mismatch KL", "mismatch_kl/mean", "mismatch_kl/all/mean"),
    "loss": ("Loss", "loss/mean"),
    "lr": ("LR",),
    "response_length": ("Seq. Length", "seq_len/all/mean"),
    "truncated_share": ("Truncation",),
    "turns": ("Turns",),
    "validation": ("Val. Reward",),
    "t_step_s": ("Time", "time/step"),
}
_NEMO_RL = {
    "reward": ("Avg Reward", "Avg Filtered Reward", "train/reward"),
    "loss": ("Loss",),
    "kl_sampler": ("Generation KL Error", "gen_kl_error"),
    "response_length": ("Mean Generation Length", "mean_gen_tokens_per_sample"),
    "truncated_share": ("truncation_rate",),
    "t_step_s": ("Total step time", "total_step_time"),
    "t_rollout_s": ("generation",),
    "validation": ("validation/Accuracy", "validation/accuracy"),
}
_AREAL = {
    "reward": ("ppo_actor/task_reward/avg", "ppo_actor/final_reward/avg", "grpo_actor/task_reward/avg"),
    "entropy": ("ppo_actor/update/entropy/avg", "grpo_actor/entropy/avg"),
    "grad_norm": ("ppo_actor/update/grad_norm", "grpo_actor/grad_norm"),
    "clip_fraction": ("ppo_actor/update/clip_ratio/avg", "ppo_actor/update/actor_clip_mask/avg"),
    "lr": ("ppo_actor/update/lr",),
    "response_length": ("ppo_actor/seq_len/avg", "grpo_actor/seq_len/avg"),
    "truncated_share": ("ppo_actor/no_eos_ratios/avg", "grpo_actor/no_eos_ratios/avg"),
    "t_rollout_s": ("timeperf/rollout",),
}
_SHORT = {  # short names seen in hand-written loops and in this project's early logs
    "reward": ("mean_reward", "reward_mean", "average_reward", "avg_reward", "rewards"),
    "correct_rate": ("accuracy", "train_accuracy", "acc"),
    "entropy": ("token_entropy", "mean_entropy", "policy_entropy"),
    "kl": ("approx_kl", "kl_div", "kl_divergence"),
    "logprob_correct": ("lp_pos",),
    "logprob_incorrect": ("lp_neg",),
    "logprob_correct_seq": ("lp_pos_seq",),
    "logprob_incorrect_seq": ("lp_neg_seq",),
    "logprob_correct_first": ("lp_pos_first",),
    "logprob_correct_later": ("lp_pos_later",),
    "delta_correct": ("delta_tok",),
    "delta_correct_seq": ("delta_seq",),
    "delta_negative_share": ("delta_neg_share",),
    "probe_logprob": ("probe_lp",),
    "grad_norm": ("gnorm",),
    "grad_norm_max": ("gnorm_max",),
    "clip_fraction": ("clipfrac", "clip_frac"),
    "clip_fraction_low": ("clip_low",),
    "clip_fraction_high": ("clip_high",),
    "nthr_selected": ("nthr_sel",),
    "llds_loss": ("llds",),
    "loss": ("pg",),
    "reward_group_std": ("group_std",),
    "groups_all_correct": ("all_correct",),
    "groups_all_wrong": ("all_wrong",),
    "response_length": ("alen",),
    "context_length": ("ctxlen",),
    "valid_action_ratio": ("valid_ratio",),
    "t_rollout_s": ("t_rollout",),
    "t_score_s": ("t_old",),
    "t_update_s": ("t_update",),
    "t_delta_s": ("t_delta",),
}
TRAINERS: dict[str, dict[str, tuple[str, ...]]] = {
    "verl": _VERL,
    "SkyRL": _SKYRL,
    "TRL": _TRL,
    "OpenRLHF": _OPENRLHF,
    "Tinker": _TINKER,
    "slime": _SLIME,
    "prime-rl": _PRIME_RL,
    "NeMo-RL": _NEMO_RL,
    "AReaL": _AREAL,
    "short": _SHORT,
}

#: What the collapse rules can use, in order of worth; `watch` names those that are missing.
WATCHED = (
    "reward",
    "clip_fraction",
    "entropy",
    "delta_correct",
    "probe_logprob",
    "logprob_correct",
    "logprob_incorrect",
    "grad_norm",
    "response_length",
    "valid_action_ratio",
    "kl",
    "mismatch",
)

#: Columns in which a token counts as clipped only where the clipping changes its loss, so that shares are smaller.
CLIPPED_IN_LOSS = frozenset(
    column for trainer in ("verl", "TRL", "OpenRLHF", "SkyRL", "slime") for column in TRAINERS[trainer]["clip_fraction"]
)

#: Signals whose past no rule of agentrl looks at, only their value now: a rule of your own has all of them.
UNJUDGED = frozenset((
    "logprob_incorrect", "logprob_correct_seq", "logprob_incorrect_seq", "logprob_correct_first",
    "logprob_correct_later", "logprob_incorrect_first", "logprob_incorrect_later", "delta_correct_seq",
    "delta_negative_share", "delta_first", "delta_later", "probe_logprob", "clip_fraction_low", "clip_fraction_high",
    "ratio_max", "mismatch_max", "loss", "pg_loss", "lr", "skipped_updates", "nthr_selected", "nthr_eta",
    "nthr_agreement", "llds_loss", "llds_open_share", "truncated_masked_share", "llds_noise", "context_length",
    "distinct_queries", "shared_first_retrieval", "diversity_between", "tool_retries", "tokens_per_s", "t_score_s",
    "t_update_s", "t_delta_s", "t_step_s", "validation_error",
))  # fmt: skip

STEP_COLUMNS = ("step", "global_step", "_step", "training/global_step", "trainer/global_step", "Step", "iteration")
_PREFIX = re.compile(r"^(?:train|data|metrics)[/.]")  # W&B and TensorBoard integrations, nested JSON


#: Signals that are the mean of all columns of such a name: a validation of several data sets.
POOLED = {
    "validation": re.compile(
        r"^(?:val-core/.+/mean@\d+|val/test_score/.+|val/.*(?:reward|accuracy|score)(?:/mean)?|eval/(?:.+/)?"
        r"(?:reward|rewards?/mean|accuracy|correct|score|pass@?1)|eval_(?:reward|accuracy|score)|"
        r"test/(?:.+/)?(?:reward/total|correct|accuracy|reward)|eval/all/avg_score|eval/all/pass_at_1|eval_.+_pass1)$"
    ),
    "reward": re.compile(r"^reward/[^/]+/mean$"),  # rLLM: by the name of the agent
    "tool_timeouts": re.compile(r"^val-aux/.+/\w*timeout\w*/mean@\d+$"),
    "tool_success": re.compile(r"^val-aux/.+/\w*(?:search|tool)_success_count/mean@\d+$"),
}
#: The same, of names that only this trainer uses so.
POOLED_OF = {"slime": {"validation": re.compile(r"^eval/(?!step$)(?!.*-(?:truncated_ratio|pass@))[^/]+$")}}
NEAR_ZERO = 0.01  # of a held-out success
_PERCENT = re.compile(r"%|percent|(?:^|[/_.])pct(?:$|[/_.])", re.IGNORECASE)


@dataclass(frozen=True)
class SignalMap:
    """Which column feeds which signal. `missing` lists the watched signals that nothing feeds."""

    columns: dict[str, str]  # signal -> column
    missing: tuple[str, ...]
    trainer: str | None  # whose names most columns carry
    pooled: dict[str, tuple[str, ...]] = field(default_factory=dict)  # signal -> columns whose mean it is

    @cached_property
    def factors(self) -> dict[str, float]:
        """Signal -> what its column is multiplied with: shares in percent, times in ms or minutes, as the name says."""
        out = {s: 0.01 for s, c in self.columns.items() if SIGNALS[s].unit == "share" and _PERCENT.search(c)}
        for signal, column in self.columns.items():
            if SIGNALS[signal].unit == "s" and (unit := _UNIT.search(column)) and unit[1].strip().lower() in _TIMES:
                out[signal] = _TIMES[unit[1].strip().lower()]
        return out

    @property
    def clipped_in_loss(self) -> bool:
        """Whether `clip_fraction` is counted as TRL, verl, OpenRLHF and SkyRL count it."""
        return _bare(self.columns.get("clip_fraction", "")) in CLIPPED_IN_LOSS

    def apply(self, row: Mapping[str, float]) -> dict[str, float]:
        """The row's values under canonical names; absent columns stay absent. Units in names count (`factors`)."""
        out = {}
        for signal, column in self.columns.items():
            if column in row:
                out[signal] = row[column] * self.factors[signal] if signal in self.factors else row[column]
        for signal, columns in self.pooled.items():
            values = [row[c] for c in columns if c in row]
            if values and signal not in out:
                out[signal] = sum(values) / len(values)
                if signal == "validation" and len(values) > 1 and len(values) == len(columns):
                    out["validation_at_zero"] = float(sum(v <= NEAR_ZERO for v in values))
        return out


_UNIT = re.compile(r"\s*[(\[]([^()\[\]]{1,20})[)\]]\s*$")  # `entropy (nats)`, `step_time [ms]`
_TIMES = {"ms": 1e-3, "msec": 1e-3, "us": 1e-6, "µs": 1e-6, "min": 60.0, "minutes": 60.0, "h": 3600.0}


def _bare(column: str) -> str:
    column = _UNIT.sub("", column)
    while (short := _PREFIX.sub("", column)) != column:
        column = short
    return column


def guess_mapping(columns: Iterable[str], overrides: Mapping[str, str] | None = None) -> SignalMap:
    """Match `columns` to canonical signals. `overrides` (signal -> column) win and need not exist yet.

    An exact name wins over one with a prefix, canonical names over the trainers' names, and among those the trainer
    with the most matches comes first. One column feeds one signal. Raises `AgentRLError` on an unknown signal.
    """
    for signal in overrides or {}:
        if signal not in SIGNALS:
            raise AgentRLError(
                f"--map {signal}=...: {signal!r} is not a signal{nearest(signal, list(SIGNALS))}; "
                f"the signals are {', '.join(WATCHED)} and the others in docs/alarms.md"
            )
    by_bare: dict[str, str] = {}
    for column in sorted(set(columns), key=lambda c: (-len(c), c)):
        by_bare[_bare(column)] = column  # the shortest spelling is written last and stays
    found = dict(overrides or {})
    taken = set(found.values())
    hits = {name: sum(any(c in by_bare for c in cs) for cs in table.values()) for name, table in TRAINERS.items()}
    tables: list[dict[str, tuple[str, ...]]] = [{name: (name,) for name in SIGNALS}]
    tables += [TRAINERS[name] for name in sorted(TRAINERS, key=lambda n: -hits[n])]
    for table in tables:
        for signal, candidates in table.items():
            feed = next((by_bare[c] for c in candidates if c in by_bare and by_bare[c] not in taken), None)
            if signal not in found and feed is not None:
                found[signal] = feed
                taken.add(feed)
    own = {  # "reward" and the like are everybody's
        name: len({c for cs in table.values() for c in cs if c in by_bare} - SIGNALS.keys())
        for name, table in TRAINERS.items()
    }
    best = max(own, key=lambda n: own[n])
    trainer = best if own[best] and best != "short" else None
    pooled = {
        signal: columns
        for signal, pattern in (POOLED | POOLED_OF.get(trainer or "", {})).items()
        if signal not in found and (columns := tuple(c for c in by_bare.values() if pattern.match(c)))
    }
    return SignalMap(found, tuple(s for s in WATCHED if s not in found), trainer, pooled)

"""Held-out evaluation: the same rollouts as in training, at the evaluation's own temperature."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentrl.config import RolloutConfig
from agentrl.data.tasks import subset
from agentrl.monitors.signals import NEAR_ZERO
from agentrl.rollouts.play import EnvPool
from agentrl.train.build import Job
from agentrl.train.measure import reward_metrics, search_metrics
from agentrl.train.patience import Patience
from agentrl.types import Alarm, Task, Trajectory


@dataclass
class EvalResult:
    """`summary` is one row of evals.jsonl; `trajectories` are all episodes played."""

    summary: dict[str, Any]
    trajectories: list[Trajectory]
    tasks: list[Task]  # the questions that were asked, in order


def evaluate(
    job: Job,
    pool: EnvPool,
    *,
    step: int,
    tasks: Sequence[Task] | None = None,
    split: str = "test",
    patience: Patience | None = None,
    what: str = "",
) -> EvalResult:
    """Play `config.eval.samples` episodes of each of `config.eval.questions` tasks, a fixed random subset.

    `em` is the share of correct responses, `reward` their mean reward; both leave out responses that failed, which are
    counted beside them. Of several environments each has its own, as `em/NAME`. `em_{h}hop` and `em_level_{l}` are `em`
    of the tasks that say so. `patience` waits for a tool that is away; `what` names the evaluation in its messages.
    """
    config = job.config
    chosen = job.held_out() if tasks is None else subset(tasks, config.eval.questions)
    start = time.perf_counter()
    player = job.player(pool, seed=config.seed, temperature=config.eval.temperature, concurrency=config.eval.batch)
    patience = patience or Patience(0)
    what = what or f"evaluation after {step} steps"
    episodes = patience.collect(player, chosen, config.eval.samples, prefix=f"eval{step}/", what=what)
    good = [t for t in episodes if t.error is None]
    summary: dict[str, Any] = {"step": step, "split": split, "n": len(chosen), "failed": len(episodes) - len(good)}
    summary["responses"] = len(episodes)
    if good:
        summary["em"] = exact_match(good)
        summary["reward"] = sum(t.reward for t in good) / len(good)
        summary |= reward_metrics(good)
        summary["cut_share"] = sum(any(u.stop == "length" for u in t.turns) for t in good) / len(good)
        summary["turns"] = sum(len(t.turns) for t in good) / len(good)
        summary["response_length"] = sum(t.action_tokens for t in good) / len(good)
        summary |= search_metrics(good)
    for key, name in (("hops", "em_{}hop"), ("level", "em_level_{}")):
        of: dict[int, list[Trajectory]] = defaultdict(list)
        for i, t in enumerate(episodes):
            value = chosen[i // config.eval.samples].options.get(key)
            if isinstance(value, int) and t.error is None:
                of[value].append(t)
        summary |= {name.format(value): exact_match(these) for value, these in sorted(of.items())}
    summary |= _by_environment(chosen, episodes, config.eval.samples)
    summary["seconds"] = time.perf_counter() - start
    return EvalResult(summary, episodes, chosen)


def as_signals(summary: Mapping[str, Any]) -> dict[str, float]:
    """A row of evals.jsonl as the monitors take it: accuracy, its standard error, and question kinds near 0.

    The error is a binomial's over the questions, one success and one failure added; samples of a question are not
    independent. Nothing where every response failed.
    """
    if "em" not in summary:
        return {}
    n, kinds = summary["n"], [v for k, v in summary.items() if k.startswith("em_")]
    share = (summary["em"] * n + 1) / (n + 2)
    signals = {"validation": summary["em"], "validation_error": math.sqrt(share * (1 - share) / n)}
    if len(kinds) > 1:
        signals["validation_at_zero"] = float(sum(v <= NEAR_ZERO for v in kinds))
    return signals


def _by_environment(tasks: Sequence[Task], episodes: Sequence[Trajectory], samples: int) -> dict[str, Any]:
    """`em/NAME`, `reward/NAME`, `n/NAME` and `failed/NAME` of each environment, where a run has several."""
    of: dict[str, list[Trajectory]] = defaultdict(list)
    for i, t in enumerate(episodes):
        of[tasks[i // samples].env].append(t)
    out: dict[str, Any] = {}
    for name, these in of.items() if set(of) - {""} else ():
        good = [t for t in these if t.error is None]
        out |= {f"n/{name}": len(these) // samples, f"failed/{name}": len(these) - len(good)}
        if good:
            out |= {f"{key}/{name}": value for key, value in reward_metrics(good).items()}
            out |= {f"em/{name}": exact_match(good), f"reward/{name}": sum(t.reward for t in good) / len(good)}
    return out


FAILED_ALARM = 0.1  # share of held-out responses that may fail before the figure is worth a warning


def in_words(summary: dict[str, Any], rollout: RolloutConfig) -> str:
    """One line: the share of correct responses, their mean reward, the questions, and what the figures leave out."""
    failed, responses = summary["failed"], summary["responses"]
    parts = [f"{summary['n']} questions"]
    if "em" in summary:
        parts = [f"{summary['em']:.3f} correct", f"reward {summary['reward']:.3f}", *parts]
    if "gold_found" in summary:
        parts.append(f"{summary['gold_found']:.2f} of the gold passages found")
    parts += [f"{k.removeprefix('em/')} {v:.3f}" for k, v in summary.items() if k.startswith("em/")]
    if failed:
        parts.append(f"{failed} of {responses} responses failed and are left out")
    if summary.get("cut_share"):
        limit = f"rollout.max_tokens_per_turn = {rollout.max_tokens_per_turn}"
        parts.append(f"{summary['cut_share']:.0%} cut at {limit}")
    return ", ".join(parts)


def failures_alarm(summary: dict[str, Any]) -> Alarm | None:
    """A warning where so many held-out responses failed that the figures are of other questions than asked."""
    step, failed, responses = summary["step"], summary["failed"], summary["responses"]
    if not responses or failed / responses <= FAILED_ALARM:
        return None
    return Alarm(
        id=f"held_out_failures-{step:06d}-warn",
        step=max(0, step - 1),  # the last training step before it: a resume keeps both
        rule="held_out_failures",
        level="warn",
        message=f"{failed} of {responses} held-out responses failed: the figures are of the other questions alone",
        signals={"held_out_failed": {"value": failed / responses, "threshold": FAILED_ALARM}},
        remedy="Look at the errors (agentrl rollouts show RUN --eval), fix the tool or server, and evaluate again.",
    )


def exact_match(trajectories: Sequence[Trajectory]) -> float:
    """Share of correct responses; what is correct, the environment says, else the reward and `correct_threshold`."""
    return sum(t.correct for t in trajectories) / len(trajectories)

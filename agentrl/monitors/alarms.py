"""`Monitor`: one `observe` per training step, alarms out. Needs nothing but the standard library.

    monitor = Monitor()
    for record in run:
        for alarm in monitor.observe(record):
            print(alarm.message, alarm.remedy)

Alarms are raised once: when a rule has held for `hold` steps, and again only if it gets worse, or if it ended
(`clear` quiet steps) and comes back after `cooldown`. Nothing looks ahead, and a monitor that was saved with
`state_dict` and restored goes on exactly as if it had not been.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from agentrl import plugins
from agentrl.errors import AgentRLError
from agentrl.monitors.causes import tool_changed
from agentrl.monitors.phases import PhaseClassifier, PhaseState
from agentrl.monitors.remedies import in_terms_of
from agentrl.monitors.signals import UNJUDGED
from agentrl.monitors.stats import Series
from agentrl.monitors.thresholds import Thresholds
from agentrl.monitors.view import ORDER, Finding, Rule, View
from agentrl.types import Alarm, StepRecord

#: Signals that change by factors; all others are compared on their own scale.
SCALES = {
    "entropy": "log",
    "grad_norm": "log",
    "mismatch": "log",
    "kl_sampler": "log",
    "logprob_correct": "neglog",
    "logprob_incorrect": "neglog",
}
JUDGED = ("reward", "validation")  # signals whose loss is an alarm
VERSION = 2
_NUMBER = (int, float)  # a union of types takes three times as long to ask


def series_of(name: str) -> Series:
    """An empty series on the signal's own scale."""
    return Series(SCALES.get(name, "linear"), judged=name in JUDGED)


def default_rules(extra: Sequence[str] = ()) -> list[Rule]:
    """Fresh instances of every built-in rule, the main one first, then of the plug-ins named in `extra`.

    Raises PluginError for a name that leads nowhere, AgentRLError where two rules would have one name.
    """
    rules: list[Rule] = [plugins.find("monitor rule", name)() for name in plugins.BUILTIN["monitor rule"]]
    for name in extra:
        one: Rule = plugins.find("monitor rule", name)()
        if one.name in {rule.name for rule in rules}:
            raise AgentRLError(
                f"monitor rule {name!r}: a rule named {one.name!r} runs already; give it a name of its own"
            )
        rules.append(one)
    return rules


def page(rule: str) -> str:
    """Where the documentation explains a rule."""
    return f"docs/alarms.md#{rule.replace('_', '-')}"


class Monitor:
    """Watches one run. `sinks` are called with every alarm; see `agentrl.monitors.sinks`."""

    def __init__(
        self,
        thresholds: Thresholds | None = None,
        rules: Sequence[Rule] | None = None,
        sinks: Sequence[Callable[[Alarm], None]] = (),
    ) -> None:
        self.thresholds = thresholds or Thresholds()
        self.rules = list(rules) if rules is not None else default_rules()
        self.sinks = list(sinks)
        self.clipped_in_loss = False  # how the log counts clipped tokens: see `signals.CLIPPED_IN_LOSS`
        own = all(type(rule).__module__.startswith("agentrl.monitors.") for rule in self.rules)
        self._unjudged = UNJUDGED if own else frozenset[str]()  # no series is kept of these
        self.trainer: str | None = None  # whose run this is, where remedies should name its options too
        self._reset()

    def _reset(self) -> None:
        self.series: dict[str, Series] = {}
        self.seen = 0
        self.last_step: int | None = None
        self._status: dict[str, dict[str, Any]] = {rule.name: {} for rule in self.rules}
        self._memory: dict[str, dict[str, Any]] = {rule.name: {} for rule in self.rules}
        self._shared: dict[str, Any] = {}  # what all rules may know of the past
        self.phases = PhaseClassifier(self.thresholds.phases, self.thresholds.death_spiral)

    @property
    def phase(self) -> PhaseState:
        """The phase after the last observed step."""
        return self.phases.state

    def decay_onset(self) -> int | None:
        """Step at which the likelihood of correct responses was last at its best, while it is below it.

        A guard goes back to a checkpoint at or before this step. None while nothing decays.
        """
        return self.phase.decay_since

    def observe(self, record: StepRecord) -> list[Alarm]:
        """Take one step, return the alarms it raises (usually none), and hand them to the sinks.

        A step that is not after the last one means that the run was rolled back or restarted: the monitor then
        forgets the past and warms up again.
        """
        if self.last_step is not None and record.step <= self.last_step:
            self._reset()
        self.last_step = record.step
        self.seen += 1
        for name, value in record.metrics.items():
            if isinstance(value, _NUMBER) and math.isfinite(value) and name not in self._unjudged:
                if name not in self.series:
                    self.series[name] = series_of(name)
                self.series[name].push(record.step, float(value))
        phase = self.phases.observe(record.step, self.series)
        alarms = []
        self._shared["explosions"] = self._explosions(record)
        now = View(record, self.series, phase, self.thresholds, self.seen, self._shared, self.clipped_in_loss)
        now.tool_changed = tool_changed(now)
        for rule in self.rules:
            memory = self._memory[rule.name]
            memory["explosions"] = self._shared["explosions"]
            now.memory = memory
            finding = rule(now)
            alarm = self._judge(rule.name, finding, record)
            if alarm is not None:
                alarms.append(alarm)
        for alarm in alarms:
            for sink in self.sinks:
                sink(alarm)
        return alarms

    def _explosions(self, record: StepRecord) -> int:
        """Gradient norms of this run that no clipping makes harmless."""
        norms = [record.metrics.get(k) for k in ("grad_norm", "grad_norm_max")]
        limit = self.thresholds.gradient_spike.explosion
        return int(self._shared.get("explosions", 0)) + any(n is not None and n > limit for n in norms)

    def restart(self) -> None:
        """Forget the past and warm up again: the run was rolled back."""
        self._reset()

    def active(self) -> dict[str, str]:
        """Rules whose alarm has not ended, with their level."""
        return {name: s["level"] for name, s in self._status.items() if s.get("level")}

    def _judge(self, rule: str, finding: Finding | None, record: StepRecord) -> Alarm | None:
        """Hold, hysteresis and de-duplication of one rule."""
        t, status = self.thresholds.raising, self._status[rule]
        if finding is None:
            status["held"] = 0
            status["quiet"] = status.get("quiet", 0) + 1
            if status.get("level") and status["quiet"] >= t.clear:
                status.update(level=None, ended=record.step)
            return None
        status["held"] = status.get("held", 0) + 1
        status["quiet"] = 0
        if not finding.immediate and (status["held"] < t.hold or self.seen < t.warmup):
            return None
        rank = ORDER[finding.level]
        if status.get("level") is not None and rank <= ORDER[status["level"]]:
            return None
        fresh = status.get("level") is None
        if fresh and "ended" in status and record.step - status["ended"] < t.cooldown and rank <= status["worst"]:
            return None
        status.update(level=finding.level, worst=max(rank, status.get("worst", 0)))
        return _alarm(rule, finding, record, self.trainer)

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON of everything the next step depends on."""
        return {
            "version": VERSION,
            "seen": self.seen,
            "last_step": self.last_step,
            "series": {name: one.state_dict() for name, one in self.series.items()},
            "status": {k: dict(v) for k, v in self._status.items()},
            "memory": {k: dict(v) for k, v in self._memory.items()},
            "shared": dict(self._shared),
            "phase": self.phases.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`; raises `AgentRLError` for a state of another version."""
        if state.get("version") != VERSION:
            raise AgentRLError(
                f"monitor state has version {state.get('version')!r}, this is {VERSION}: start the monitors afresh by "
                "removing the 'monitor' entry of the checkpoint's state.json"
            )
        self._reset()
        self.seen, self.last_step = state["seen"], state["last_step"]
        self.series = {name: Series.restore(one) for name, one in state["series"].items()}
        self._status.update({k: dict(v) for k, v in state["status"].items()})
        self._memory.update({k: dict(v) for k, v in state["memory"].items()})
        self._shared = dict(state["shared"])
        self.phases.load_state_dict(state["phase"])


def _alarm(rule: str, finding: Finding, record: StepRecord, trainer: str | None) -> Alarm:
    groups, rollouts = responsible(record.groups, finding.by)
    return Alarm(
        id=f"{rule}-{record.step:06d}-{finding.level}",
        step=record.step,
        rule=rule,
        level=finding.level,
        message=finding.message,
        signals={k: {"value": float(v), "threshold": float(limit)} for k, (v, limit) in finding.signals.items()},
        groups=groups,
        rollouts=rollouts,
        remedy=f"{in_terms_of(trainer, finding.remedy)} See {page(rule)}.",
        story=finding.story,
    )


def responsible(groups: Sequence[dict[str, Any]], by: str, top: int = 3) -> tuple[list[str], list[str]]:
    """The questions that did most, and a few of their rollouts: (group ids, sample ids).

    `by`: "delta" most negative Δ first, "logprob" least likely correct responses first, "reward" lowest mean reward
    first, "error" most errors first. Groups that lack the number are not named rather than guessed at; at a step where
    Δ was not measured at all, the least likely correct responses are named, and without any the lowest rewards.
    """
    keys = {"delta": "delta", "logprob": "logprob_correct", "reward": "reward_mean", "error": "errors"}
    known: list[dict[str, Any]] = []
    for what in (by, "logprob", "reward") if by in ("delta", "logprob") else (by,):
        key = keys[what]
        known = [g for g in groups if isinstance(g.get(key), int | float) and math.isfinite(g[key])]
        if known:
            break
    known.sort(key=lambda g: -g[key] if key == "errors" else g[key])
    if key == "delta":
        known = [g for g in known if g[key] <= 0] or known
    worst = known[:top]
    samples = [str(s) for g in worst for s in list(g.get("sample_ids", []))[:4]]
    return [str(g["group_id"]) for g in worst if "group_id" in g], samples

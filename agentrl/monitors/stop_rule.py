"""The stop rule: what a run does about its own alarms, if it may. Soften the updates, go back, or stop.

Decisions only, no torch; `agentrl.train.guard` carries them out.

    warn      protect: LLDS on (or λ doubled), learning rate times `lr_factor` and never again above that, whatever the
              schedule says; or nothing. A further warning waits until it had `patience` steps to help, and counts
              then if its cause still lasts
    critical  roll back to the last checkpoint before the likelihood of correct responses began to fall (before the
              first warning, where it shows no fall), and protect; or stop; or protect only
    story     an alarm whose cause lies elsewhere (a dead tool, a sampler that differs) is left to whoever can help:
              softer updates do not answer a query, and the policy that a roll-back would leave was not to blame
    quiet     release: after `release_after` steps without an alarm, old or new, the last protection is taken back

Each decision is a row of `guard.jsonl`. Steps go on counting after a roll-back: weights
and optimiser go back, the questions do not.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Protocol

from agentrl.monitors.causes import ACTING
from agentrl.types import Alarm, StepRecord

Kind = Literal["protect", "release", "rollback", "stop"]
LARGEST_WEIGHT = 1.0  # λ is not doubled beyond this


class GuardSettings(Protocol):
    """What the guard may do: `agentrl.config.GuardConfig`."""

    @property
    def rules(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def llds_weight(self) -> float: ...  # noqa: D102
    @property
    def lr_factor(self) -> float: ...  # noqa: D102
    @property
    def patience(self) -> int: ...  # noqa: D102
    @property
    def on_warn(self) -> str: ...  # noqa: D102
    @property
    def on_critical(self) -> str: ...  # noqa: D102
    @property
    def max_rollbacks(self) -> int: ...  # noqa: D102
    @property
    def release_after(self) -> int: ...  # noqa: D102


@dataclass(frozen=True)
class GuardAction:
    """One decision. `llds_weight` (0: as configured), `lr_scale` and `lr_ceiling` are what holds from now on."""

    step: int
    kind: Kind
    reason: str
    llds_weight: float
    lr_scale: float
    lr_ceiling: float | None = None  # no update with a larger learning rate; None: no such limit
    back_to: int | None = None  # roll back to a checkpoint at or before this many steps


class Guard:
    """One run's guard: `decide` after every step."""

    def __init__(self, config: GuardSettings) -> None:
        self.config = config
        self.llds_weight = 0.0
        self.lr_scale = 1.0
        self.lr_ceiling: float | None = None
        self.rollbacks = 0
        self._past: list[tuple[float, float, float | None]] = []  # what held before each protection
        self._protected: int | None = None  # step of the last protection
        self._held: Alarm | None = None  # a warning that waits until that protection had `patience` steps
        self._quiet = 0
        self._first_warn: int | None = None

    def decide(
        self, record: StepRecord, alarms: Sequence[Alarm], decay_onset: int | None, active: Collection[str] = ()
    ) -> GuardAction | None:
        """What to do about this step's alarms. `decay_onset` and `active` are the monitor's, the latter without infos.

        An alarm is raised once and stays active while its cause lasts: such a step is not quiet.
        """
        lasting = [rule for rule in active if rule in self.config.rules]
        heard = [a for a in alarms if a.rule in self.config.rules and a.level != "info" and a.story in ACTING]
        waiting = self._protected is not None and record.step - self._protected < self.config.patience
        if self._held is not None and (heard or not waiting):
            if not heard and self._held.rule in lasting:
                heard = [self._held]
            self._held = None
        if not heard:
            self._quiet = 0 if lasting else self._quiet + 1
            self._first_warn = self._first_warn if lasting else None
            return self._release(record.step)
        self._quiet = 0
        worst = next((a for a in heard if a.level == "critical"), heard[0])
        if self._first_warn is None:
            self._first_warn = worst.step
        if worst.level != "critical":
            self._held = worst if waiting else None
            return None if waiting or self.config.on_warn == "nothing" else self._protect(worst, record)
        if self.config.on_critical == "protect":
            return self._protect(worst, record)
        if self.config.on_critical == "stop" or self.rollbacks >= self.config.max_rollbacks:
            why = "" if self.config.on_critical == "stop" else f" ({self.rollbacks} roll-backs did not help)"
            return self._action(record.step, "stop", worst.message + why)
        self.rollbacks += 1
        back_to = decay_onset if decay_onset is not None else self._first_warn
        self._first_warn = None
        return replace(self._protect(worst, record), kind="rollback", back_to=back_to)

    def _protect(self, alarm: Alarm, record: StepRecord) -> GuardAction:
        self._past.append((self.llds_weight, self.lr_scale, self.lr_ceiling))
        doubled = min(2 * self.llds_weight, LARGEST_WEIGHT)
        self.llds_weight = max(doubled, self.config.llds_weight)
        self.lr_scale *= self.config.lr_factor
        lr = record.metrics.get("lr")
        if lr is not None and math.isfinite(lr) and self.config.lr_factor < 1:
            self.lr_ceiling = lr * self.config.lr_factor  # of the rate that was warned of: that one was too large
        self._protected = record.step
        return self._action(record.step, "protect", alarm.message)

    def _action(self, step: int, kind: Kind, reason: str) -> GuardAction:
        return GuardAction(step, kind, reason, self.llds_weight, self.lr_scale, self.lr_ceiling)

    def scale_of(self, scheduled: float) -> float:
        """The factor for a learning rate that the schedule would have at this step."""
        if self.lr_ceiling is None or scheduled <= 0:
            return self.lr_scale
        return min(self.lr_scale, self.lr_ceiling / scheduled)

    def _release(self, step: int) -> GuardAction | None:
        after = self.config.release_after
        if not after or not self._past or self._quiet < after:
            return None
        self.llds_weight, self.lr_scale, self.lr_ceiling = self._past.pop()
        reason = f"{self._quiet} steps without an alarm"
        self._quiet = 0
        self._first_warn = None
        return self._action(step, "release", reason)

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON of everything the next decision depends on."""
        return {
            "llds_weight": self.llds_weight,
            "lr_scale": self.lr_scale,
            "lr_ceiling": self.lr_ceiling,
            "protected": self._protected,
            "rollbacks": self.rollbacks,
            "past": [list(p) for p in self._past],
            "quiet": self._quiet,
            "first_warn": self._first_warn,
            "held": None if self._held is None else asdict(self._held),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.llds_weight, self.lr_scale = state["llds_weight"], state["lr_scale"]
        self.rollbacks, self._quiet = state["rollbacks"], state["quiet"]
        self.lr_ceiling, self._protected = state["lr_ceiling"], state["protected"]
        self._past = [(a, b, c) for a, b, c in state["past"]]
        self._first_warn = state["first_warn"]
        self._held = None if state["held"] is None else Alarm(**state["held"])


def as_row(action: GuardAction) -> dict[str, Any]:
    """For guard.jsonl."""
    return {k: v for k, v in asdict(action).items() if v is not None}


def in_words(row: Mapping[str, Any]) -> str:
    """A row of guard.jsonl as one line."""
    where = f" to the weights after {row['weights_of']} steps" if "weights_of" in row else ""
    left = f"; what it left is in {row['left_behind']}" if "left_behind" in row else ""
    ceiling = f", {row['lr_ceiling']:.2g} at most" if row.get("lr_ceiling") else ""
    return (
        f"{row.get('kind')}{where}; LLDS weight {row.get('llds_weight', 0):g}, learning rate x "
        f"{row.get('lr_scale', 1):g}{ceiling} ({row.get('reason')}){left}"
    )

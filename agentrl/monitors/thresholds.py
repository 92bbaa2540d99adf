"""Every threshold of phases and alarms: one tree, with unit, default and reason. Standard library only.

`Thresholds()` are the shipped values. `changed` sets some by name, dotted (`collapse.clip_share`) or alone where only
one part has it (`clip_share`): what `agentrl watch --set` and the config's `monitors.thresholds` do. Share, z and ratio
thresholds have no unit of the task in them, so they do not depend on the reward's scale, the model's size or the
learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, NoReturn

from agentrl.errors import AgentRLError, nearest


class Limit(NamedTuple):
    """One threshold: its shipped value, what it is, and the smallest value that makes sense."""

    default: float
    doc: str
    least: float | None


def limit(default: float, doc: str, least: float | None = None) -> Any:
    """A threshold of a part. `least`: the smallest value that makes sense (1 for whole numbers)."""
    return Limit(default, doc, 1 if least is None and type(default) is int else least)


class Part:
    """Thresholds of one rule, unchangeable and equal by value: class attributes made by `limit`.

    Frozen dataclasses would do, but making sixteen of them is a tenth of the time in which `watch` starts.
    """

    limits: ClassVar[dict[str, Limit]]

    def __init_subclass__(cls) -> None:
        cls.limits = {name: one for name, one in vars(cls).items() if isinstance(one, Limit)}
        for name, one in cls.limits.items():
            setattr(cls, name, one.default)

    def __init__(self, **values: float) -> None:
        if unknown := values.keys() - self.limits.keys():
            raise TypeError(f"{type(self).__name__} has no {', '.join(sorted(unknown))}")
        vars(self).update(values)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(
            f"thresholds do not change; make others with Thresholds().changed({{{name!r}: {value!r}}})"
        )

    def values(self) -> dict[str, float]:
        """Name -> value, in the order in which they are written here."""
        return {name: getattr(self, name) for name in self.limits}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and self.values() == other.values()

    def __hash__(self) -> int:
        return hash(tuple(self.values().items()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.values().items())})"


class RaisingThresholds(Part):
    """When a rule's finding becomes an alarm."""

    warmup: int = limit(10, "steps before a trend alarm: a rolling median and a slope need them to mean anything")
    hold: int = limit(3, "steps in a row before a trend alarm is raised: one odd batch is not a trend")
    clear: int = limit(10, "quiet steps before an alarm ends")
    cooldown: int = limit(20, "steps before an alarm that ended may be raised again at the same level", 0)


class CollapseThresholds(Part):
    """The collapse rule's evidence and when it becomes critical."""

    clip_share: float = limit(
        0.03,
        "share of tokens outside the clip range at every step: the surrogate is blind there, healthy runs stay below",
    )
    clip_share_loss: float = limit(
        0.01,
        "the same in trainers that count a token only where clipping changes its loss (TRL, verl, OpenRLHF, SkyRL)",
    )
    delta_size: float = limit(
        0.03, "the same in nats per token and step where no clip fraction is logged: 3 % more or less likely each time"
    )
    size_span: int = limit(8, "steps in the median of the update size")
    early: int = limit(15, "steps in which more is needed: an optimiser's first steps are of full size anyway", 0)
    early_factor: float = limit(2.0, "how much more")
    rising_z: float = limit(2.0, "standard errors of the reward's slope that count as: it is learning")
    rising_span: int = limit(20, "steps in that slope", 3)
    rise_drift: float = limit(0.25, "entropy rise: deviations above the start that are forgiven per step")
    rise_limit: float = limit(4.0, "entropy rise: deviations that must add up")
    entropy_noise: float = limit(
        0.05, "least deviation per step, so that a smooth entropy is not judged too finely", 1e-6
    )
    degradation_z: float = limit(4.5, "standard errors, combined over signals by Stouffer's rule")
    floor: float = limit(-2.0, "least standard errors of one signal: one that is at its best speaks against")
    cap: float = limit(6.0, "most standard errors of one signal: no single one decides alone")
    entropy_factor: float = limit(1.2, "and it must matter: entropy this many times its lowest level, or")
    reward_lost: float = limit(0.2, "this share of the peak reward gone")
    rise_early: int = limit(20, "steps in which an entropy rise counts with little lost:", 0)
    rise_gate_share: float = limit(0.1, "share of the reward that must be gone then")
    rise_gate_z: float = limit(1.0, "and by how many standard errors of the difference")
    gate_share: float = limit(0.2, "share of the reward that must be gone later, and for a degradation")
    gate_z: float = limit(2.5, "and by how many standard errors of the difference")
    decline_lost: float = limit(0.37, "reward decline: share of the best mean reward gone")
    decline_z: float = limit(3.5, "and standard errors, after what the best of many means owes to luck")
    crash_kept: float = limit(0.4, "crash: the last rows are all below this share of the mean of those before")
    crash_rows: int = limit(2, "crash: so many rows")
    crash_z: float = limit(4.0, "crash: standard errors")
    truncated: float = limit(0.5, "truncation: share of responses that are cut, in so many rows in a row:")
    truncated_rows: int = limit(3, "rows in a row that must be so")
    truncated_from: float = limit(0.3, "where the run started below this share")
    collapse_lost: float = limit(0.45, "critical: share of the best mean reward gone, close to half")
    collapse_z: float = limit(3.0, "and standard errors, as for the decline: no critical alarm without significance")


class SpiralThresholds(Part):
    """The death spiral (LLDS Def. 5.1), for the phase, the alarm and the collapse rule alike."""

    window: int = limit(12, "measurements of Δ, judged in two halves", 2)
    epsilon: float = limit(0.005, "nats per token and step: 0.5 % less likely with every update")
    share: float = limit(0.6, "of the window's Δ that must be negative")


class PhaseThresholds(Part):
    """What separates the phases."""

    window: int = limit(20, "steps per slope: long enough that a slope of a fifth of the noise per step shows", 3)
    warmup: int = limit(10, "steps before the first judgement: half a window", 2)
    significant: float = limit(
        2.0, "standard errors of a slope that counts, and what the largest of the run's windows owes to luck"
    )
    flat: float = limit(1.0, "standard errors below which a slope is flat; between the two the phase stays as it was")
    hidden: float = limit(
        0.2, "change of the likelihood (logarithm) over the window that noise may hide where it is called flat"
    )
    fast: float = limit(2.0, "recent slope over the slope of the whole decay that counts as acceleration")
    collapsed: float = limit(0.5, "share of the peak reward gone that counts as the collapse itself")
    collapsed_z: float = limit(2.0, "and standard errors, where they are known")
    hold: int = limit(3, "steps that a new phase must last before it is announced")


class NonFiniteThresholds(Part):
    """NaN and infinity."""

    critical_run: int = limit(3, "steps in a row that make it critical")


class EntropyCollapseThresholds(Part):
    """A policy that stops exploring."""

    low: float = limit(0.15, "share of the starting entropy: information below it")
    very_low: float = limit(0.05, "share of the starting entropy: a warning below it, while questions are unsolved:")
    all_wrong: float = limit(0.2, "share of groups all wrong from which questions are unsolved, or")
    correct: float = limit(0.7, "share of correct answers up to which they are")


class RewardHackingThresholds(Part):
    """A reward that rises for another reason than the task."""

    rising_z: float = limit(3.0, "standard errors of the reward's slope")
    falling_z: float = limit(-1.0, "standard errors of the slope of correct answers that count as falling")
    flat_z: float = limit(1.0, "and below which they do not rise")
    correct_share: float = limit(0.5, "of the reward, that correct answers stay below")
    gap: float = limit(0.1, "rise of the reward over the share of correct answers, in five rows against those before")
    gap_z: float = limit(4.0, "standard errors of that rise")
    least_correct: float = limit(0.2, "share of correct answers before, below which a format may still be learnt")
    kept: float = limit(0.5, "share of the start, of retrieved answers or searches, below which they are given up")
    least_retrieved: float = limit(0.2, "share of answers in what was retrieved at the start, to be judged")
    least_search: float = limit(0.1, "share of searches at the start, to be judged")


class MismatchThresholds(Part):
    """Sampler and trainer apart."""

    factor: float = limit(2.0, "times the starting level")
    least: float = limit(0.01, "nats per token; an ordinary bf16 sampler has less")
    least_kl: float = limit(0.001, "the same as a divergence: half the square of a difference of about 0.045")
    z: float = limit(4.0, "standard errors above its lowest level")


class ToolOutageThresholds(Part):
    """Failing and slow tools."""

    run: int = limit(3, "steps in a row with failures")
    factor: float = limit(3.0, "times the start (plus one) that count as failures")
    calls: float = limit(0.5, "share of calls that raise or are late, and at the start fewer than a third of it did")
    latency_factor: float = limit(5.0, "times the starting latency that count as slow, and")
    latency_s: float = limit(1.0, "seconds at least")


class InvalidActionThresholds(Part):
    """Actions that the environment cannot read."""

    lost: float = limit(0.2, "share of all actions that became unreadable since the best level")


class TruncationThresholds(Part):
    """Episodes that run into a limit."""

    share: float = limit(0.5, "of the episodes in each of the last rows (collapse.truncated_rows), or")
    start: float = limit(0.3, "started below this; where it started higher, `more` is needed")
    more: float = limit(0.25, "share above the start that is needed where the run started high")
    nearly_all: float = limit(0.9, "of the responses at max_tokens_per_turn, whatever the start")
    lost: float = limit(0.15, "share of the reward that must be gone for a warning; else it is information")
    z: float = limit(2.0, "and by how many standard errors")


class GradientSpikeThresholds(Part):
    """One gradient far out of the ordinary."""

    factor: float = limit(10.0, "times the usual")
    span: int = limit(20, "steps in the median that is the usual")
    explosion: float = limit(1e4, "norm that no clipping makes harmless: the direction is noise")
    explosions: int = limit(2, "such norms in a run that make it a warning")
    least: float = limit(0.01, "usual norm, below which nothing is judged")


class NoSignalThresholds(Part):
    """Groups of equal rewards."""

    share: float = limit(0.9, "of the groups with equal rewards")


class StartThresholds(Part):
    """What cannot be learned from, from the first row on."""

    rows: int = limit(5, "rows from the start in which it must be so for a warning")
    cut: float = limit(0.5, "share of responses that are cut")
    equal: float = limit(0.99, "share of groups with equal rewards")
    valid: float = limit(0.01, "share of actions that can be read")
    entropy: float = limit(0.01, "nats per token")
    answered: float = limit(0.01, "share of episodes that end with an answer")


class ValidationThresholds(Part):
    """Held-out reward falls while the training reward does not."""

    lost: float = limit(0.2, "share of the best held-out reward gone in the last two validations")
    z: float = limit(2.0, "and standard errors, after what the best of so many validations owes to luck")
    least: int = limit(3, "validations before one is judged", 3)


class DiversityThresholds(Part):
    """Responses that lose their difference, and control tokens among them."""

    information: float = limit(0.5, "share of the starting mutual information of question and response, or less")
    within: float = limit(0.2, "share of the starting distance of two responses to one question, or less")
    z: float = limit(4.0, "and standard errors below the best level")
    unsolved: float = limit(0.5, "share of correct answers up to which alike responses are a warning")
    control: float = limit(0.01, "share of the sampled tokens that are control tokens, and")
    control_factor: float = limit(5.0, "times the most of the 20 rows before")
    control_rows: int = limit(2, "rows in a row that must be so")


class Thresholds(NamedTuple):
    """The whole tree: one part for each rule, `raising` for all of them."""

    raising: RaisingThresholds = RaisingThresholds()
    phases: PhaseThresholds = PhaseThresholds()
    collapse: CollapseThresholds = CollapseThresholds()
    death_spiral: SpiralThresholds = SpiralThresholds()
    non_finite: NonFiniteThresholds = NonFiniteThresholds()
    entropy_collapse: EntropyCollapseThresholds = EntropyCollapseThresholds()
    reward_hacking: RewardHackingThresholds = RewardHackingThresholds()
    mismatch: MismatchThresholds = MismatchThresholds()
    tool_outage: ToolOutageThresholds = ToolOutageThresholds()
    invalid_actions: InvalidActionThresholds = InvalidActionThresholds()
    truncation: TruncationThresholds = TruncationThresholds()
    gradient_spike: GradientSpikeThresholds = GradientSpikeThresholds()
    no_signal: NoSignalThresholds = NoSignalThresholds()
    validation: ValidationThresholds = ValidationThresholds()
    starts: StartThresholds = StartThresholds()
    diversity: DiversityThresholds = DiversityThresholds()

    def changed(self, values: Mapping[str, Any]) -> Thresholds:
        """A copy with `values` (names as in the module's docstring, or a mapping of a part's names) set.

        Raises AgentRLError with the nearest name for an unknown or ambiguous one, and for a value that cannot be.
        """
        parts: dict[str, dict[str, Any]] = {}
        for name, value in _flat(values):
            part, leaf = self._find(name)
            parts.setdefault(part, {})[leaf] = self._checked(part, leaf, value)
        made = {part: type(old := getattr(self, part))(**{**old.values(), **new}) for part, new in parts.items()}
        return self._replace(**made)

    def items(self) -> Iterator[tuple[str, float, str]]:
        """(dotted name, value, what it is) of every threshold."""
        for part, inner in self._asdict().items():
            for name, one in inner.limits.items():
                yield f"{part}.{name}", getattr(inner, name), one.doc

    def _find(self, name: str) -> tuple[str, str]:
        dotted = [n for n, _, _ in self.items()]
        if name in dotted:
            part, _, leaf = name.partition(".")
            return part, leaf
        found = [n for n in dotted if n.endswith(f".{name}")]
        if len(found) == 1:
            return self._find(found[0])
        if found:
            raise AgentRLError(f"threshold {name!r} is in several parts: write {' or '.join(found)}")
        every = dotted if "." in name else [n.partition(".")[2] for n in dotted]
        hint = nearest(name, every) or f"; the parts are {', '.join(self._fields)}"
        raise AgentRLError(f"there is no threshold {name!r}{hint}; docs/alarms.md lists them")

    def _checked(self, part: str, leaf: str, value: Any) -> float:
        one: Limit = getattr(self, part).limits[leaf]
        name, least = f"threshold {part}.{leaf}", one.least
        whole = type(one.default) is int
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise AgentRLError(f"{name} is {value!r}; it must be a number, for example {one.default}")
        if whole and value != int(value):
            raise AgentRLError(f"{name} is {value!r}; it counts steps: use a whole number, for example {one.default}")
        if least is not None and value < least:
            raise AgentRLError(f"{name} is {value!r}; it must be {least} or more, for example {one.default}")
        return int(value) if whole else float(value)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def parse(pairs: Sequence[str]) -> dict[str, float]:
    """`NAME=NUMBER` pairs of a command line; AgentRLError names the pair that is not one."""
    out = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        try:
            out[name.strip()] = float(text)
        except ValueError:
            equals = ""
        if not equals or not name.strip():
            raise AgentRLError(f"--set {pair}: expected NAME=NUMBER, for example clip_share=0.05")
    return out

"""Central types that cross the borders between packages. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Stop = Literal["stop", "length"]


@dataclass(frozen=True)
class Task:
    """One question. `options` is handed to `env.reset(options=...)` as it is."""

    id: str
    options: dict[str, Any]
    env: str = ""  # the name of the environment that it belongs to, where a run has several


@dataclass(frozen=True)
class Sample:
    """What an engine sampled for one turn; token ids are never re-encoded."""

    ids: list[int]
    logprobs: list[float]  # nats, under the policy and temperature that sampled them
    text: str
    stop: Stop  # "stop": a stop string or the end-of-text token ended it; "length": the budget did


class Sampler(Protocol):
    """The half of an engine that rollouts see."""

    @property
    def policy_version(self) -> int:
        """Number of times it was given new weights."""
        ...

    async def sample(
        self,
        ids: Sequence[int],
        *,
        max_tokens: int,
        stop: Sequence[str] = (),
        temperature: float = 1.0,
        session: int | None = None,
    ) -> Sample:
        """Continue `ids` (the whole context) by at most `max_tokens`; ends with the token that completes a stop string.

        `session` names a conversation: its key/value cache is kept between calls, and only the new tokens are fed.
        `temperature` 0 is greedy. Log-probabilities are of the distribution sampled from.
        """
        ...

    def release(self, session: int) -> None:
        """Forget a conversation; unknown sessions are ignored."""
        ...


@dataclass(frozen=True)
class Turn:
    """One action of the model and what the environment answered."""

    prompt_ids: list[int]  # tokens the environment added since the last turn (the question, a tool output)
    action_ids: list[int]  # exactly as sampled
    logprobs: list[float]  # of the policy that sampled them; len == len(action_ids)
    action: str
    observation: str
    reward: float
    stop: Stop
    info: dict[str, Any] = field(default_factory=dict)  # tool, latency_s, error, valid, ...
    answer_span: tuple[int, int] | None = None  # token range of the final answer inside action_ids
    policy_version: int = 0


@dataclass(frozen=True)
class Trajectory:
    """One episode."""

    sample_id: str
    group_id: str
    env_id: str
    policy_version: int  # of the oldest turn
    turns: tuple[Turn, ...]
    reward: float
    correct: bool
    terminated: bool
    truncated: bool
    error: str | None = None  # an infrastructure failure: kept out of the loss, logged, never a reward of 0

    @property
    def action_tokens(self) -> int:
        """Number of tokens that the model sampled in all turns."""
        return sum(len(t.action_ids) for t in self.turns)


@dataclass
class StepRecord:
    """One training step as the run log and the monitors see it.

    `metrics` uses the canonical signal names (`agentrl.monitors.signals`); a value that was not measured is absent,
    never 0. `groups` describes each question's group for the alarms that name those responsible.
    """

    step: int
    metrics: dict[str, float]
    groups: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Alarm:
    """What a monitor has to say at one step."""

    id: str
    step: int
    rule: str
    level: Literal["info", "warn", "critical"]
    message: str
    signals: dict[str, dict[str, float]] = field(default_factory=dict)  # name -> {"value", "threshold"}
    groups: list[str] = field(default_factory=list)  # the questions most responsible
    rollouts: list[str] = field(default_factory=list)  # sample ids
    remedy: str = ""  # with the exact config change
    acknowledged: bool = False
    story: str = ""  # the cause that fits (`agentrl.monitors.causes`), where the rule names one

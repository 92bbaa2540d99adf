"""What each advantage is, one row each: the function, and the traits that rules and other code ask. No torch.

A plug-in is a row of its own, or a plain function, which then counts as a row with the default traits. The functions
are named, not imported: a config is checked without torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from agentrl import plugins
from agentrl.errors import PluginError

_SHAPE = "Thrampoulidis et al. 2025, arXiv 2510.23049"


@dataclass(frozen=True)
class Advantage:
    """One advantage. `function` and `surrogate` are `module:attribute`.

    function: from `agentrl.algorithms.advantages.GroupStats` to (B,) advantages.
    incorrect: what an incorrect response (reward 0) of a mixed group gets: a negative advantage, its own reward (0, or
        what a format earns), or zero whatever its reward.
    """

    function: str
    incorrect: Literal["negative", "reward", "zero"] = "negative"
    counts_correct: bool = False  # counts correct responses: their correctness is the reward
    needs_contrast: bool = True  # a group of equal rewards gives 0; without it, what the function says
    takes_k: bool = False  # has the K of pass@K
    surrogate: str | None = None  # an `agentrl.algorithms.surrogate.Surrogate`
    source: str = ""

    @property
    def penalises(self) -> bool:
        """Whether incorrect responses are pushed down."""
        return self.incorrect == "negative"


def _row(name: str, source: str, surrogate: str | None = None, **traits: Any) -> Advantage:
    return Advantage(
        f"agentrl.algorithms.advantages:{name}",
        surrogate=f"agentrl.algorithms.surrogate:{surrogate or name.upper()}",
        source=source,
        **traits,
    )


GRPO = _row("grpo", "Deng et al. 2025, arXiv 2505.18830, §2")
POS_ONLY = _row("pos_only", "Deng et al. 2025, arXiv 2505.18830, §3", incorrect="zero")
RLOO = _row("rloo", _SHAPE, "LINEAR")
SKEW_R = _row("skew_r", _SHAPE, counts_correct=True)
RLOO_K = _row("rloo_k", _SHAPE, counts_correct=True, takes_k=True)
GRPO_TILDE_K = _row("grpo_tilde_k", _SHAPE, counts_correct=True, takes_k=True)
GRPO_K = _row("grpo_k", _SHAPE, counts_correct=True, takes_k=True)
DR_GRPO = _row("dr_grpo", "Liu et al. 2025, arXiv 2503.20783", "LINEAR")
REINFORCE = _row("reinforce", "Williams 1992", "LINEAR", incorrect="reward", needs_contrast=False)


def built_in() -> dict[str, Advantage]:
    """Name -> row of every advantage that agentrl ships."""
    return {name: find(name) for name in plugins.BUILTIN["advantage"]}


def find(name: str) -> Advantage:
    """The row of an advantage, built in or not. Raises PluginError, with the nearest name, where there is none."""
    found = plugins.find("advantage", name)
    if isinstance(found, Advantage):
        return found
    if not callable(found):
        raise PluginError(f"advantage {name!r} is a {type(found).__name__}, not an Advantage or a function")
    return Advantage(plugins.target_of("advantage", name))

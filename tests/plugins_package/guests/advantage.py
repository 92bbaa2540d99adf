"""An advantage: a function, and the row that says what it is."""

from torch import Tensor

from agentrl.algorithms.advantages import GroupStats
from agentrl.config.advantages import Advantage


def doubled(g: GroupStats) -> Tensor:
    """Twice the reward minus the mean."""
    return 2 * (g.reward - g.mean)


def halved(g: GroupStats) -> Tensor:
    """A function alone, named as module:attribute."""
    return (g.reward - g.mean) / 2


DOUBLED = Advantage("guests.advantage:doubled", surrogate="guests.advantage:SURROGATE", source="a test")
NO_PENALTY = Advantage("agentrl.algorithms.advantages:reinforce", incorrect="reward")

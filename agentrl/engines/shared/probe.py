"""Whether a sampler holds the trainer's weights, from the log-probabilities that both give to the same texts. No torch.

Two correct programs never agree exactly: in bfloat16 the mean over tokens is some hundredths of a nat, in float32 some
millionths. How far they are apart depends on the model: what is too much is measured, as a multiple of the mean gap of
the first hand-over. The maximum over tokens is of no use here: it grows with their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PROBE_TOKENS = 64  # of one probe, at least
#: The mean gap in nats allowed at the first hand-over, where only the two implementations differ
FIRST = {"bfloat16": 0.25, "float32": 0.01}
#: Afterwards: this many times the gap of the first hand-over, and at least `LEAST`. SmolLM2-135M in bfloat16: correct
#: weights are 0.04 nats apart, weights with 2 % of noise 0.17
FACTOR = 2.5
LEAST = {"bfloat16": 0.02, "float32": 0.01}


def mean_gap(sampler: Sequence[Sequence[float]], trainer: Sequence[Sequence[float]]) -> float:
    """Mean distance in nats between two lists of texts' log-probabilities.

    Raises ValueError where they have other lengths, or fewer than PROBE_TOKENS tokens in all. A NaN makes it NaN, which
    no limit holds: ask `gap <= limit`.
    """
    gaps = [abs(a - b) for one, other in zip(sampler, trainer, strict=True) for a, b in zip(one, other, strict=True)]
    if len(gaps) < PROBE_TOKENS:
        raise ValueError(f"a probe of {len(gaps)} tokens; it has {PROBE_TOKENS} or more")
    return sum(gaps) / len(gaps)


@dataclass
class Limit:
    """The mean gap that a probe may have. `baseline` is that of the first hand-over; a checkpoint keeps it."""

    dtype: str  # of the model
    fixed: float | None = None  # the config's, at every hand-over
    baseline: float | None = None

    @property
    def nats(self) -> float:
        """The largest mean gap that is allowed now."""
        if self.fixed is not None:
            return self.fixed
        if self.baseline is None:
            return FIRST[self.dtype]
        return max(LEAST[self.dtype], FACTOR * self.baseline)

    def learn(self, gap: float) -> None:
        """`gap` of a hand-over that passed: the first one is the baseline."""
        if self.baseline is None:
            self.baseline = gap

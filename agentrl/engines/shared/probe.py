"""Whether a sampler holds the trainer's weights, from the log-probabilities that both give to one text. No torch.

Two programs never agree exactly: in bf16 the mean over tokens is some hundredths of a nat, in fp32 some millionths. So
the limit is relative: the first hand-over, from the same weights on both sides, says how far two right programs are
apart. The maximum over tokens is of no use here: it grows with their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

PROBE_TOKENS = 64  # at least, of one probe
FACTOR = 2.5  # of the first hand-over's gap; 2 % of noise on the weights made it 4 times as large
FIRST = {"bfloat16": 0.2, "float32": 0.01}  # nats, of the first hand-over, which has nothing to compare with
SMALLEST = {"bfloat16": 0.02, "float32": 1e-3}  # nats; less is never a limit: rounding changes with the weights


def probe_gap(
    sampler: Sequence[float], trainer: Sequence[float], first: float | None, dtype: str, tolerance: float | None = None
) -> tuple[float, float]:
    """(gap, limit) in nats: the mean |difference| of two lists of log-probabilities, and what it must not exceed.

    `first` is the gap of the run's first hand-over, None at that one; `tolerance` replaces the limit of the first.
    Raises ValueError for fewer than PROBE_TOKENS tokens, or lists of different lengths. A NaN gives a gap of NaN, which
    no limit holds: ask `not gap <= limit`.
    """
    if len(sampler) != len(trainer) or len(sampler) < PROBE_TOKENS:
        raise ValueError(f"{len(sampler)} and {len(trainer)} log-probabilities; a probe has {PROBE_TOKENS} or more")
    gap = fmean(abs(a - b) for a, b in zip(sampler, trainer))
    limit = tolerance or FIRST[dtype]
    return gap, limit if first is None else max(FACTOR * first, SMALLEST[dtype])

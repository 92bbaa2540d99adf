"""Is a reward lower than it was? Only where the difference is significant for this run's noise and batch.

Each step's mean reward has noise, and the best of many noisy means is too high: the peak is lowered by what the best of
n/w means of w rows would be by luck, √(2 ln(n/w)) standard errors. What is left is compared with the mean now, in
standard errors of the difference. Two kinds of mean: windows of 8, 16 and 32 rows, and an exponential mean (α = 2/9),
which answers sooner. `crash` compares the last two rows with those before, inside the warm-up too.

The noise is estimated from differences of rows 1 and 3 apart (80 % quantile; a reward of few responses lives on a
lattice, where a median of differences is often 0). Where a row has few responses, a quiet stretch is luck, so that the
largest noise so far counts. Few: the rewards' lattice is coarse, or the noise is a large part of the reward.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

LAGS = (1, 3)  # rows apart
WIDTHS = (8, 16, 32)  # rows in a window's mean
ALPHA = 2 / 9  # of the exponential mean: as old on average as a mean of 8
SHORT, LONG = 40, 64  # rows from which the noise is estimated
SETTLED = 12  # rows from which an estimate of the noise may count as the largest so far
PEAK_FROM = 5  # rows before an exponential mean may be a peak
EMA_FROM = 8
CRASH_REFERENCE = 20  # rows before a crash that it is compared with
COARSE = 1 / 16  # lattice of rewards of 16 or fewer responses
FORGET = 200  # rows at a lower level after which that is the run's level, and the peak before it is forgotten
FORGOTTEN = 0.5  # share of the peak that the best of those rows lacks: more than what an alarm needs
EARNED = 3.0  # standard errors that the best mean must be above what losses are measured from
EARNED_ROWS = 5  # rows with any reward at all: fewer are luck
NOISY = 0.3  # noise over peak from which a row's responses count as few
_NORMAL = 1.2816 * math.sqrt(2)  # 80 % quantile of the absolute difference of two normals, in deviations


def quantile(values: Sequence[float], q: float) -> float:
    """The q-quantile, linear between neighbours; 0 of nothing."""
    return _at(sorted(values), q)


def _at(ordered: Sequence[float], q: float) -> float:
    """The same of what is in order."""
    if not ordered:
        return 0.0
    at = q * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def row_noise(values: Sequence[float]) -> float:
    """Standard deviation of one row: the larger over lags 1 and 3 of the differences' 80 % quantile.

    At least half of the root mean square of the neighbours' differences: where most rows are 0 and few are not, the
    quantile is 0, and a reward of 0 after one lucky row is no loss.
    """
    n = len(values)
    differences = [sorted(abs(values[i] - values[i - lag]) for i in range(lag, n)) for lag in LAGS]
    return _noise(differences, [(b - a) ** 2 for a, b in itertools.pairwise(values)])


def _noise(differences: Sequence[Sequence[float]], squares: Sequence[float]) -> float:
    """Of the absolute differences, in order of size, at each lag, and of the neighbours' squared ones."""
    spread = max(_at(ordered, 0.8) for ordered in differences) / _NORMAL
    return max(spread, math.sqrt(sum(squares) / (2 * max(len(squares), 1))) / 2)


class RecentNoise:
    """`row_noise` and `lattice` of the last `span` rows, row by row: differences stay in order of size."""

    def __init__(self, span: int, rows: Iterable[float] = ()) -> None:
        self.span = span
        self._rows: list[float] = []  # one more, whose differences leave with it
        self._sorted: list[list[float]] = [[] for _ in LAGS]
        self._squares: list[float] = []
        for row in rows:
            self.push(row)

    def push(self, row: float) -> None:
        """Add a row."""
        rows = self._rows
        rows.append(row)
        for lag, ordered in zip(LAGS, self._sorted):
            if len(rows) > lag:
                insort(ordered, abs(row - rows[-1 - lag]))
            if len(ordered) > self.span - lag:
                del ordered[bisect_left(ordered, abs(rows[lag] - rows[0]))]
        if len(rows) > 1:
            self._squares.append((row - rows[-2]) ** 2)
        if len(rows) > self.span:
            del rows[0], self._squares[0]

    def noise(self) -> float:
        """`row_noise` of these rows."""
        return _noise(self._sorted, self._squares)

    def lattice(self) -> float:
        """`lattice` of these rows."""
        return next((step for d in self._sorted[0] if (step := round(d, 6))), 0.0)


def lattice(values: Iterable[float]) -> float:
    """The smallest change of neighbours that is one: 1/n where each row is a share of n responses; 0 of constants."""
    return min((d for a, b in itertools.pairwise(values) if (d := round(abs(b - a), 6))), default=0.0)


def best_by_luck(n: int, width: int) -> float:
    """By how many standard errors the best of n/width noisy means is too high."""
    return math.sqrt(2 * math.log(max(2.0, n / width)))


@dataclass(frozen=True)
class Fall:
    """How far a mean is below its best: share of the best that is gone, and standard errors of that difference."""

    share: float
    z: float
    peak: float
    now: float


NONE = Fall(0.0, 0.0, 0.0, 0.0)


class Falls:
    """The falls of one signal, row by row. Plain JSON state; nothing looks ahead."""

    def __init__(self) -> None:
        self.values: list[float] = []  # the last LONG
        self.count = 0
        self.base = 0.0  # what losses are measured from: 0, or the first value where that is below
        self.best: dict[int, float] = {}
        self.ema = self.weight = self.weight2 = 0.0  # sums of the exponential mean
        self.ema_best = -math.inf
        self.blocks: dict[int, list[float]] = {}  # width (0: exponential) -> the best mean of this block of rows
        self.recent = 0.0
        self.largest = 0.0
        self.earned = 0  # rows above `base`
        self._noise: tuple[float, bool] | None = None  # noise and whether rows are of few responses, once asked for
        self._means: dict[int, float] = {}  # of the last rows, by width
        self._short, self._long = RecentNoise(SHORT), RecentNoise(LONG)

    def push(self, value: float) -> None:
        """Add a finite value."""
        if not self.count:
            self.base = min(0.0, value)
        rows = self.values
        rows.append(value)
        del rows[:-LONG]
        self.count += 1
        self.earned += value > self.base
        keep = 1 - ALPHA
        self.ema = keep * self.ema + ALPHA * value
        self.weight = keep * self.weight + ALPHA
        self.weight2 = keep * keep * self.weight2 + ALPHA * ALPHA
        for width in WIDTHS:
            if self.count >= width:
                mean = self._means[width] = sum(rows[-width:]) / width
                self.best[width] = max(self._known(width, self.best.get(width, -math.inf), mean), mean)
        if self.count >= PEAK_FROM:
            ema = self.ema / self.weight
            self.ema_best = max(self._known(0, self.ema_best, ema), ema)
        self._short.push(value)
        self._long.push(value)
        self.recent = self._short.noise()
        if self.count >= SETTLED:
            self.largest = max(self.largest, self.recent)
        self._noise = None  # worked out when it is asked for

    def _known(self, width: int, best: float, mean: float) -> float:
        """The best mean so far, as far as it is remembered.

        A loss that has lasted is the run's new level, and a second fall is measured from there. Rows are looked at in
        blocks of FORGET: a peak is forgotten at the end of a block none of whose means came near it.
        """
        block = self.blocks.setdefault(width, [mean])
        block[0] = max(block[0], mean)
        if self.count % FORGET:
            return best
        top, block[0] = block[0], mean
        return top if top - self.base < (1 - FORGOTTEN) * (best - self.base) else best

    @property
    def noise(self) -> float:
        """Standard deviation of one row."""
        return self._judged()[0]

    @property
    def few(self) -> bool:
        """Whether a row has few responses."""
        return self._judged()[1]

    def _judged(self) -> tuple[float, bool]:
        if self._noise is None:
            noise = max(self.recent, self._long.noise())
            best = self.ema_best if self.count >= PEAK_FROM else max(self.values, default=0.0)
            few = self._short.lattice() >= COARSE - 1e-6 or noise > NOISY * max(best - self.base, 1e-9)
            self._noise = (max(noise, self.largest), True) if few else (noise, False)
        return self._noise

    def exponential(self) -> Fall:
        """The fall of the exponential mean."""
        if self.count < EMA_FROM:
            return NONE
        scale = math.sqrt(self.weight2) / self.weight
        return self._fall(self.ema_best, self.ema / self.weight, scale, 8)

    def window(self, width: int) -> Fall:
        """The fall of the mean of `width` rows."""
        if self.count < width:
            return NONE
        return self._fall(self.best[width], self._means[width], 1 / math.sqrt(width), width)

    def _fall(self, peak: float, now: float, scale: float, width: int) -> Fall:
        """`scale`: standard error of the mean over that of a row. What was never earned cannot be lost."""
        if self.earned < EARNED_ROWS or peak - self.base <= max(EARNED * self.largest * scale, 0.0):
            return NONE
        error = self.noise * scale
        difference = peak - best_by_luck(self.count, width) * error - now
        z = difference / (error * math.sqrt(2)) if error else math.copysign(math.inf, difference) if difference else 0.0
        return Fall((peak - now) / (peak - self.base), z, peak, now)

    def significant(self, share: float, z: float) -> Fall | None:
        """The largest fall of at least `share` and `z`, over all means; None where there is none."""
        found = None
        for width in (0, *WIDTHS):
            if self._share(width) >= share:  # the noise costs more than the share
                fall = self.window(width) if width else self.exponential()
                if fall.share >= share and fall.z >= z and (found is None or fall.share > found.share):
                    found = fall
        return found

    def _share(self, width: int) -> float:
        """The share that is gone, whatever the noise."""
        if self.count < (width or EMA_FROM):
            return -math.inf
        peak = self.best[width] if width else self.ema_best
        if peak <= self.base:
            return -math.inf
        now = self._means[width] if width else self.ema / self.weight
        return (peak - now) / (peak - self.base)

    def lost(self, z: float) -> float:
        """The largest share that is gone at `z` standard errors or more; 0 where nothing is."""
        found = self.significant(0.0, z)
        return found.share if found else 0.0

    def crash(self, rows: int, kept: float, z: float) -> Fall | None:
        """The last `rows` values all below `kept` of the mean of those before, `z` standard errors; None otherwise."""
        new, old = self.values[-rows:], self.values[-rows - CRASH_REFERENCE : -rows]
        if len(old) < 3:
            return None
        before, now = sum(old) / len(old), sum(new) / rows
        if before <= self.base or max(new) - self.base >= kept * (before - self.base):
            return None
        error = max(row_noise(old), self._lattice(before), 0.05 * abs(before), self.largest if self.few else 0.0)
        found = (before - now) / (error * math.sqrt(1 / rows + 1 / len(old)))
        return Fall((before - now) / (before - self.base), found, before, now) if found >= z else None

    def _lattice(self, mean: float) -> float:
        """The least noise of a share counted in the steps that the rewards show: √(p (1 - p) / n), n = 1 / step."""
        p = min(max(mean, 0.1), 0.9)
        return math.sqrt(p * (1 - p) * self._long.lattice()) if 0 <= mean <= 1 else 0.0

    def needs(self, share: float, z: float) -> int | None:
        """Rows in a mean from which a loss of `share` of the peak would be significant; None where it is at hand."""
        peak = max(self.best.values(), default=self.ema_best if self.count >= PEAK_FROM else 0.0) - self.base
        if peak <= 0 or not self.noise:
            return None
        width = 8
        while width < 100_000:
            luck = best_by_luck(max(self.count, width), width)
            if share * peak >= (luck + z * math.sqrt(2)) * self.noise / math.sqrt(width):
                return width if width > max(WIDTHS) else None
            width *= 2
        return width

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        plain = {k: v for k, v in vars(self).items() if k[0] != "_" and (not isinstance(v, float) or math.isfinite(v))}
        return {**plain, "values": list(self.values), "best": _texts(self.best), "blocks": _texts(self.blocks)}

    @classmethod
    def restore(cls, state: dict[str, Any]) -> Falls:
        """The inverse of `state_dict`."""
        falls = cls()
        vars(falls).update({k: v for k, v in state.items() if k not in ("best", "blocks")})
        falls.values = rows = list(state["values"])
        falls.best = {int(k): v for k, v in state["best"].items()}
        falls.blocks = {int(k): list(v) for k, v in state.get("blocks", {}).items()}
        falls._means = {width: sum(rows[-width:]) / width for width in WIDTHS if falls.count >= width}
        falls._short, falls._long = RecentNoise(SHORT, rows), RecentNoise(LONG, rows)
        return falls


def _texts(numbered: dict[int, Any]) -> dict[str, Any]:
    """As JSON has it."""
    return {str(k): v for k, v in numbered.items()}

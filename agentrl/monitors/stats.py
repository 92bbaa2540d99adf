"""Robust online statistics of one signal. Pure Python: a step's worth costs tens of microseconds.

Everything here looks at the past only, and a `Series` that was saved and restored continues as if nothing happened.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Sequence
from typing import Any

from agentrl.monitors.falls import Falls

WINDOW = 5  # observations in a rolling median: the shortest that survives two outliers
MEAN_WINDOW = 8  # observations in the rolling mean that `lost` compares with its peak
REFERENCE = 20  # observations in the rolling median whose best value is "the best level so far": the best of a short
# median would be an outlier, and everything after it would look like a decline
MEMORY = 64  # observations kept
NOISE_SPAN = 40  # observations from which the noise is estimated
_MAD = 1.4826  # median absolute deviation -> standard deviation of a normal
_MEDIAN_SE = 1.2533  # standard error of a median of normals, in units of sigma / sqrt(n)


def median(values: Iterable[float]) -> float:
    """The middle value; raises ValueError on nothing."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("median of no values")
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def _middle(ordered: Sequence[float]) -> float:
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def mad(values: Sequence[float]) -> float:
    """Robust standard deviation: 1.4826 times the median absolute deviation."""
    if not values:
        raise ValueError("median of no values")
    ordered = sorted(values)
    middle = _middle(ordered)
    return _MAD * _middle(sorted([abs(v - middle) for v in ordered]))  # two runs, which sort fast


def theil_sen(x: Sequence[float], y: Sequence[float]) -> float:
    """Median of all pairwise slopes (units of y per unit of x); raises ValueError with fewer than two distinct x."""
    points = list(zip(x, y))
    return median([(b - y0) / (a - x0) for i, (x0, y0) in enumerate(points) for a, b in points[i + 1 :] if a != x0])


def slope_z(x: Sequence[float], y: Sequence[float], floor: float = 0.0) -> tuple[float, float]:
    """(Theil–Sen slope, slope in units of its standard error).

    The error is that of a least-squares slope with the residuals' robust deviation (at least `floor`, same unit as
    y), which Theil–Sen reaches to within five percent on normal noise.
    """
    slope = theil_sen(x, y)
    residual = mad([b - slope * a for a, b in zip(x, y)])
    centre = sum(x) / len(x)
    spread = math.sqrt(sum((a - centre) ** 2 for a in x))
    error = max(residual, floor) / spread
    if error == 0:
        return slope, math.copysign(math.inf, slope) if slope else 0.0
    return slope, slope / error


class Series:
    """The recent past of one signal, with its best level so far in both directions.

    `scale` is the unit the drawdown statistics work in: "log" for positive quantities that change by factors
    (entropy, gradient norm), "neglog" for mean log-probabilities (they approach 0 from below, so a change is a
    factor too), "linear" for shares and rewards.
    """

    def __init__(self, scale: str = "linear", judged: bool = False) -> None:
        self.scale = scale
        self.falls = Falls() if judged else None  # of signals whose loss is an alarm of its own
        self.steps: list[int] = []  # the last MEMORY of them, as the values
        self.values: list[float] = []
        self.count = 0
        self.first: float | None = None  # median of the first WINDOW observations
        self.lowest = math.inf  # of the median over REFERENCE observations, in scaled units
        self.highest = -math.inf
        self.peak_mean = -math.inf  # of the rolling mean, in the signal's own unit
        self.highest_step: int | None = None
        self._window: list[float] = []  # the last REFERENCE values, in order of size
        self._scaled: list[float] = []  # the last values in scaled units, as far as somebody asked
        self._scaled_count = 0  # observations that are in it or were
        self._cache: dict[str, Any] = {}  # of this observation's statistics; several rules ask for the same

    def push(self, step: int, value: float) -> None:
        """Add a finite observation."""
        values, window = self.values, self._window
        self._cache.clear()
        self.steps.append(step)
        values.append(value)
        if len(values) > MEMORY:
            del self.steps[0], values[0]
        bisect.insort(window, value)
        if len(window) > REFERENCE:
            del window[bisect.bisect_left(window, values[-REFERENCE - 1])]
        self.count += 1
        if self.falls is not None:
            self.falls.push(value)
        if self.count < WINDOW:
            return
        if self.count == WINDOW:
            self.first = median(values)
        if self.count >= MEAN_WINDOW:
            mean = sum(values[-MEAN_WINDOW:]) / MEAN_WINDOW
            if mean > self.peak_mean:
                self.peak_mean = mean
        if self.count >= REFERENCE // 2:
            reference = _middle(window) if self.scale == "linear" else self.scaled(_middle(window))
            if reference < self.lowest:
                self.lowest = reference
            if reference >= self.highest:
                self.highest, self.highest_step = reference, step

    def scaled(self, value: float) -> float:
        """`value` in the unit of the drawdown statistics."""
        if self.scale == "log":
            return math.log(max(value, 1e-4))
        if self.scale == "neglog":
            return -math.log(max(-value, 1e-4))
        return value

    def values_at_start(self) -> float:
        """The level the run started from: the median of the first observations, or of what there is."""
        return self.first if self.first is not None else median(self.last(WINDOW))

    def last(self, n: int) -> list[float]:
        """The last n observations, oldest first; fewer at the start."""
        return self.values[-n:]

    def last_scaled(self, n: int) -> list[float]:
        """The same in the unit of the drawdown statistics; each observation is worked out once."""
        missing = min(self.count - self._scaled_count, len(self.values))
        if missing:
            self._scaled += [self.scaled(v) for v in self.values[-missing:]]
            del self._scaled[:-MEMORY]
            self._scaled_count = self.count
        return self._scaled[-n:]

    def level(self, n: int = WINDOW) -> float:
        """Median of the last n observations."""
        return median(self.last(n))

    def mean(self, n: int = MEAN_WINDOW) -> float:
        """Mean of the last n observations."""
        values = self.last(n)
        return sum(values) / len(values)

    def noise(self, floor: float = 0.02) -> float:
        """Robust deviation of one observation in scaled units.

        From differences of neighbours and of observations three apart, whichever is larger: a trend is not taken for
        noise, and slow fluctuations are. `floor` keeps a signal that hardly moves from making every move look large.
        """
        if "noise" not in self._cache:
            x = self.last_scaled(NOISE_SPAN)
            differences = [[b - a for a, b in zip(x, x[lag:])] for lag in (1, 3) if len(x) > lag + 1]
            self._cache["noise"] = max((mad(d) / math.sqrt(2) for d in differences), default=0.0)
        return max(float(self._cache["noise"]), floor)

    def rise(self) -> float:
        """How far the rolling median is above the lowest reference level so far, in standard errors; can be negative.

        0 before there is a reference.
        """
        return self._standardised(self.scaled(self.level()) - self.lowest) if self.count else 0.0

    def drop(self) -> float:
        """How far the rolling median is below the highest reference level so far, in standard errors."""
        return self._standardised(self.highest - self.scaled(self.level())) if self.count else 0.0

    def earned(self) -> bool:
        """Whether the highest rolling mean was more than noise: what was never earned cannot be lost."""
        return self.peak_mean > 3 * self.noise() / MEAN_WINDOW**0.5

    def lost(self) -> float:
        """Share of the highest rolling mean that is gone (0 to 1, more for signals that turn negative)."""
        if self.count < MEAN_WINDOW or self.peak_mean <= 0:
            return 0.0
        return 1 - self.mean() / self.peak_mean

    def trend(self, n: int, floor: float = 0.02) -> tuple[float, float]:
        """(slope per step, slope in standard errors) over the last n observations, scaled units."""
        key = f"trend {n} {floor}"
        if key not in self._cache:
            self._cache[key] = slope_z(self.steps[-n:], self.last_scaled(n), floor)
        slope, z = self._cache[key]
        return slope, z

    def _standardised(self, difference: float) -> float:
        if self.count < REFERENCE // 2:
            return 0.0
        error = self.noise() * _MEDIAN_SE * math.sqrt(1 / WINDOW + 1 / min(self.count, REFERENCE))
        return difference / error

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        plain = {k: v for k, v in vars(self).items() if k != "falls" and not k.startswith("_")}
        if self.falls is not None:
            plain["falls"] = self.falls.state_dict()
        state = {k: v for k, v in plain.items() if not isinstance(v, float) or math.isfinite(v)}
        return {**state, "steps": list(self.steps), "values": list(self.values)}

    @classmethod
    def restore(cls, state: dict[str, Any]) -> Series:
        """The inverse of `state_dict`."""
        series = cls(state["scale"])
        vars(series).update({k: v for k, v in state.items() if k not in ("steps", "values", "falls")})
        series.falls = Falls.restore(state["falls"]) if "falls" in state else None
        series.steps.extend(state["steps"])
        series.values.extend(state["values"])
        series._window = sorted(series.last(REFERENCE))
        return series

"""Statistics of a few seeds: means with intervals, paired ratios, Holm's correction, power, log-log slopes.

Ratios are analyzed on a logarithmic scale, because FIDs, seconds and MiB differ by factors. Two configurations trained
with the same seed share initial weights, data order and noise, so ratios are paired by seed.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import integrate, optimize, special, stats

LEVEL = 0.05
"""Family-wise error rate: probability of at least one false positive in a family of tests."""
POWER = 0.8
ROUNDING = 1e-12
"""Largest difference between logarithms of ratios that are equal by construction."""


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Compute the mean of two or more values and the bounds of its 95 % interval (Student's t)."""
    mean = statistics.fmean(values)
    half = float(stats.t.ppf(1 - LEVEL / 2, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def t_test(values: Sequence[float], expected: float) -> float:
    """Compute the two-sided p-value of Student's test that the mean is `expected`; NaN for a single value."""
    return float(stats.ttest_1samp(values, expected).pvalue) if len(values) > 1 else math.nan


@dataclass(frozen=True)
class Ratio:
    """Geometric mean of first / second over `n` pairs, its 95 % interval, and Student's test against 1.

    Attributes:
        effect_size: mean over standard deviation of the logarithms (Cohen's d_z); infinite if they are all equal.
        p: two-sided p-value of the ratio being 1; NaN for a single pair.
    """

    n: int
    value: float
    low: float
    high: float
    effect_size: float
    p: float


def paired_ratio(first: Sequence[float], second: Sequence[float]) -> Ratio:
    """Compare two lists of measurements, paired by seed in the same order.

    Raises:
        ValueError: if there is no pair, or a measurement is not a positive number.
    """
    pairs = np.asarray([first, second], dtype=np.float64)
    if pairs.shape[1] == 0 or not (np.isfinite(pairs).all() and (pairs > 0).all()):
        raise ValueError(f"must be pairs of positive numbers, not {list(first)} and {list(second)}")
    logarithms = np.log(pairs[0]) - np.log(pairs[1])
    n, mean = len(logarithms), float(logarithms.mean())
    if n == 1:
        return Ratio(1, math.exp(mean), math.nan, math.nan, math.nan, math.nan)
    deviation = float(logarithms.std(ddof=1))
    if deviation < ROUNDING:
        p, effect = (1.0, 0.0) if abs(mean) < ROUNDING else (0.0, math.copysign(math.inf, mean))
        return Ratio(n, math.exp(mean), math.exp(mean), math.exp(mean), effect, p)
    half = float(stats.t.ppf(1 - LEVEL / 2, n - 1)) * deviation / math.sqrt(n)
    p = float(stats.ttest_1samp(logarithms, 0.0).pvalue)
    return Ratio(n, math.exp(mean), math.exp(mean - half), math.exp(mean + half), mean / deviation, p)


def holm(ps: Sequence[float]) -> list[float]:
    """Correct the p-values of a family of tests by Holm's method; NaN stays NaN and does not count as a test."""
    order = sorted((p, index) for index, p in enumerate(ps) if not math.isnan(p))
    corrected, highest = list(ps), 0.0
    for rank, (p, index) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - rank)))
        corrected[index] = highest
    return corrected


@functools.cache
def detectable_effect(n: int, level: float = LEVEL, power: float = POWER) -> float:
    """Find the smallest effect size that the paired t-test of n pairs detects with this power; infinite for n = 1."""
    if n < 2:
        return math.inf
    return float(optimize.brentq(lambda effect: power_of(effect, n, level) - power, 1e-6, 1e3))


def power_of(effect_size: float, n: int, level: float = LEVEL) -> float:
    """Compute the probability that the two-sided paired t-test of n pairs detects an effect of this size.

    Computed by quadrature over the sample deviation, because scipy's non-central t distribution returns NaN for few
    pairs at small levels (n = 3, level 0.05 / 15).
    """
    freedom, critical, shift = n - 1, stats.t.ppf(1 - level / 2, n - 1), effect_size * math.sqrt(n)

    def detected(deviation: float) -> float:
        """Compute the power conditional on the sample deviation (in units of the true deviation / √freedom)."""
        bound = critical * deviation / math.sqrt(freedom)
        return special.ndtr(shift - bound) + special.ndtr(-shift - bound)

    return float(integrate.quad(lambda x: stats.chi.pdf(x, freedom) * detected(x), 0, math.inf, epsabs=1e-12)[0])


def detectable_ratio(ratio: Ratio, level: float = LEVEL) -> float:
    """Compute the minimum detectable ratio above 1 (80 % power) for the observed scatter between seeds."""
    if ratio.n < 2:
        return math.inf
    deviation = math.log(ratio.high / ratio.value) * math.sqrt(ratio.n) / stats.t.ppf(1 - LEVEL / 2, ratio.n - 1)
    return math.exp(detectable_effect(ratio.n, level) * deviation)


def log_log_slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Fit the slope of log y against log x by least squares."""
    return float(stats.linregress(np.log(xs), np.log(ys)).slope)


def pareto_front(values: np.ndarray) -> np.ndarray:
    """Return a mask [N] bool of the rows of [N, goals] that no other row dominates.

    Lower is better; rows with NaN are never on the front.
    """
    complete = np.isfinite(values).all(axis=1)
    dominated = [((values <= row).all(axis=1) & (values < row).any(axis=1) & complete).any() for row in values]
    return complete & ~np.array(dominated, dtype=bool)

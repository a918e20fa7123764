"""Statistics of a few seeds: intervals of means and medians, paired ratios, Holm's correction, power, log-log slopes.

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
FEWEST_SEEDS = 3
"""Fewest seeds that are tested: the difference of two seeds is no estimate of the scatter to rest a verdict on."""
ROUNDING = 1e-12
"""Largest standard deviation of values that are equal but for float64's rounding."""


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Compute the mean of two or more values and the bounds of its 95 % interval (Student's t)."""
    mean = statistics.fmean(values)
    half = float(stats.t.ppf(1 - LEVEL / 2, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Find the two values whose interval covers the median with the probability `median_coverage`.

    They are order statistics, the k-th smallest and the k-th largest, with the largest k that covers at least 95 %.
    With fewer than six values even the smallest and the largest cover less, and are returned.
    """
    ordered, rank = sorted(values), _median_rank(len(values))
    return ordered[rank - 1], ordered[-rank]


def median_coverage(n: int) -> float:
    """Compute the probability that `median_interval` of n independent values covers the median of their distribution.

    The interval misses it if fewer than k values are on one side of it. Their number is binomial with probability 1/2
    for every continuous distribution, so this is exact: 98.4 % for n = 7.
    """
    return float(1 - 2 * stats.binom.cdf(_median_rank(n) - 1, n, 0.5))


def _median_rank(n: int) -> int:
    return max(1, int(stats.binom.ppf(LEVEL / 2, n, 0.5)))


def margin_test(values: Sequence[float], expected: float, margin: float) -> float:
    """Compute the p-value of calling the mean within the margin, or beyond it, by where the values' mean lies.

    This is the two-sided p-value of Student's test against the nearer end of expected ± margin; in other words, the
    smallest level at which the interval of the mean is wholly inside or wholly outside the margin. For a mean inside
    it is twice that of two one-sided tests (Schuirmann 1987, J. Pharmacokinet. Biopharm. 15). A wrong call needs an
    interval without the true mean, wherever that is, on the margin's end as well: its probability is at most p.

    NaN with fewer than three values, or if they are all equal.
    """
    if len(values) < FEWEST_SEEDS or np.std(values) < ROUNDING:
        return math.nan
    nearer = expected + math.copysign(margin, statistics.fmean(values) - expected)
    return float(stats.ttest_1samp(values, nearer).pvalue)


@dataclass(frozen=True)
class Ratio:
    """Geometric mean of first / second over `n` pairs, its 95 % interval, and Student's test against 1.

    Attributes:
        deviation: standard deviation of the logarithms; NaN for a single pair.
        effect_size: mean over standard deviation of the logarithms (Cohen's d_z); NaN without scatter.
        p: two-sided p-value of the ratio being 1; NaN with fewer than three pairs, and without scatter.
    """

    n: int
    value: float
    low: float
    high: float
    deviation: float
    effect_size: float
    p: float

    @property
    def is_constant(self) -> bool:
        """True if all of several pairs have the same ratio, so that nothing is known about its scatter."""
        return self.low == self.high


def paired_ratio(
    first: Sequence[float], second: Sequence[float], resolutions: tuple[float, float] = (0.0, 0.0)
) -> Ratio:
    """Compare two lists of measurements, paired by seed in the same order.

    Args:
        resolutions: spacing of the values that each measurement can have, 1 / N for a fraction of N images. Equal
            differences of such values do not mean that there is no scatter: the variance of rounding to a spacing,
            spacing² / 12 (Sheppard's correction), is added.

    Raises:
        ValueError: if there is no pair, or a measurement is not a positive number.
    """
    pairs = np.asarray([first, second], dtype=np.float64)
    if pairs.shape[1] == 0 or not (np.isfinite(pairs).all() and (pairs > 0).all()):
        raise ValueError(f"must be pairs of positive numbers, not {list(first)} and {list(second)}")
    logarithms = np.log(pairs[0]) - np.log(pairs[1])
    n, mean = len(logarithms), float(logarithms.mean())
    if n == 1:
        return Ratio(1, math.exp(mean), *[math.nan] * 5)
    rounding = float(np.mean((np.reshape(resolutions, (2, 1)) / pairs) ** 2, axis=1).sum()) / 12
    deviation = math.sqrt(float(logarithms.var(ddof=1)) + rounding)
    if deviation < ROUNDING:
        return Ratio(n, math.exp(mean), math.exp(mean), math.exp(mean), 0.0, math.nan, math.nan)
    error = deviation / math.sqrt(n)
    half = float(stats.t.ppf(1 - LEVEL / 2, n - 1)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, n - 1)) if n >= FEWEST_SEEDS else math.nan
    return Ratio(n, math.exp(mean), math.exp(mean - half), math.exp(mean + half), deviation, mean / deviation, p)


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
    # Detected for certain if the sample deviation is below one quantile and the mean above another; each of them fails
    # with half of the allowed probability.
    share = (1 + power) / 2
    largest = stats.t.isf(level / 2, n - 1) * stats.chi.ppf(share, n - 1) / math.sqrt(n - 1) + special.ndtri(share)
    return float(optimize.brentq(lambda effect: power_of(effect, n, level) - power, 0.0, largest / math.sqrt(n)))


def power_of(effect_size: float, n: int, level: float = LEVEL) -> float:
    """Compute the probability that the two-sided paired t-test of n pairs detects an effect of this size.

    Computed by quadrature over the standardized mean z, whose scale is 1 for every n and level: given z, the test
    detects the effect if the sample variance, chi-squared with n − 1 degrees of freedom, is small enough. scipy's
    non-central t distribution returns NaN for few pairs at small levels (n = 3, level 0.05 / 15).
    """
    freedom, critical, shift = n - 1, stats.t.isf(level / 2, n - 1), effect_size * math.sqrt(n)

    def density(z: float) -> float:
        """Compute the density of z times the probability of detection given z."""
        largest = freedom * ((shift + z) / critical) ** 2
        return math.exp(-z * z / 2) / math.sqrt(2 * math.pi) * special.chdtr(freedom, largest)

    # Detection sets in where |shift + z| = critical, sharply for large n. Beyond ± 9 lies a probability of 2e-19.
    steps = np.clip([critical - shift, -critical - shift], -9, 9)
    return float(integrate.quad(density, -9, 9, points=steps, limit=200, epsabs=1e-12)[0])


def detectable_ratio(ratio: Ratio, level: float = LEVEL) -> float:
    """Compute the minimum detectable ratio above 1 (80 % power) for the observed scatter; infinite without a test."""
    if math.isnan(ratio.p):
        return math.inf
    return math.exp(detectable_effect(ratio.n, level) * ratio.deviation)


def two_sided_level(critical: float, n: int) -> float:
    """Compute the level of the two-sided test of n pairs with this critical value of Student's statistic."""
    return 2 * float(stats.t.sf(critical, n - 1))


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

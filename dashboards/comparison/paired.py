"""Paired comparisons of positive measurements over the same seeds: how many times larger, how sure, and how small a
difference could have been found.

All on logarithms: FIDs, seconds and MiB differ by factors. Two configurations trained with the same seed share their
initial weights, the order of their data and their noise, so the logarithm of the quotient is taken seed by seed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import integrate, optimize, special, stats

LEVEL = 0.05
"""Probability of calling a difference where there is none, for all comparisons of a family together."""
POWER = 0.8
ROUNDING = 1e-12
"""What logarithms of quotients that are equal by construction may differ by."""


@dataclass(frozen=True)
class Quotient:
    """Of `n` pairs: the geometric mean of first / second, its 95 % interval, and Student's test of it being 1.

    Attributes:
        effect_size: mean over standard deviation of the logarithms (Cohen's d_z); infinite if they are all the same.
        p: two-sided probability of a quotient at least this far from 1 if it is 1; NaN for a single pair.
    """

    n: int
    value: float
    low: float
    high: float
    effect_size: float
    p: float


def quotient(first: Sequence[float], second: Sequence[float]) -> Quotient:
    """Compare measurements of equal seeds, in the same order.

    Raises:
        ValueError: if there is no pair, or a measurement is not a positive number.
    """
    pairs = np.asarray([first, second], dtype=np.float64)
    if pairs.shape[1] == 0 or not (np.isfinite(pairs).all() and (pairs > 0).all()):
        raise ValueError(f"must be pairs of positive numbers, not {list(first)} and {list(second)}")
    logarithms = np.log(pairs[0]) - np.log(pairs[1])
    n, mean = len(logarithms), float(logarithms.mean())
    if n == 1:
        return Quotient(1, math.exp(mean), math.nan, math.nan, math.nan, math.nan)
    deviation = float(logarithms.std(ddof=1))
    if deviation < ROUNDING:
        p, effect = (1.0, 0.0) if abs(mean) < ROUNDING else (0.0, math.copysign(math.inf, mean))
        return Quotient(n, math.exp(mean), math.exp(mean), math.exp(mean), effect, p)
    half = float(stats.t.ppf(1 - LEVEL / 2, n - 1)) * deviation / math.sqrt(n)
    p = float(stats.ttest_1samp(logarithms, 0.0).pvalue)
    return Quotient(n, math.exp(mean), math.exp(mean - half), math.exp(mean + half), mean / deviation, p)


def corrected(ps: Sequence[float]) -> list[float]:
    """Holm's correction: each p as if it were the only test of the family; NaN stays and does not count."""
    order = sorted((p, index) for index, p in enumerate(ps) if not math.isnan(p))
    found, highest = list(ps), 0.0
    for rank, (p, index) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - rank)))
        found[index] = highest
    return found


@functools.cache
def detectable(n: int, level: float = LEVEL, power: float = POWER) -> float:
    """The smallest effect size that the paired t-test of n pairs finds with this power; infinite for a single pair."""
    if n < 2:
        return math.inf
    return float(optimize.brentq(lambda effect: power_of(effect, n, level) - power, 1e-6, 1e3))


def power_of(effect_size: float, n: int, level: float = LEVEL) -> float:
    """Probability that the two-sided paired t-test of n pairs calls an effect of this size."""
    freedom, critical, shift = n - 1, stats.t.ppf(1 - level / 2, n - 1), effect_size * math.sqrt(n)

    def called(deviation: float) -> float:
        """Given the deviation that is found, as a multiple of the true one times the root of the degrees of freedom."""
        bound = critical * deviation / math.sqrt(freedom)
        return special.ndtr(shift - bound) + special.ndtr(-shift - bound)

    return float(integrate.quad(lambda x: stats.chi.pdf(x, freedom) * called(x), 0, math.inf, epsabs=1e-12)[0])

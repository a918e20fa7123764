"""Tests and intervals: against formulas written out, and their levels and power against shares over many draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, special

from soflow.statistics import (
    LEVEL,
    POWER,
    detectable_effect,
    detectable_ratio,
    holm,
    margin_test,
    median_coverage,
    median_interval,
    paired_ratio,
    power_of,
)

OURS, THEIRS = [0.31, 0.45, 0.38, 0.29, 0.52], [0.42, 0.55, 0.41, 0.40, 0.57]


def t_tail(t: float, freedom: int) -> float:
    """Probability of a larger value than t, by integrating Student's density."""
    scale = special.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * special.gamma(freedom / 2))
    return integrate.quad(lambda x: scale * (1 + x * x / freedom) ** (-(freedom + 1) / 2), t, math.inf)[0]


def test_the_quotient_and_its_test_are_the_formulas():
    found = paired_ratio(OURS, THEIRS)
    logarithms = [math.log(a / b) for a, b in zip(OURS, THEIRS, strict=True)]
    mean = sum(logarithms) / 5
    deviation = math.sqrt(sum((value - mean) ** 2 for value in logarithms) / 4)
    t = mean / (deviation / math.sqrt(5))
    assert found.value == pytest.approx(math.exp(mean), rel=1e-12)
    assert found.effect_size == pytest.approx(mean / deviation, rel=1e-12)
    assert found.p == pytest.approx(2 * t_tail(abs(t), 4), rel=1e-6)
    half = math.log(found.high / found.value)
    assert half == pytest.approx(math.log(found.value / found.low), rel=1e-9)
    assert t_tail(half / (deviation / math.sqrt(5)), 4) == pytest.approx(LEVEL / 2, rel=1e-6)
    turned = paired_ratio(THEIRS, OURS)
    assert (turned.value, turned.p) == (pytest.approx(1 / found.value), pytest.approx(found.p))


def test_edges():
    assert math.isnan(paired_ratio([2.0], [1.0]).p)
    assert paired_ratio([2.0], [1.0]).value == 2
    values = [0.1 * n for n in range(1, 8)]
    for factor in (0.0625, 1.0):
        scaled = paired_ratio([factor * value * 1.1 / 1.1 for value in values], values)  # equal but for rounding
        assert scaled.is_constant
        assert scaled.low == scaled.high == pytest.approx(factor, rel=1e-12)
        assert math.isnan(scaled.p)
        assert math.isnan(scaled.effect_size)
        assert detectable_ratio(scaled) == math.inf
    for wrong in ([], [0.0], [math.nan]):
        with pytest.raises(ValueError, match="positive numbers"):
            paired_ratio(wrong, [1.0] * len(wrong))


def test_holms_correction():
    # Sorted 0.01, 0.03, 0.04: times 3, 2 and 1, and never below the one before.
    assert holm([0.04, math.nan, 0.01, 0.03]) == [
        pytest.approx(0.06),
        pytest.approx(math.nan, nan_ok=True),
        pytest.approx(0.03),
        pytest.approx(0.06),
    ]
    assert holm([0.6, 0.7]) == [1.0, 1.0]


@pytest.mark.parametrize("n", [3, 5, 10])
def test_the_stated_power_is_what_is_found(n):
    effect, draws = detectable_effect(n), 1000
    assert power_of(effect, n) == pytest.approx(POWER, abs=1e-9)
    assert power_of(0.0, n) == pytest.approx(LEVEL, abs=1e-9)
    logarithms = np.random.default_rng(n).normal(effect, 1.0, (draws, n))
    called = sum(paired_ratio(np.exp(row), np.ones(n)).p < LEVEL for row in logarithms)
    # Five standard deviations of a binomial share.
    assert called / draws == pytest.approx(POWER, abs=5 * math.sqrt(POWER * (1 - POWER) / draws))


@pytest.mark.parametrize("n", [2, 3, 7, 50, 1000, 5000])
@pytest.mark.parametrize("tests", [1, 90, 1000])
def test_the_detectable_effect_is_found_for_few_and_for_many_seeds(n, tests):
    """The power is integrated here over the sample deviation s, on an even grid in log s, by the trapezoidal rule.

    f s² is chi-squared with f = n − 1 degrees of freedom, and given s the test detects with probability
    Φ(shift − c s) + Φ(−shift − c s). Below s = e^−25 the density holds less than e^−25 = 1e−11; the step of Φ has a
    width of 1 / shift ≥ 6e−5 in log s, close to the grid's spacing of 7.5e−5, which costs less than 1e−6 of power.
    """
    level = LEVEL / tests
    freedom, shift = n - 1, detectable_effect(n, level) * math.sqrt(n)
    critical = special.stdtrit(freedom, 1 - level / 2)
    log_s = np.linspace(-25, 5, 400_001)
    s = np.exp(log_s)
    log_density = math.log(2) + freedom / 2 * math.log(freedom / 2) - special.gammaln(freedom / 2) + freedom * log_s
    detected = special.ndtr(shift - critical * s) + special.ndtr(-shift - critical * s)
    assert np.trapezoid(np.exp(log_density - freedom / 2 * s**2) * detected, log_s) == pytest.approx(POWER, abs=1e-6)


def test_two_seeds_are_not_tested():
    found = paired_ratio([1.0, 1.1], [2.0, 2.1])
    assert found.value == pytest.approx(math.sqrt(1.1 / 4.2), rel=1e-12)
    assert found.low < found.value < found.high
    assert math.isnan(found.p)
    assert math.isnan(margin_test([0.5, 0.51], 0.5, 0.1))


@pytest.mark.parametrize("n", [3, 4, 5, 8])
@pytest.mark.parametrize("errors", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("tests", [1, 15])
def test_equal_differences_of_counted_images_are_no_certainty(n, errors, tests):
    """Fractions of 2,000 images with a few errors each, Poisson, the same distribution on both sides.

    A test at level a is right if at most binomial(2000, a) draws are called; the bound is four standard deviations
    above its mean. Without the rounding's variance, 1.8 % are called at level 0.33 % (3 seeds, 0.5 errors).
    """
    draws, level, images = 2000, LEVEL / tests, 2000
    counts = np.random.default_rng(n).poisson(errors, (draws, 2, n))
    fractions = 1 - counts / images
    called = sum(paired_ratio(*pair, resolutions=(1 / images, 1 / images)).p < level for pair in fractions)
    assert called <= level * draws + 4 * math.sqrt(level * (1 - level) * draws)


def test_resolution_adds_the_variance_of_rounding():
    first, second = [0.998, 0.9985, 0.999, 0.9985], [0.9985, 0.999, 0.9995, 0.9985]
    found = paired_ratio(first, second, resolutions=(0.0005, 0.001))
    logarithms = np.log(first) - np.log(second)
    added = [(0.0005 / a) ** 2 / 12 + (0.001 / b) ** 2 / 12 for a, b in zip(first, second, strict=True)]
    deviation = math.sqrt(logarithms.var(ddof=1) + sum(added) / 4)
    assert found.effect_size == pytest.approx(logarithms.mean() / deviation, rel=1e-9)
    assert found.p == pytest.approx(2 * t_tail(abs(logarithms.mean()) / deviation * 2, 3), rel=1e-6)


@pytest.mark.parametrize(("n", "stated"), [(3, 0.13), (5, 0.19), (8, 0.15), (20, 0.07)])
def test_the_stated_harm_of_one_bad_run_in_five_is_what_is_found(n, stated):
    """The figures of docs/comparison.md: geometric means are equal, runs scatter by 30 %, and one in five of the first
    case is ten times worse. Five standard deviations of a binomial share, and half a percent of rounding."""
    random, draws = np.random.default_rng(n), 4000
    first, second = random.normal(0, math.log(1.3), (2, draws, n))
    first += math.log(10) * ((random.random((draws, n)) < 0.2) - 0.2)
    called = sum(paired_ratio(*pair).p < LEVEL for pair in zip(np.exp(first), np.exp(second), strict=True))
    assert called / draws == pytest.approx(stated, abs=0.005 + 5 * math.sqrt(stated * (1 - stated) / draws))


@pytest.mark.parametrize("values", [[0.47, 0.52, 0.49, 0.50], [0.72, 0.69, 0.75], [0.2, 0.35, 0.31, 0.28, 0.3]])
def test_the_margin_test_is_that_of_the_nearer_end_and_of_the_interval(values):
    n, mean, deviation = len(values), np.mean(values), np.std(values, ddof=1)
    error = deviation / math.sqrt(n)
    above, below = t_tail((mean - 0.4) / error, n - 1), t_tail((0.6 - mean) / error, n - 1)  # two one-sided tests
    inside, outside = max(above, below), min(1 - above, 1 - below)
    p = margin_test(values, 0.5, 0.1)
    assert p == pytest.approx(2 * min(inside, outside), rel=1e-6)
    half = error * special.stdtrit(n - 1, 1 - p / 2)
    ends = [abs(mean + sign * half - end) for sign in (-1, 1) for end in (0.4, 0.6)]
    assert min(ends) == pytest.approx(0, abs=1e-9)  # at level p the interval just touches the margin


@pytest.mark.parametrize("n", [1, 2, 5, 6, 7, 9, 20])
def test_the_interval_of_a_median_covers_what_is_stated(n):
    """Against all 2^n ways in which values lie below or above the median, which are equally likely: the interval
    covers it unless fewer values than its rank are on one side."""
    low, high = median_interval(list(range(n, 0, -1)))
    below = np.array([bin(way).count("1") for way in range(2**n)])
    share = float(np.mean((below >= low) & (below < high)))  # the median is above `below` of the values 1, 2, … n
    assert median_coverage(n) == pytest.approx(share, abs=1e-12)
    assert low + high == n + 1
    assert share >= 1 - LEVEL or (low, high) == (1, n)
    narrower = float(np.mean((below >= low + 1) & (below < high - 1)))
    assert narrower < 1 - LEVEL  # the narrowest that covers 95 %

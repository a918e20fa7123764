"""Paired comparisons: against formulas written out, and the stated power against what is found over many draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, special

from soflow.statistics import LEVEL, POWER, detectable_effect, holm, paired_ratio, power_of

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
    assert (paired_ratio([1.0, 1.0], [1.0, 1.0]).p, paired_ratio([2.0, 4.0], [1.0, 2.0]).p) == (1.0, 0.0)
    values = [0.1 * n for n in range(1, 8)]
    scaled = paired_ratio([0.0625 * value * 1.1 / 1.1 for value in values], values)  # equal but for rounding
    assert (scaled.p, scaled.effect_size, scaled.low) == (0.0, -math.inf, scaled.high)
    assert paired_ratio([value * 1.1 / 1.1 for value in values], values).p == 1.0
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

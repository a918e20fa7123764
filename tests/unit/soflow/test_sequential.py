"""Tests at several looks: error rates are spent as planned, exactly for few seeds, and agree with published values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special, stats

from soflow.sequential import SequentialTest, spent

LOOKS = (5, 8, 12, 16)
PATHS = 200_000


def statistics(looks: tuple[int, ...], paths: int = PATHS) -> np.ndarray:
    """Student's statistics [paths, looks] of standard normal values."""
    values = np.random.default_rng(0).standard_normal((paths, looks[-1]))
    return np.stack([stats.ttest_1samp(values[:, :n], 0, axis=1).statistic for n in looks], axis=1)


@pytest.mark.parametrize("level", [0.05, 0.005])
@pytest.mark.parametrize("spending", ["pocock", "obrien_fleming"])
@pytest.mark.parametrize("sides", [1, 2])
def test_at_every_look_as_much_is_spent_as_planned(sides, spending, level):
    critical = SequentialTest(LOOKS, LOOKS[-1], spending, sides).critical(level)
    values = statistics(LOOKS) if sides == 1 else np.abs(statistics(LOOKS))
    for look, n in enumerate(LOOKS):
        planned = sides * spent(level / sides, n / LOOKS[-1], spending)
        rejected = (values[:, : look + 1] > critical[: look + 1]).any(axis=1).mean()
        # Five standard errors of a binomial share, and 1 % for the grid.
        assert abs(rejected - planned) < 5 * math.sqrt(planned / PATHS) + 0.01 * planned, (look, rejected, planned)


@pytest.mark.parametrize(
    ("spending", "published"),
    [("pocock", (2.438, 2.427, 2.410, 2.397, 2.386)), ("obrien_fleming", (4.877, 3.357, 2.680, 2.290, 2.031))],
)
def test_many_seeds_have_the_published_boundaries(spending, published):
    """Critical values of five equal looks at level 0.05 for normal values (Lan and DeMets' functions).

    With 120 seeds the looks differ from the limit of infinitely many by the scatter of the standard deviation: the
    correlation of two statistics by the order of 1 / n, boundaries by about as much in relative terms.
    """
    looks = (24, 48, 72, 96, 120)
    critical = SequentialTest(looks, looks[-1], spending, cell=0.1).critical(0.05)
    normal = [-special.ndtri(special.stdtr(n - 1, -t)) for t, n in zip(critical, looks, strict=True)]
    assert normal == pytest.approx(published, rel=0.01)


def test_one_look_is_students_test():
    test = SequentialTest((7,), 7)
    assert test.critical(0.03) == pytest.approx([stats.t.isf(0.015, 6)], rel=1e-9)
    assert test.p_at(0, 2.5) == pytest.approx(2 * stats.t.sf(2.5, 6), rel=1e-4)
    assert SequentialTest((7,), 7, sides=1).p_at(0, -0.5) == pytest.approx(stats.t.sf(-0.5, 6), rel=1e-3)


@pytest.mark.parametrize("spending", ["pocock", "obrien_fleming"])
@pytest.mark.parametrize("sides", [1, 2])
def test_p_is_the_level_that_just_rejects(sides, spending):
    test = SequentialTest(LOOKS, LOOKS[-1], spending, sides)
    for level in (0.0007, 0.0123, 0.2):
        ps = [test.p_at(look, value) for look, value in enumerate(test.critical(level))]
        assert ps == pytest.approx([level] * len(LOOKS), rel=2e-3)


def test_critical_values_fall_with_the_level_and_two_sides_need_more():
    levels = np.geomspace(1e-6, 0.5, 40)
    two, one = (
        np.array([SequentialTest(LOOKS, LOOKS[-1], sides=sides).critical(level) for level in levels])
        for sides in (2, 1)
    )
    assert (np.diff(two, axis=0) < 0).all()
    assert (np.diff(one, axis=0) < 0).all()
    assert (two > one).all()


def test_seeds_that_are_missing_leave_error_unspent():
    """Looks with fewer seeds than planned spend less than the whole error rate, never more."""
    critical = SequentialTest((4, 7, 11, 14), 16).critical(0.05)
    values = np.abs(statistics((4, 7, 11, 14)))
    assert (values > critical).any(axis=1).mean() < 0.05


@pytest.mark.parametrize(("seeds", "most"), [((), 5), ((2, 5), 5), ((5, 5), 8), ((8, 5), 8), ((5, 9), 8)])
def test_looks_that_make_no_sense_are_refused(seeds, most):
    with pytest.raises(ValueError, match=r"^seeds = \["):
        SequentialTest(seeds, most)

"""Calls at several looks: wrong ones are as rare as promised, wherever the true mean lies."""

from __future__ import annotations

import math

import numpy as np
import pytest
from verdicts import calls

from dashboards.claims.looks import Look, Question, answer

LOOKS, MARGIN, NUMBER, LEVEL = (5, 10, 16, 24), math.log(1.25), 20_000, 0.05


def ever_wrong(question: Question, true: float, scatter: float, wrong: set[int]) -> float:
    """Share of simulated claims that a wrong call was made about at any look."""
    values = true + scatter * np.random.default_rng(3).standard_normal((NUMBER, LOOKS[-1]))
    ps, found = calls(question, LOOKS, values)
    lowest, call, ever = np.full(NUMBER, np.inf), np.zeros(NUMBER), np.zeros(NUMBER, dtype=bool)
    for look in range(len(LOOKS)):
        lower = ps[:, look] < lowest
        lowest, call = np.where(lower, ps[:, look], lowest), np.where(lower, found[:, look], call)
        ever |= (lowest <= LEVEL) & np.isin(call, list(wrong))
    return float(ever.mean())


BOUND = LEVEL + 5 * math.sqrt(LEVEL / NUMBER) + 0.01 * LEVEL
"""Five standard errors of a binomial share, and 1 % for the grid of critical values."""


@pytest.mark.parametrize("spending", ["pocock", "obrien_fleming"])
@pytest.mark.parametrize("scatter", [0.03, 0.2, 1.0])
@pytest.mark.parametrize(("true", "wrong"), [(0, {-1, 1}), (0.5, {-1}), (1, {-1, 0}), (1.5, {-1, 0}), (-1, {0, 1})])
def test_wrong_calls_about_ratios_are_rare(true, wrong, scatter, spending):
    assert ever_wrong(Question(MARGIN, LOOKS[-1], spending=spending), true * MARGIN, scatter, wrong) <= BOUND


@pytest.mark.parametrize("scatter", [0.03, 0.2, 1.0])
@pytest.mark.parametrize(("true", "wrong"), [(0, {-1, 1}), (0.9, {-1, 1}), (1, {-1, 1}), (1.2, {-1, 0})])
def test_wrong_calls_about_exponents_are_rare(true, wrong, scatter):
    """Here "below" and "above" mean beyond the margin, whose ends count as inside."""
    assert ever_wrong(Question(0.1, LOOKS[-1], null=0.1), true * 0.1, scatter, wrong) <= BOUND


def test_an_answer_is_the_call_with_the_lowest_p_of_all_looks():
    values = 0.1 + 0.2 * np.random.default_rng(5).standard_normal((40, LOOKS[-1]))
    question = Question(MARGIN, LOOKS[-1])
    ps, found = calls(question, LOOKS, values)
    names = {-1: "below", 0: "inside", 1: "above"}
    for row, p, call in zip(values, ps, found, strict=True):
        looks = [Look(n, row[:n].mean(), row[:n].std(ddof=1)) for n in LOOKS]
        one = answer(question, looks)
        assert one.p == pytest.approx(p.min(), rel=1e-9)
        assert one.call == names[call[p.argmin()]]
        assert one.low < looks[-1].mean < one.high


def test_repeated_intervals_contain_the_mean_at_all_looks_together():
    values = 0.3 + np.random.default_rng(7).standard_normal((4000, LOOKS[-1]))
    missed = 0
    for row in values:
        looks = [Look(n, row[:n].mean(), row[:n].std(ddof=1)) for n in LOOKS]
        answers = [answer(Question(MARGIN, LOOKS[-1]), looks[: last + 1]) for last in range(len(LOOKS))]
        missed += any(not one.low < 0.3 < one.high for one in answers)
    assert missed / len(values) <= 0.05 + 5 * math.sqrt(0.05 / len(values)) + 0.0005


def test_without_scatter_or_looks_there_is_no_answer():
    assert answer(Question(MARGIN, 24), []) is None
    assert answer(Question(MARGIN, 24), [Look(5, 0.1, 0.0)]) is None

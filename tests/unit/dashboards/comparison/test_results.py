"""The promise of a page: at most 5 % of pages contain a wrong call, verdicts and exponents together."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from dashboards.comparison.exponents import MARGIN, PREDICTED, RELATIONS, Exponent
from dashboards.comparison.results import CONFIRMED, REFUTED, UNDECIDED, with_holm
from dashboards.comparison.verdicts import judge
from orchestration.sweep.hypotheses import Measured, read_hypothesis
from soflow.statistics import LEVEL

SEEDS = 5


def exponent(slopes: np.ndarray) -> Exponent:
    by_seed = dict(enumerate(slopes.tolist()))
    return Exponent(RELATIONS[0], "case", pd.DataFrame(), by_seed, float(slopes.mean()), math.nan, math.nan, 10.0)


def is_wrong(outcome: str, true: float) -> bool:
    """On the margin's end both calls are wrong."""
    distance = abs(true - PREDICTED) - MARGIN
    return (outcome == CONFIRMED and distance > -1e-9) or (outcome == REFUTED and distance < 1e-9)


def most(pages: int) -> float:
    """Bound the number of wrong pages: binomial(pages, 5 %), four standard deviations above its mean."""
    return pages * LEVEL + 4 * math.sqrt(pages * LEVEL * (1 - LEVEL))


@pytest.mark.slow
@pytest.mark.parametrize("rows", [5, 15])
@pytest.mark.parametrize("true", [0.6, 0.55, 0.5, 0.4])
def test_pages_of_exponents_keep_their_promise(rows, true):
    """Slopes scatter by 0.03, so that true = 0.6 is often estimated well inside the margin, and share half of their
    variance between rows, as those of the same trials do."""
    random, pages, wrong, called = np.random.default_rng(rows), 300, 0, 0
    for _ in range(pages):
        slopes = true + 0.03 * math.sqrt(0.5) * (random.normal(size=(rows, SEEDS)) + random.normal(size=SEEDS))
        outcomes = [result.outcome for result in with_holm([exponent(row) for row in slopes])]
        wrong += any(is_wrong(outcome, true) for outcome in outcomes)
        called += outcomes.count(CONFIRMED)
    assert wrong <= most(pages)
    if true == PREDICTED and rows == 5:
        assert called > pages * rows / 2  # the promise is not kept by calling nothing


@pytest.mark.slow
def test_right_calls_do_not_make_wrong_ones_likelier():
    """Holm's correction gets milder with every call. Half of the rows are far outside the margin and called rightly;
    the others are on its end, where a call is wrong."""
    random, pages, wrong = np.random.default_rng(0), 400, 0
    true = [2.0, PREDICTED + MARGIN] * 4
    for _ in range(pages):
        slopes = np.reshape(true, (8, 1)) + 0.03 * random.normal(size=(8, SEEDS))
        outcomes = [result.outcome for result in with_holm([exponent(row) for row in slopes])]
        assert outcomes[::2] == [REFUTED] * 4
        wrong += any(map(is_wrong, outcomes, true))
    assert 0 < wrong <= most(pages)


def test_verdicts_and_exponents_are_one_family():
    """Two equal cases and two exponents on the margin's end; the last hypothesis is refuted rightly."""
    random, pages, wrong = np.random.default_rng(1), 300, 0
    hypotheses = [read_hypothesis("fid(a) < fid(b)"), read_hypothesis("fid(c) < fid(b)")]
    for _ in range(pages):
        fids = np.exp(random.normal(0, 0.2, (3, SEEDS))) * [[1], [1], [9]]
        values = {Measured("fid", name): dict(enumerate(row.tolist())) for name, row in zip("abc", fids, strict=True)}
        slopes = np.array([[0.6], [0.4]]) + 0.03 * random.normal(size=(2, SEEDS))
        first, second, *exponents = with_holm([*judge(hypotheses, values), *map(exponent, slopes)])
        assert second.outcome == REFUTED
        wrong += first.outcome != UNDECIDED or any(result.outcome != UNDECIDED for result in exponents)
    assert 0 < wrong <= most(pages)

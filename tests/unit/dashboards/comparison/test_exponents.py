"""Exponents: fitted slopes, calls by a test against the margin, and what they say."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from sweep_store import SweepStore

from dashboards.comparison.cases import Case
from dashboards.comparison.exponents import RELATIONS, Exponent, answer, fit
from dashboards.comparison.results import CONFIRMED, REFUTED, UNDECIDED, with_holm
from dashboards.reading.sweep_data import SweepData, read_sweep
from soflow.statistics import LEVEL, margin_test

RELATION = RELATIONS[0]


def exponent(slopes: list[float]) -> Exponent:
    mean = sum(slopes) / len(slopes)
    by_seed = dict(enumerate(slopes))
    return Exponent(RELATION, "case", pd.DataFrame(), by_seed, mean, math.nan, math.nan, 10.0)


@pytest.mark.parametrize(
    ("slopes", "outcome", "conclusion"),
    [
        ([0.49, 0.51, 0.5, 0.505], CONFIRMED, "as √δ"),
        ([0.55, 0.56, 0.55, 0.555], CONFIRMED, "as √δ"),  # 1/2 is far outside the interval, but k is in the margin
        ([0.72, 0.70, 0.71, 0.73], REFUTED, "decreases faster than √δ"),
        ([0.2, 0.21, 0.19, 0.2], REFUTED, "decreases more slowly than √δ"),
        ([-0.2, -0.21, -0.19, -0.2], REFUTED, "decreases more slowly than √δ, if at all"),
        ([0.3, 0.6, 0.5, 0.7], UNDECIDED, "not decided"),
        ([0.7, 0.6, 0.65, 0.62], UNDECIDED, "not decided"),  # 1/2 is outside the interval, the margin's end is not
        ([0.5], UNDECIDED, "not decided: a single seed"),
        ([0.5, 0.501], UNDECIDED, "not decided: two seeds"),
        ([0.5, 0.5, 0.5], UNDECIDED, "not decided: all seeds give the same exponent"),
    ],
)
def test_a_call_needs_a_test_against_the_margin(slopes, outcome, conclusion):
    (result,) = with_holm([exponent(slopes)])
    assert (result.outcome, result.conclusion) == (outcome, conclusion)
    assert result.p == pytest.approx(margin_test(slopes, 0.5, 0.1), nan_ok=True)


def test_a_correction_can_take_a_call_back():
    alone = exponent([0.5, 0.53, 0.51])
    others = [exponent([0.3, 0.6, 0.5, 0.7])] * 14
    assert with_holm([alone])[0].outcome == CONFIRMED
    assert with_holm([alone, *others])[0].outcome == UNDECIDED
    assert with_holm([alone])[0].p < LEVEL < with_holm([alone, *others])[0].p


def measured(store: SweepStore) -> SweepData:
    """Read a sweep of two seeds, with losses and errors in which error = loss^k with k = 0.7 and 0.9, except for the
    first report of each."""
    data = read_sweep(store.uri, store.sweep("made", [("finished", [1.0, 0.5])] * 2))
    steps = [100, 200, 300, 400, 500]
    losses = np.array([9.0, 1.0, 0.5, 0.1, 0.05])
    for metric, power in ((RELATION.predictor, (1.0, 1.0)), (RELATION.error, (0.7, 0.9))):
        rows = [
            {"trial": trial, "step": step, "value": value}
            for trial in range(2)
            for step, value in zip(steps, [7.0, *losses[1:] ** power[trial]], strict=True)
        ]
        data.histories[metric] = pd.DataFrame(rows)
    for metric in {name for relation in RELATIONS for name in (relation.predictor, relation.error)}:
        data.histories.setdefault(metric, pd.DataFrame(columns=["trial", "step", "value"]))
    return data


def test_exponents_are_the_slopes_of_all_reports_but_the_first(tmp_path):
    data = measured(SweepStore(tmp_path))
    cases = [Case("case", {0: 0, 1: 1}, [], {})]
    (found,) = fit(data, cases)
    assert found.relation == RELATION
    assert list(found.by_seed.values()) == pytest.approx([0.7, 0.9], rel=1e-12)
    assert found.span == pytest.approx(20.0)
    assert len(found.points) == 8
    assert answer([found]) == [
        "Distance to the true solution ~ training loss, exponent (predicted 0.5): case 0.8, not decided: two seeds."
    ]

"""Measured points: their files, the best by network evaluations, gains on other seeds, and metrics that disagree."""

from __future__ import annotations

import math

import pytest

from orchestration.checkpoint_sweep.agreement import agreements
from orchestration.checkpoint_sweep.config import Point
from orchestration.checkpoint_sweep.results import (
    POINTS_FOLDER,
    Result,
    at_seed,
    best_by_evaluations,
    describe,
    gains,
    key_of,
    load_results,
    save_result,
    searched,
    table,
    to_confirm,
)
from orchestration.checkpoint_sweep.space import Space

DEFAULT, LONG, GUIDED = Point(nfe=1), Point(nfe=1, ema="0.2"), Point(nfe=1, guidance=2.0)
SPACE = Space((DEFAULT,), ("trained", "0.2"), (1.0, 2.0), ((0.0, 1.0),), ("renoise",), (1,), (), (1.0,), seed=0)


def result(number: int, point: Point, fid: float, evaluations: float = 1.0, **metrics: float) -> Result:
    return Result(number, point, {"fid": fid, "evaluations": evaluations} | metrics, {"num_samples": 16})


RESULTS = [result(0, DEFAULT, 4.0), result(1, LONG, 3.0), result(2, GUIDED, 2.0, evaluations=2.0)]


def test_results_are_read_as_they_were_written(tmp_path):
    point = Point(nfe=4, sampler="compose", times=(0.8, 0.5, 0.2), guidance=1.5, guidance_interval=(0.1, 0.9), seed=3)
    written = [*RESULTS, result(3, point, 1.0, 5.0)]
    for one in reversed(written):
        save_result(one, tmp_path)
    assert load_results(tmp_path) == written
    (tmp_path / POINTS_FOLDER / f"{key_of(DEFAULT)}.json").write_text("{")  # damaged: it is measured again
    assert load_results(tmp_path) == written[1:]
    rows = table(written)
    assert list(rows["times"]) == ["", "", "", "0.8,0.5,0.2"]
    assert list(rows["fid"]) == [4.0, 3.0, 2.0, 1.0]


def test_the_best_is_chosen_for_each_number_of_evaluations():
    best = best_by_evaluations([*RESULTS, result(3, Point(temperature=0.9), math.nan)], "fid")
    assert {evaluations: found.point for evaluations, found in best.items()} == {1.0: LONG, 2.0: GUIDED}
    higher = [result(0, DEFAULT, 4.0, recall=0.5), result(1, LONG, 3.0, recall=0.4)]
    assert best_by_evaluations(higher, "recall")[1.0].point == DEFAULT


def test_gains_are_paired_on_seeds_on_which_nothing_was_chosen():
    """The ratio of the means of the logarithms of 2, 3 and 4 against 4, 6 and 8: exactly ½, with no scatter."""
    others = [
        result(10 * seed + i, at_seed(point, seed), fid)
        for seed, best, default in ((1, 2.0, 4.0), (2, 3.0, 6.0), (3, 4.0, 8.0))
        for i, (point, fid) in enumerate(((LONG, best), (DEFAULT, default)))
    ]
    everything = [*RESULTS, *others]
    assert searched(everything, SPACE) == RESULTS
    assert to_confirm(RESULTS, SPACE, "fid") == {1.0: (LONG, DEFAULT), 2.0: (GUIDED, None)}
    (gain,) = gains(everything, SPACE, "fid", range(1, 4))  # the guided point was not measured on them
    assert (gain.best, gain.default, gain.values, gain.default_values) == (LONG, DEFAULT, (2, 3, 4), (4, 6, 8))
    assert gain.ratio.value == pytest.approx(0.5, rel=1e-12)
    assert gains(everything, SPACE, "fid", range(1, 5)) == []  # seed 4 is missing
    assert gains(everything, SPACE, "fid", ()) == []


def test_without_a_better_point_there_is_no_ratio():
    alone = [result(0, DEFAULT, 1.0), *(result(seed, at_seed(DEFAULT, seed), 1.0) for seed in (1, 2))]
    (gain,) = gains(alone, SPACE, "fid", (1, 2))
    assert gain.ratio is None


def test_metrics_that_disagree_are_found():
    """τ by hand: FID orders 4 points 1 2 3 4; precision (higher is better) 2 1 3 4, one pair of six reversed."""
    points = [Point(temperature=1 + i / 10) for i in range(4)]
    figures = [(1.0, 0.8, 0.1), (2.0, 0.9, 0.2), (3.0, 0.7, 0.3), (4.0, 0.6, 0.4)]
    results = [
        result(i, point, fid, precision=precision, recall=recall, kid=5.0)
        for i, (point, (fid, precision, recall)) in enumerate(zip(points, figures, strict=True))
    ]
    found = {one.metric: one for one in agreements(results, "fid")}
    assert set(found) == {"fid", "precision", "recall"}  # KID has no scatter
    assert found["fid"].tau == 1
    assert found["precision"].tau == pytest.approx(4 / 6)
    assert (found["precision"].best.point, found["precision"].rank_of_chosen) == (points[1], 2)
    assert found["recall"].tau == -1
    assert (found["recall"].best.point, found["recall"].rank_of_chosen) == (points[3], 4)
    assert agreements(results[:2], "fid") == []


@pytest.mark.parametrize(
    ("point", "text"),
    [
        (DEFAULT, "1 step, trained EMA"),
        (Point(nfe=2, sampler="renoise", times=(0.3,), ema="0.1"), "2 steps, renoise, times 0.3, EMA 0.1"),
        (Point(guidance=1.5, temperature=0.9), "1 step, trained EMA, guidance 1.5, temperature 0.9"),
        (Point(guidance=1.5, guidance_interval=(0.2, 0.8)), "1 step, trained EMA, guidance 1.5 in [0.2, 0.8]"),
    ],
)
def test_points_are_described_in_words(point, text):
    assert describe(point) == text


def test_two_seeds_decide_nothing():
    others = [
        result(10 * seed + i, at_seed(point, seed), fid * seed)
        for seed in (1, 2, 3)
        for i, (point, fid) in enumerate(((LONG, 1.0 + 0.001 * seed), (DEFAULT, 2.0)))
    ]
    two, three = (gains([*RESULTS, *others], SPACE, "fid", seeds)[0] for seeds in ((1, 2), (1, 2, 3)))
    assert three.ratio.high < 1
    assert (two.decided, three.decided) == (False, True)

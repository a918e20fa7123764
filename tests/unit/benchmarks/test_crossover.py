"""The benchmark of Taylor error against rounding: what it reads off its curves, and its documented conclusions."""

from __future__ import annotations

import math

import crossover
import pytest
import torch
from helpers import golden_dit, random_batch, slope

UNITS = crossover.ROUNDING_UNITS


def test_the_smallest_error_lies_where_rounding_takes_over():
    slope_of_taylor = 3.0
    taylor = {ratio: slope_of_taylor * ratio for ratio in crossover.RATIOS}
    total = {name: {ratio: taylor[ratio] + unit / ratio for ratio in taylor} for name, unit in UNITS.items()}
    found = crossover.Errors(taylor, total, slope_of_taylor, {ratio: 0.4 * ratio for ratio in taylor})
    for name, unit in UNITS.items():
        assert found.predicted(name) == pytest.approx(math.sqrt(unit / slope_of_taylor))
        # The sum is symmetric in log r, so the nearest value of the grid is the best.
        assert abs(math.log10(found.best(name) / found.predicted(name))) <= 1 / 8 + 1e-9
    # The smaller root of 3 r + u / r = 0.1 for TensorFloat-32; for bfloat16 there is none, for float32 beyond the grid.
    low = (0.1 - math.sqrt(0.01 - 12 * UNITS["tf32"])) / 6
    assert low <= found.smallest_usable("tf32") < low * 10**0.25
    assert found.smallest_usable("fp32") == min(crossover.RATIOS)
    assert math.isnan(found.smallest_usable("bf16"))
    lines = crossover.table([found, found])
    assert [line.split("|")[1].strip() for line in lines[2:]] == list(UNITS)
    assert "none" in lines[-1]


def test_the_taylor_error_falls_as_r_and_float32_follows_it_down(tmp_path):
    data, labels = random_batch((32, 4, 8, 8), dtype=torch.float32)
    case = crossover.Case(golden_dit(torch.float32), "euler", data, labels, seed=0)
    found = crossover.errors(case)
    ratios = [ratio for ratio in crossover.RATIOS if 0.009 < ratio < 0.11]
    # Its second order is r times a constant: over a decade below 0.1 the power stays near 1.
    assert slope(ratios, [found.taylor[ratio] for ratio in ratios]) == pytest.approx(1, abs=0.15)
    assert found.total["fp32"][0.1] == pytest.approx(found.taylor[0.1], rel=1e-2)
    assert found.total["bf16"][min(crossover.RATIOS)] > 0.3  # most of the gradient is noise
    best = [found.best(name) for name in UNITS]
    assert best == sorted(best)  # fewer bits, larger gaps
    assert found.mean_gap[min(crossover.RATIOS)] == pytest.approx(1e-4, rel=1e-2)  # no closer
    crossover.chart([found], tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 10_000

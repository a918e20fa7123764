"""Ratios of a cost study: intervals are order statistics, and the table states how often they cover the median."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from orchestration.cost_study.charts import SETTINGS, short_table
from orchestration.cost_study.run import ratio
from soflow.statistics import median_coverage


def test_the_interval_of_seven_rounds_is_their_range():
    times, reference = [3.0, 2.0, 4.0, 6.0, 5.0, 2.2, 3.3], [1.0, 2.0, 2.0, 1.5, 1.0, 2.0, 3.0]
    found = ratio("time/x", times, reference)
    ratios = sorted(np.divide(times, reference))
    assert found == {"time/x": ratios[3], "time/x_low": ratios[0], "time/x_high": ratios[-1]}
    assert ratio("time/x", reference, reference) == {"time/x": 1.0}


def test_the_interval_covers_the_median_as_often_as_the_table_states():
    """The ratio of independent log-normal times with equal medians has the median 1. Of 2,000 studies, binomial; the
    bound is four standard deviations."""
    random, studies = np.random.default_rng(0), 2000
    found = [ratio("x", *np.exp(random.normal(0, 0.1, (2, 7))).tolist()) for _ in range(studies)]
    covered = sum(each["x_low"] <= 1 <= each["x_high"] for each in found) / studies
    stated = median_coverage(7)
    assert covered == pytest.approx(stated, abs=4 * (stated * (1 - stated) / studies) ** 0.5)
    row = dict.fromkeys(SETTINGS, False) | {
        "compiled": False,
        "network": "DiT",
        "batch": 8,
        "precision": "fp32",
        "variant": "soflow",
    }
    row |= {"rounds": 7, "time/step_ms": 9.0, "memory/peak_mib": 9.0, "memory/to_flow_matching": 1.0}
    shown = io.StringIO()
    Console(file=shown, width=200).print(short_table(pd.DataFrame([row])))
    assert f"({100 * stated:.0f} %)" in shown.getvalue()

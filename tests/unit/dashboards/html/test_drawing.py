"""Axes of figures: logarithmic for values that span orders of magnitude, also at the limits of floats."""

import math
import sys

import plotly.graph_objects as go
import pytest

from dashboards.html.drawing import scale_axis


@pytest.mark.parametrize("values", [[1.0, 2.0], [0.0, 100.0], [-1.0, 100.0], [math.nan], []])
def test_narrow_or_nonpositive_values_have_a_linear_axis(values):
    assert scale_axis(go.Figure(), "y", values).layout.yaxis.type is None


@pytest.mark.parametrize("values", [[1.0, 31.0, math.inf], [1e-3, 1e3], [5e-324, 1.0], [2.0, sys.float_info.max]])
def test_wide_values_have_a_logarithmic_axis_with_few_ticks(values):
    axis = scale_axis(go.Figure(), "y", values).layout.yaxis
    assert axis.type == "log"
    assert all(map(math.isfinite, axis.tickvals))
    assert 2 <= len(axis.tickvals) <= 40

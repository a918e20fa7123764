"""Labels and numbers as tables show them."""

from __future__ import annotations

import math

import pytest

from dashboards.labels import with_interval


@pytest.mark.parametrize(
    ("numbers", "digits", "text"),
    [
        ((1392.4, 1385.2, 1399.6), 3, "1390 [1390, 1400]"),
        ((360_123.0, 358_900.0, 361_000.0), 4, "360100 [358900, 361000]"),
        ((0.98765, 0.9, 1.1), 3, "0.988 [0.9, 1.1]"),
        ((0.000012345, math.nan, math.nan), 3, "1.23e-05"),
        ((2.5, -math.inf, math.inf), 3, "2.5 [-inf, inf]"),
    ],
)
def test_large_numbers_have_no_exponent(numbers, digits, text):
    assert with_interval(*numbers, digits=digits) == text

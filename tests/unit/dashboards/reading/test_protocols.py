"""Protocols: metrics that are comparable only under one."""

from __future__ import annotations

import pytest

from dashboards.reading.protocols import is_quality


@pytest.mark.parametrize(
    ("metric", "depends"),
    [
        ("fid", True),
        ("fid_4nfe", True),
        ("kid", True),
        ("class_consistency", True),
        ("precision", True),
        ("recall_2nfe", True),
        ("inception_score", True),
        ("diagnostics/fid_by_nfe/compose_4", True),
        ("diagnostics/inference_guidance/w2_2nfe", True),
        ("diagnostics/ode_violation/mean", False),
        ("loss/consistency", False),
        ("time/step_ms", False),
        ("throughput/peak_share", False),
    ],
)
def test_measures_of_images_depend_on_the_protocol(metric, depends):
    assert is_quality(metric) is depends

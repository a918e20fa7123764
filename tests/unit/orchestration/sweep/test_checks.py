"""Metrics and samplers that a sweep is refused with, because no trial could report or use them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import REPOSITORY

from orchestration.sweep.checks import check_study
from orchestration.sweep.config import SweepConfig
from orchestration.sweep.search_space import build
from soflow.config_base import ConfigError


def check(values: dict[str, Any], folder: Path) -> None:
    config = SweepConfig.model_validate(values)
    check_study(config, folder, False, build(config))


def test_cmmd_is_a_goal_with_the_network_that_measures_it(tmp_path):
    values = {"goals": ("cmmd", "cmmd_2nfe"), "evaluation": {"feature_network": "clip"}}
    check(values, tmp_path)


@pytest.mark.parametrize(
    "values",
    [
        {"goals": ("fid", "fid_4nfe"), "evaluation": {"nfe": (1, 4)}},
        {"goals": ("diagnostics/contrast/rms",), "evaluation": {"diagnostics": ("my_lab:contrast",)}},
        {
            "cases": ("a", "b"),
            "case_seeds": 2,
            "early_stopping": {"kind": "none"},
            "evaluation": {"precision_recall": True},
            "hypotheses": ("recall(a) < recall(b)", "throughput/images_per_s(a) < throughput/images_per_s(b)"),
        },
    ],
)
def test_what_trials_report_is_accepted(tmp_path, monkeypatch, values):
    monkeypatch.syspath_prepend(str(REPOSITORY / "docs" / "examples"))
    check(values, tmp_path)


FAULTS = {
    "sampler = cmaes: supports one goal, not fid, kid; choose one of": {"sampler": "cmaes", "goals": ("fid", "kid")},
    "sampler = cmaes: does not support constraints; choose one of": {"sampler": "cmaes", "constraints": ("kid<=1",)},
    "goals = cmmd: cmmd is not a metric": {"goals": ("cmmd",)},  # needs the feature network clip
    "goals = fdi: fdi is not a metric": {"goals": ("fdi",)},
    "goals = kid_error: kid_error is not a metric": {"goals": ("kid_2nfe", "kid_error")},
    r"goals = fid_4nfe: fid_4nfe is not reported with evaluation.nfe = \(1, 2\); reported: fid, fid_2nfe$": {
        "goals": ("fid", "fid_4nfe")
    },
    r"constraints = kid_50nfe<=1: kid_50nfe is not reported with evaluation.nfe = \(50, 1\)": {
        "constraints": ("kid_50nfe<=1",),
        "objective": {"name": "flow_matching"},
    },
    r"hypotheses = fid_2nfe\(a\) < fid_2nfe\(b\): fid_2nfe is not reported with evaluation.nfe = \(4,\)": {
        "cases": ("a", "b:evaluation.nfe=[4]"),
        "case_seeds": 2,
        "early_stopping": {"kind": "none"},
        "hypotheses": ("fid_2nfe(a) < fid_2nfe(b)",),
    },
    "constraints = class_consistency<=1: class_consistency is better if it is higher": {
        "constraints": ("class_consistency<=1",)
    },
    "hypotheses = class.*: class_consistency is not reported with dataset.conditional = False": {
        "cases": ("a", "b:dataset.conditional=false"),
        "case_seeds": 2,
        "early_stopping": {"kind": "none"},
        "hypotheses": ("class_consistency(a) < class_consistency(b)",),
    },
    "goals = kid: kid is not reported with evaluation.reference = .*, a file of statistics": {
        "goals": ("kid",),
        "evaluation": {"reference": "a.npz"},
    },
    "goals = recall: recall is better if it is higher": {"goals": ("recall",)},
    "goals = throughput/images_per_s: throughput/images_per_s is better if it is higher": {
        "goals": ("throughput/images_per_s",)
    },
    "goals = class_consistency_floor: class_consistency_floor is not a metric": {"goals": ("class_consistency_floor",)},
    "hypotheses = recall.*: recall is not reported with evaluation.reference = .*a.npz, a file of statistics": {
        "cases": ("a", "b"),
        "case_seeds": 2,
        "early_stopping": {"kind": "none"},
        "evaluation": {"precision_recall": True, "reference": "a.npz"},
        "hypotheses": ("recall(a) < recall(b)",),
    },
    "constraints = mib<=1: mib is not a metric": {"constraints": ("mib<=1",)},
    "sampler = cmaes: requires a searched range": {
        "sampler": "cmaes",
        "search": ("objective.gap_schedule=linear,cosine",),
    },
}


@pytest.mark.parametrize("message", FAULTS)
def test_what_cannot_be_searched_is_refused(tmp_path, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        check(FAULTS[message], tmp_path)

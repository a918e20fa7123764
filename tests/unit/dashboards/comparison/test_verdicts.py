"""Hypotheses: syntax, verdicts by paired t-tests, family-wise error rate."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats

from dashboards.comparison.results import CONFIRMED, REFUTED, UNDECIDED, with_holm
from dashboards.comparison.verdicts import judge, logged_hypotheses, summary
from orchestration.sweep import search_space
from orchestration.sweep.checks import check_study
from orchestration.sweep.config import SweepConfig
from orchestration.sweep.hypotheses import Measured, read_hypothesis
from soflow.config_base import ConfigError
from soflow.statistics import LEVEL, detectable_effect

A, B = Measured("fid", "a"), Measured("fid", "b")
BETTER, WORSE = [0.31, 0.45, 0.38, 0.29, 0.52], [0.42, 0.55, 0.50, 0.40, 0.66]


def by_seed(values: list[float]) -> dict[int, float]:
    return dict(enumerate(values))


def test_hypotheses_are_parsed():
    hypothesis = read_hypothesis(" fid(λ 0.75, w 3) < 0.9 * time/step_ms(r 1e-4) ")
    assert (hypothesis.left, hypothesis.right) == (Measured("fid", "λ 0.75, w 3"), Measured("time/step_ms", "r 1e-4"))
    assert hypothesis.factor == 0.9
    assert read_hypothesis("fid(a)<fid(b)").factor == 1
    bound = read_hypothesis("diagnostics/fid_by_nfe/compose_2(a) < 6.5e1")
    assert (bound.left.metric, bound.right, bound.factor) == ("diagnostics/fid_by_nfe/compose_2", None, 65)


@pytest.mark.parametrize(
    "text",
    ["", "fid < fid(b)", "fid(a) > fid(b)", "fid(a) < ", "fid(a) < x * fid(b)", "fid(a) < 0 * fid(b)", "fid() < 1"],
)
def test_invalid_hypotheses_are_rejected(text):
    with pytest.raises(ValueError, match="must"):
        read_hypothesis(text)
    assert logged_hypotheses(str([text])) == []


def check(config: SweepConfig, folder: Path) -> None:
    check_study(config, folder / "none", resuming=False, space=search_space.build(config))


def test_hypotheses_must_be_about_the_sweeps_cases_and_metrics(tmp_path):
    values = {"cases": ("a", "b"), "early_stopping": {"kind": "none"}}
    with pytest.raises(ValidationError, match=r"hypotheses = fid\(a\) < fid\(c\): c "):
        SweepConfig.model_validate(values | {"hypotheses": ("fid(a) < fid(c)",)})
    config = SweepConfig.model_validate(values | {"hypotheses": ("fidd(a) < fid(b)",)})
    with pytest.raises(ConfigError, match=r"hypotheses = fidd\(a\) < fid\(b\): fidd is not a metric"):
        check(config, tmp_path)
    measured = {"evaluation": {"diagnostics": ["flow_distance"]}}
    config = SweepConfig.model_validate(values | measured | {"hypotheses": ("diagnostics/flow_distance/rms(a) < 1",)})
    check(config, tmp_path)
    values["cases"] = ("a", "b:evaluation.diagnostics=[target_variance]")
    for case, known in (("a", False), ("b", True)):
        hypothesis = f"diagnostics/target_variance/v_t({case}) < 1"
        config = SweepConfig.model_validate(values | {"hypotheses": (hypothesis,)})
        if known:
            check(config, tmp_path)
            continue
        with pytest.raises(ConfigError, match=r"diagnostics/target_variance/v_t is not a metric"):
            check(config, tmp_path)


def test_verdicts_are_paired_t_tests_of_the_logarithms():
    values = {A: by_seed(BETTER), B: by_seed(WORSE)}
    texts = ("fid(a) < fid(b)", "fid(b) < fid(a)", "fid(a) < 0.7 * fid(b)", "fid(a) < 0.2", "fid(a) < 0.39")
    verdicts = judge(map(read_hypothesis, texts), values)
    left = np.log([BETTER, WORSE, BETTER, BETTER, BETTER])
    right = np.log([WORSE, BETTER, 0.7 * np.array(WORSE), [0.2] * 5, [0.39] * 5])
    ps = [stats.ttest_rel(ours, theirs).pvalue for ours, theirs in zip(left, right, strict=True)]
    ranks = np.argsort(np.argsort(ps, kind="stable"), kind="stable")
    holm = [max(min(1, p * (5 - rank)) for p, rank in zip(ps, ranks, strict=True) if rank <= last) for last in ranks]
    assert [verdict.p for verdict in verdicts] == pytest.approx(holm, rel=1e-9)
    assert [verdict.outcome for verdict in verdicts] == [CONFIRMED, REFUTED, REFUTED, REFUTED, UNDECIDED]
    for verdict, difference in zip(verdicts, left - right, strict=True):
        assert verdict.ratio.value == pytest.approx(math.exp(difference.mean()), rel=1e-12)
        scatter = difference.std(ddof=1)
        assert verdict.detectable_ratio == pytest.approx(math.exp(detectable_effect(5, LEVEL / 5) * scatter), rel=1e-6)
    assert summary(verdicts).startswith("Of 5 hypotheses stated before the run: 1 confirmed, 3 refuted, 1 not decided")


def test_pairs_share_their_seed_and_without_pairs_there_is_no_test():
    values = {A: {0: 1.0, 1: 1.1, 2: 0.9, 7: 5.0}, B: {1: 2.1, 0: 2.0, 2: 1.9, 9: 0.1}}
    (verdict,) = judge([read_hypothesis("fid(a) < fid(b)")], values)
    assert verdict.ratio.n == 3
    assert verdict.ratio.value == pytest.approx((1.0 * 1.1 * 0.9 / (2.1 * 2.0 * 1.9)) ** (1 / 3), rel=1e-12)
    for values, reason in (
        ({A: {0: 1.0}}, "no seed has both values"),
        ({A: {0: 1.0}, B: {1: 1.0}}, "no seed has both values"),
        ({A: {0: 1.0}, B: {0: 9.0}}, "a single seed"),
        ({A: {0: 1.0, 1: 1.1}, B: {0: 9.0, 1: 9.8}}, "two seeds"),
        ({A: {0: 1.0, 1: 2.0, 2: 3.0}, B: {0: 9.0, 1: 18.0, 2: 27.0}}, "all seeds give the same ratio"),
        ({A: {0: 1.0, 1: 0.0}, B: {0: 9.0, 1: 9.0}}, "a value is not positive"),
    ):
        (verdict,) = judge([read_hypothesis("fid(a) < fid(b)")], values)
        assert (verdict.outcome, verdict.reason) == (UNDECIDED, reason)
        assert reason in verdict.row()[1]


@pytest.mark.parametrize(("factor", "outcome"), [(0.9, CONFIRMED), (1.0, REFUTED), (1.1, REFUTED)])
def test_memory_that_is_the_same_in_every_seed_is_a_fact(factor, outcome):
    """Bytes are counted, so equal ratios need no test, and equal memory refutes "less"."""
    hypothesis = read_hypothesis("memory/peak_mib(a) < memory/peak_mib(b)")
    right = {0: 12.34, 1: 12.4, 2: 12.4}
    left = {seed: factor * mib for seed, mib in right.items()}
    fact, chance = judge(
        [hypothesis, read_hypothesis("fid(a) < fid(b)")],
        {Measured("memory/peak_mib", "a"): left, Measured("memory/peak_mib", "b"): right, A: left, B: right},
    )
    assert fact.outcome == outcome
    assert fact.row()[1] == f"{outcome}: all seeds give the same ratio"
    assert chance.outcome == UNDECIDED
    assert math.isnan(fact.p)  # and does not count as a test
    few = {Measured("memory/peak_mib", "a"): {0: 1.0, 1: 1.0}, Measured("memory/peak_mib", "b"): {0: 2.0, 1: 2.0}}
    assert judge([hypothesis], few)[0].outcome == UNDECIDED


def test_fractions_of_images_have_a_resolution():
    """One image of 2,000 apart in each of three seeds: s² = 0 + 2 q² / 12 for the spacing q, so t = √3 √6 = 4.24 and
    p = 0.051 with 2 degrees of freedom, up to the logarithm's curvature."""
    left, right = Measured("class_consistency", "a"), Measured("class_consistency", "b")
    values = {left: dict.fromkeys(range(3), 0.9990), right: dict.fromkeys(range(3), 0.9995)}
    hypothesis = read_hypothesis("class_consistency(a) < class_consistency(b)")
    (verdict,) = judge([hypothesis], values, resolutions={"class_consistency": 1 / 2000})
    assert verdict.outcome == UNDECIDED
    assert verdict.p == pytest.approx(2 * stats.t.sf(math.sqrt(18), 2), rel=1e-2)


def test_the_family_wise_error_rate_is_at_most_its_level():
    """Of 400 families of four true equalities, at most binomial(400, 0.05) have a false positive: mean 20, standard
    deviation 4.4, so 38 is four deviations above the mean."""
    random = np.random.default_rng(0)
    cases = [Measured("fid", name) for name in "abcde"]
    hypotheses = [read_hypothesis(f"fid(a) < fid({other})") for other in "bcde"]
    false_positives = 0
    for _ in range(400):
        seeds = random.normal(0, 0.5, 5)
        values = {case: by_seed(np.exp(seeds + random.normal(0, 0.2, 5)).tolist()) for case in cases}
        false_positives += any(verdict.outcome != UNDECIDED for verdict in judge(hypotheses, values))
    assert 0 < false_positives <= 38


def test_verdicts_of_several_sweeps_are_corrected_for_all():
    values = {A: by_seed(BETTER), B: by_seed(WORSE)}
    apart = [judge([read_hypothesis("fid(a) < fid(b)")], values)[0] for _ in range(3)]
    joined = with_holm(apart)
    assert [verdict.p for verdict in joined] == pytest.approx([3 * apart[0].p] * 3, rel=1e-12)
    assert [verdict.p for verdict in with_holm(joined)] == [verdict.p for verdict in joined]
    assert joined[0].detectable_ratio > apart[0].detectable_ratio

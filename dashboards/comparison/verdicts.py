"""Verdicts on a comparison's hypotheses, by paired t-tests.

The test of left < right is Student's, on the logarithm of left / right of each seed; a plain number on the right is a
constant. The test is two-sided, so that "confirmed" and "refuted" together are wrong with a probability of at most its
level. Holm's correction keeps the family-wise error rate of all hypotheses of a comparison below 5 %.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from dashboards.comparison.results import CONFIRMED, OUTCOMES, REFUTED, UNDECIDED, untested, with_holm
from dashboards.labels import p_value, percent, with_interval
from dashboards.reading.mlflow_runs import listed
from orchestration.sweep.hypotheses import Hypothesis, Measured, read_hypothesis
from soflow.statistics import FEWEST_SEEDS, LEVEL, ROUNDING, Ratio, detectable_ratio, paired_ratio

Values = dict[Measured, dict[int, float]]
"""Measurements by seed."""
EXACT = "memory/"
"""Prefix of metrics without measurement error: bytes are counted."""


@dataclass(frozen=True)
class Verdict:
    """Result of testing left < right.

    Attributes:
        ratio: left / right; None if no seed has both.
        p: p-value of the ratio being 1, corrected for all hypotheses; NaN without a test.
        detectable_ratio: smallest ratio above 1 that the test detects with 80 % power, given the scatter of the seeds.
        reason: why there was no test; else empty.
        pairs: left and factor · right by seed.
        resolutions: spacing of the values that left and factor · right can have.
    """

    hypothesis: Hypothesis
    ratio: Ratio | None
    p: float = math.nan
    detectable_ratio: float = math.inf
    reason: str = ""
    pairs: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    resolutions: tuple[float, float] = (0.0, 0.0)

    @property
    def uncorrected_p(self) -> float:
        return self.ratio.p if self.ratio else math.nan

    @property
    def outcome(self) -> str:
        if self.ratio is None or not (self.p < LEVEL or self._is_fact):
            return UNDECIDED
        return CONFIRMED if math.log(self.ratio.value) < -ROUNDING else REFUTED

    @property
    def _is_fact(self) -> bool:
        """True for memory with the same ratio in every seed: it needs no test, and equal sides refute left < right."""
        return (
            is_exact(self.hypothesis)
            and self.ratio is not None
            and self.ratio.n >= FEWEST_SEEDS
            and self.ratio.is_constant
        )

    def with_corrected_p(self, p: float, num_tests: int) -> Verdict:
        level = LEVEL / max(1, num_tests)
        return replace(self, p=p, detectable_ratio=detectable_ratio(self.ratio, level) if self.ratio else math.inf)

    def figures(self) -> dict[str, float]:
        if self.ratio is None:
            return {}
        return {"ratio": self.ratio.value, "p": self.p, "seeds": self.ratio.n}

    def row(self) -> list[str]:
        outcome = f"{self.outcome}: {self.reason}" if self.reason else self.outcome
        cells = [self.hypothesis.text, outcome]
        if self.ratio is None:
            return [*cells, "–", "–", "–", "0", "–"]
        cells.append(times(self.ratio))
        if math.isnan(self.p):
            return [*cells, "–", "–", str(self.ratio.n), "–"]
        effect, detectable = f"{self.ratio.effect_size:.2g}", f"× {self.detectable_ratio:.3g}"
        return [*cells, p_value(self.p), effect, str(self.ratio.n), detectable]


def is_exact(hypothesis: Hypothesis) -> bool:
    """Check whether a hypothesis is about counted bytes alone."""
    return all(term.metric.startswith(EXACT) for term in hypothesis.terms)


def times(ratio: Ratio) -> str:
    """Format a ratio with its interval."""
    return f"× {with_interval(ratio.value, ratio.low, ratio.high)}"


def logged_hypotheses(text: str) -> list[Hypothesis]:
    """Parse the hypotheses from a sweep's parameter in MLflow; none if it cannot be parsed."""
    try:
        return [read_hypothesis(hypothesis) for hypothesis in listed(text)]
    except ValueError:
        return []


def judge(
    hypotheses: Iterable[Hypothesis],
    values: Values,
    excluded: Collection[Hypothesis] = (),
    resolutions: Mapping[str, float] | None = None,
) -> list[Verdict]:
    """Test all hypotheses of a comparison together.

    Args:
        excluded: hypotheses about FIDs of different protocols, which are not tested.
        resolutions: spacing of the possible values, by metric; 0 for metrics that are not named.
    """
    resolutions = resolutions or {}
    return with_holm([_test(hypothesis, values, hypothesis in excluded, resolutions) for hypothesis in hypotheses])


def _test(hypothesis: Hypothesis, values: Values, excluded: bool, resolutions: Mapping[str, float]) -> Verdict:
    if excluded:
        return Verdict(hypothesis, None, reason="FIDs were measured by different protocols")
    left = values.get(hypothesis.left, {})
    right = values.get(hypothesis.right, {}) if hypothesis.right else dict.fromkeys(left, 1.0)
    pairs = {seed: (left[seed], hypothesis.factor * right[seed]) for seed in sorted(set(left) & set(right))}
    if not pairs:
        return Verdict(hypothesis, None, reason="no seed has both values")
    if any(value <= 0 for pair in pairs.values() for value in pair):
        return Verdict(hypothesis, None, reason="a value is not positive")
    of_left = resolutions.get(hypothesis.left.metric, 0.0)
    of_right = hypothesis.factor * resolutions.get(hypothesis.right.metric, 0.0) if hypothesis.right else 0.0
    ratio = paired_ratio(*zip(*pairs.values(), strict=True), resolutions=(of_left, of_right))
    reason = untested(ratio.n, "ratio") if math.isnan(ratio.p) else ""
    return Verdict(hypothesis, ratio, ratio.p, reason=reason, pairs=pairs, resolutions=(of_left, of_right))


def count_outcomes(outcomes: Iterable[str]) -> dict[str, int]:
    """Count how many tests ended with each outcome."""
    outcomes = list(outcomes)
    return {outcome: outcomes.count(outcome) for outcome in OUTCOMES}


def summary(verdicts: list[Verdict]) -> str:
    """Word the number of verdicts by outcome."""
    counts = count_outcomes(verdict.outcome for verdict in verdicts)
    listed = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
    number = "1 hypothesis" if len(verdicts) == 1 else f"{len(verdicts)} hypotheses"
    seeds = sorted({verdict.ratio.n for verdict in verdicts if verdict.ratio})
    with_seeds = f", with {'–'.join(map(str, seeds[:: max(1, len(seeds) - 1)]))} seeds" if seeds else ""
    return f"Of {number} stated before the run: {listed}{with_seeds} (family-wise error rate {percent(LEVEL)})."

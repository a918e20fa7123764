"""Exponents k of error ~ δ^k, fitted over a comparison's reports.

SoFlow bounds the distance between the learned and the true map by O(√δ) (arXiv 2512.15657), so k is tested against 1/2.
The k of a trial is the slope of log error over log δ by least squares over its reports except the first, whose loss is
a mean that starts from random weights. Reports of one trial are correlated, so a slope's standard error is meaningless;
seeds are independent, and the interval is Student's over their exponents.

k counts as 1/2 within a margin. It is confirmed only if a test shows that it is inside, refuted only if a test shows
that it is outside, with p corrected together with all other tests of the page (`results.with_holm`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from dashboards.comparison.cases import Case
from dashboards.comparison.results import CONFIRMED, REFUTED, UNDECIDED, untested
from dashboards.labels import p_value, shorten, with_interval
from dashboards.reading.sweep_data import SweepData
from orchestration.tracking import schema
from soflow.statistics import LEVEL, log_log_slope, margin_test, mean_interval

PREDICTED, MARGIN = 0.5, 0.1
"""Exponent of the bound, and the largest deviation that counts as equal."""
FEWEST = 3
"""Fewest reports, besides the first, that a slope is fitted to."""


@dataclass(frozen=True)
class Relation:
    """An error and the metric that may predict it."""

    name: str
    error: str
    predictor: str
    power: int = 1
    """Power of the predictor: 2 turns a root mean square into a loss."""


RELATIONS = (
    Relation("distance to the true solution ~ training loss", schema.TRUE_DISTANCE, schema.CONSISTENCY_LOSS),
    Relation("distance to the own flow ~ training loss", schema.FLOW_DISTANCE, schema.CONSISTENCY_LOSS),
    Relation("ODE violation ~ training loss", schema.ODE_VIOLATION, schema.CONSISTENCY_LOSS),
    Relation("distance to the true solution ~ (true ODE violation)²", schema.TRUE_DISTANCE, schema.TRUE_VIOLATION, 2),
    Relation("distance to the own flow ~ (ODE violation)²", schema.FLOW_DISTANCE, schema.ODE_VIOLATION, 2),
)
AS_PREDICTED = "as √δ"


@dataclass(frozen=True)
class Exponent:
    """The fit of a relation in one case.

    Attributes:
        points: fitted reports of all seeds: trial, step, x (δ) and y (the error).
        by_seed: k of each seed.
        low, high: bounds of the 95 % interval of the mean; NaN for a single seed.
        span: largest over smallest δ of a trial, geometric mean over seeds.
        p: p-value of the call that the mean suggests, k inside or outside the margin (`margin_test`), corrected for all
            tests of the page; NaN without a test.
    """

    relation: Relation
    case: str
    points: pd.DataFrame
    by_seed: dict[int, float]
    mean: float
    low: float
    high: float
    span: float
    p: float = math.nan

    @property
    def interval(self) -> str:
        return with_interval(self.mean, self.low, self.high)

    @property
    def outcome(self) -> str:
        """Outcome of the hypothesis that k is 1/2 within the margin."""
        if self.conclusion.startswith(UNDECIDED):
            return UNDECIDED
        return CONFIRMED if self.conclusion == AS_PREDICTED else REFUTED

    @property
    def conclusion(self) -> str:
        """How the error scales with δ."""
        if math.isnan(self.p):
            return f"{UNDECIDED}: {untested(len(self.by_seed), 'exponent')}"
        if self.p >= LEVEL:
            return UNDECIDED
        if abs(self.mean - PREDICTED) < MARGIN:
            return AS_PREDICTED
        if self.mean > PREDICTED:
            return "decreases faster than √δ"
        return "decreases more slowly than √δ" + (", if at all" if self.mean < 0 else "")

    @property
    def uncorrected_p(self) -> float:
        return margin_test(list(self.by_seed.values()), PREDICTED, MARGIN)

    def with_corrected_p(self, p: float, num_tests: int) -> Exponent:
        return replace(self, p=p)

    def figures(self) -> dict[str, float]:
        return {"exponent": self.mean, "p": self.p, "seeds": len(self.by_seed)}

    def row(self) -> list[str]:
        verdict = self.conclusion if self.outcome == UNDECIDED else f"{self.outcome}: {self.conclusion}"
        test = f"k = {PREDICTED:g}: {self.relation.name} ({self.case})"
        return [test, verdict, f"k = {self.interval}", p_value(self.p), "–", str(len(self.by_seed)), "–"]


def fit(data: SweepData, cases: Sequence[Case]) -> list[Exponent]:
    """Fit all relations in all cases whose trials reported both metrics often enough; p is not corrected yet."""
    exponents = []
    for relation in RELATIONS:
        points = _points(data, relation)
        fits = [_exponent(relation, case, points) for case in cases]
        exponents += [exponent for exponent in fits if exponent]
    return exponents


def _points(data: SweepData, relation: Relation) -> pd.DataFrame:
    """Select columns trial, step, x, y of every report except each trial's first, where both are positive."""
    xs = data.histories[relation.predictor].rename(columns={"value": "x"})
    ys = data.histories[relation.error].rename(columns={"value": "y"})
    points = xs.merge(ys, on=["trial", "step"]).astype({"x": float, "y": float}).sort_values(["trial", "step"])
    points = points[points.groupby("trial").cumcount() > 0]
    points["x"] **= relation.power
    positive = np.isfinite(points[["x", "y"]]).all(axis=1) & (points[["x", "y"]] > 0).all(axis=1)
    return points[positive]


def _exponent(relation: Relation, case: Case, points: pd.DataFrame) -> Exponent | None:
    by_seed, log_spans = {}, []
    for seed, trial in sorted(case.trials.items()):
        reports = points[points["trial"] == trial]
        if len(reports) >= FEWEST and reports["x"].nunique() > 1:
            by_seed[seed] = log_log_slope(reports["x"], reports["y"])
            log_spans.append(math.log(reports["x"].max() / reports["x"].min()))
    if not by_seed:
        return None
    points = points[points["trial"].isin([case.trials[seed] for seed in by_seed])]
    slopes, span = list(by_seed.values()), math.exp(sum(log_spans) / len(log_spans))
    mean, low, high = mean_interval(slopes) if len(slopes) > 1 else (slopes[0], math.nan, math.nan)
    return Exponent(relation, case.name, points, by_seed, mean, low, high, span)


def answer(exponents: Sequence[Exponent]) -> list[str]:
    """Word the exponents, a sentence per relation."""
    sentences = []
    for relation in RELATIONS:
        fits = [fit for fit in exponents if fit.relation == relation]
        if fits:
            listed = "; ".join(f"{shorten(fit.case)} {fit.mean:.3g}, {fit.conclusion}" for fit in fits)
            name = relation.name[0].upper() + relation.name[1:]
            sentences.append(f"{name}, exponent (predicted {PREDICTED:g}): {listed}.")
    return sentences

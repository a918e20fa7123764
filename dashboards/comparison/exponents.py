"""With which power do errors follow the training loss? Exponents k of error ~ δ^k, fitted over a comparison's reports.

SoFlow bounds the distance of the learned map from the true one by O(√δ) (arXiv 2512.15657, open question 3 here), so k
is held against 1/2. One k per trial is the slope of log error over log δ by least squares over its reports but the
first, whose loss is a mean that begins with random weights. Reports of one trial depend on each other, so a slope's own
standard error means nothing; seeds do not, and the interval is Student's over their exponents.
"""

from __future__ import annotations

import html
import math
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats

from dashboards.comparison.compare import Comparison
from dashboards.comparison.verdicts import CONFIRMED, REFUTED, UNDECIDED
from dashboards.html.drawing import COLORS, GREY, Panel, log_ticks
from dashboards.reading.sweep_data import SweepRecord
from dashboards.sweep.findings import shortened
from soflow.statistics import LEVEL, holm, mean_interval

PREDICTED, MARGIN = 0.5, 0.1
"""The bound's exponent, and how far from it another one still counts as the same."""
FEWEST = 3
"""Reports, beside the first, that a slope takes."""


@dataclass(frozen=True)
class Relation:
    """An error against what may predict it."""

    name: str
    error: str
    predictor: str
    power: int = 1
    """The predictor counts to this power: a root mean square to the second is a loss."""


VIOLATION, TRUE = "diagnostics/ode_violation/mean", "diagnostics/true_distance"
RELATIONS = (
    Relation("distance to the true solution ~ training loss", f"{TRUE}/rms", "loss/consistency"),
    Relation("distance to the own flow ~ training loss", "diagnostics/flow_distance/rms", "loss/consistency"),
    Relation("ODE violation ~ training loss", VIOLATION, "loss/consistency"),
    Relation("distance to the true solution ~ (true ODE violation)²", f"{TRUE}/rms", f"{TRUE}/violation", 2),
    Relation("distance to the own flow ~ (ODE violation)²", "diagnostics/flow_distance/rms", VIOLATION, 2),
)
NOTE = (
    "Exponents k of error ~ δ^k over the reports of each trial but the first, as means over seeds with Student's 95 % "
    f"interval; p is that of k = {PREDICTED:g}, corrected by Holm for all rows. k counts as {PREDICTED:g} if its whole "
    f"interval is within {MARGIN:g} of it. δ is the training loss (consistency, mean q² over the steps since the last "
    "report) or the squared ODE violation; the last column says how many times larger it was at most than at least, as "
    "a geometric mean over seeds: a δ that hardly changes predicts nothing."
)
AS_PREDICTED = "as √δ"
COLUMNS = ("error ~ δ", "case", "exponent k", "verdict", "p", "seeds", "span of δ")


@dataclass(frozen=True)
class Exponent:
    """A relation in one case.

    Attributes:
        points: reports of all seeds that were fitted: trial, step, x (δ) and y (the error).
        by_seed: k of each seed.
        low, high: of the mean's 95 % interval; NaN for a single seed.
        p: of k being 1/2, corrected for all that was fitted; NaN for a single seed.
        span: largest over smallest δ of a trial, geometric mean over seeds.
    """

    relation: Relation
    case: str
    points: pd.DataFrame
    by_seed: dict[int, float]
    mean: float
    low: float
    high: float
    p: float
    span: float

    @property
    def interval(self) -> str:
        """k with its interval."""
        if math.isnan(self.low):
            return f"{self.mean:.3g}"
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"

    @property
    def outcome(self) -> str:
        """Of the claim that k is 1/2."""
        if self.told.startswith(UNDECIDED):
            return UNDECIDED
        return CONFIRMED if self.told == AS_PREDICTED else REFUTED

    @property
    def told(self) -> str:
        """How the error goes with δ."""
        if math.isnan(self.low):
            return f"{UNDECIDED}: one seed has no scatter"
        if self.low > PREDICTED - MARGIN and self.high < PREDICTED + MARGIN:
            return AS_PREDICTED
        if self.p < LEVEL and self.mean < 0:
            return "rises as δ falls"
        if self.p < LEVEL:
            return "falls faster than √δ" if self.mean > PREDICTED else "falls more slowly than √δ"
        return UNDECIDED

    @property
    def uncorrected_p(self) -> float:
        if len(self.by_seed) == 1:
            return math.nan
        return float(stats.ttest_1samp(list(self.by_seed.values()), PREDICTED).pvalue)

    def among(self, p: float, ps: list[float]) -> Exponent:
        """The same with its p as one of several corrected ones."""
        return replace(self, p=p)

    def figures(self) -> dict[str, float]:
        """What was found, by short names."""
        return {"exponent": self.mean, "p": self.p, "seeds": len(self.by_seed)}

    def row(self) -> list[str]:
        """Under the columns of verdicts."""
        told = self.told if self.outcome == UNDECIDED else f"{self.outcome}: {self.told}"
        p = "–" if math.isnan(self.p) else f"{self.p:.2g}"
        return [
            f"k = {PREDICTED:g}: {self.relation.name} ({self.case})",
            told,
            f"k = {self.interval}",
            p,
            "–",
            str(len(self.by_seed)),
            "–",
        ]


def fit(comparison: Comparison) -> list[Exponent]:
    """All relations in all cases whose trials reported both sides often enough; none if there are none."""
    found = []
    for relation in RELATIONS:
        points = points_of(comparison.record, relation)
        for case in comparison.cases:
            exponent = _exponent(relation, case.name, case.trials, points)
            found += [exponent] if exponent else []
    ps = holm([exponent.uncorrected_p for exponent in found])
    return [exponent.among(p, ps) for exponent, p in zip(found, ps, strict=True)]


def points_of(record: SweepRecord, relation: Relation) -> pd.DataFrame:
    """Columns trial, step, x, y of every report but each trial's first, where both sides are positive numbers."""
    xs = record.history(relation.predictor).rename(columns={"value": "x"})
    ys = record.history(relation.error).rename(columns={"value": "y"})
    points = xs.merge(ys, on=["trial", "step"]).astype({"x": float, "y": float}).sort_values(["trial", "step"])
    points = points[points.groupby("trial").cumcount() > 0]
    points["x"] **= relation.power
    positive = np.isfinite(points[["x", "y"]]).all(axis=1) & (points[["x", "y"]] > 0).all(axis=1)
    return points[positive]


def _exponent(relation: Relation, case: str, trials: dict[int, int], points: pd.DataFrame) -> Exponent | None:
    by_seed, spans = {}, []
    for seed, trial in sorted(trials.items()):
        own = points[points["trial"] == trial]
        if len(own) >= FEWEST and own["x"].nunique() > 1:
            by_seed[seed] = slope(own["x"], own["y"])
            spans.append(math.log(own["x"].max() / own["x"].min()))
    if not by_seed:
        return None
    points = points[points["trial"].isin([trials[seed] for seed in by_seed])]
    values, span = list(by_seed.values()), math.exp(sum(spans) / len(spans))
    if len(values) == 1:
        return Exponent(relation, case, points, by_seed, values[0], math.nan, math.nan, math.nan, span)
    return Exponent(relation, case, points, by_seed, *mean_interval(values), math.nan, span)


def slope(xs: pd.Series, ys: pd.Series) -> float:
    """Least-squares slope of log y over log x."""
    return float(stats.linregress(np.log(xs), np.log(ys)).slope)


def table(exponents: list[Exponent]) -> list[list[str]]:
    """Rows of text under COLUMNS; empty if nothing was fitted."""
    rows = [
        [
            exponent.relation.name,
            exponent.case,
            exponent.interval,
            exponent.told,
            "–" if math.isnan(exponent.p) else f"{exponent.p:.2g}",
            str(len(exponent.by_seed)),
            f"× {exponent.span:.3g}",
        ]
        for exponent in exponents
    ]
    return [list(COLUMNS), *rows] if rows else []


def answer(exponents: list[Exponent]) -> list[str]:
    """A sentence per relation."""
    return [
        f"{relation.name[0].upper()}{relation.name[1:]}, exponent against {PREDICTED:g}: {'; '.join(told)}."
        for relation in RELATIONS
        if (told := [f"{shortened(e.case)} {e.mean:.3g}, {e.told}" for e in exponents if e.relation == relation])
    ]


def panel(exponents: list[Exponent]) -> Panel:
    """A figure per relation: all reports, the fitted line of each case, and dotted the slope 1/2."""
    import plotly.graph_objects as go

    drawn = Panel(
        "exponents",
        "Errors against δ",
        "One dot per report and seed on two logarithmic axes. Lines have the mean exponent over seeds and go through "
        "the dots' centre; the dotted ones have the slope 1/2.",
    )
    colors = dict(zip(dict.fromkeys(exponent.case for exponent in exponents), COLORS * len(exponents), strict=False))
    for relation in RELATIONS:
        own = [exponent for exponent in exponents if exponent.relation == relation]
        if not own:
            continue
        figure = go.Figure()
        for exponent in own:
            _draw(figure, exponent, colors[exponent.case])
        error, _, predictor = relation.name.partition(" ~ ")
        figure.update_layout(xaxis={"title": f"δ: {predictor}", "type": "log"}, yaxis={"title": error, "type": "log"})
        for axis, name in (("x", "x"), ("y", "y")):
            log_ticks(figure, axis, pd.concat([exponent.points[name] for exponent in own]))
        drawn.figures.append(figure)
    return drawn


def _draw(figure, exponent: Exponent, color: str) -> None:
    name, points = html.escape(shortened(exponent.case)), exponent.points
    figure.add_scatter(
        x=points["x"].tolist(),
        y=points["y"].tolist(),
        customdata=points[["trial", "step"]].to_numpy().tolist(),
        mode="markers",
        name=name,
        legendgroup=name,
        marker={"color": color, "size": 6, "opacity": 0.6},
        hovertemplate=f"{name}, trial %{{customdata[0]}}, step %{{customdata[1]}}<br>"
        "%{x:.4g}: %{y:.4g}<extra></extra>",
    )
    ends = np.array([points["x"].min(), points["x"].max()])
    x, y = (math.exp(np.log(points[column]).mean()) for column in "xy")
    for power, line in (
        (exponent.mean, {"color": color, "width": 2}),
        (PREDICTED, {"color": GREY, "width": 1, "dash": "dot"}),
    ):
        figure.add_scatter(
            x=ends.tolist(),
            y=(y * (ends / x) ** power).tolist(),
            mode="lines",
            line=line,
            legendgroup=name,
            showlegend=False,
            hoverinfo="skip",
        )

"""A comparison's figures: quality over steps, over time and against memory, costs, and errors against δ."""

from __future__ import annotations

import math
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from dashboards.comparison.cases import Case
from dashboards.comparison.compare import Comparison
from dashboards.comparison.exponents import PREDICTED, RELATIONS, Exponent
from dashboards.html.drawing import Panel, label, log_axis, scale_axis, without
from dashboards.labels import title
from dashboards.palette import CASE_COLORS, GRAY, MEMORY, TIME
from orchestration.tracking.schema import PEAK_MIB, STEP_MS, TRAIN_S
from soflow.statistics import mean_interval

DASHES = ("solid", "dash", "dot", "dashdot")
COSTS = {STEP_MS: ("time per step", TIME), PEAK_MIB: ("peak memory", MEMORY)}
"""Names and colors of the costs."""


def panels(comparison: Comparison) -> list[Panel]:
    """Draw all figures; figures of quality only if it is comparable."""
    drawn = [_exponents(comparison)] if comparison.exponents else []
    if comparison.quality:
        drawn.append(_over_steps(comparison))
        drawn += [_over_time(comparison)] if comparison.quality[0] != TRAIN_S else []
        drawn += [_memory(comparison)] if comparison.quality[0] != PEAK_MIB else []
    return [*drawn, _costs(comparison)]


def _styles(comparison: Comparison) -> dict[str, tuple[str, str]]:
    """Assign a color and a dash to each case, the same in all figures."""
    dashes = (dash for dash in DASHES for _ in CASE_COLORS)
    return dict(zip((case.name for case in comparison.cases), zip(cycle(CASE_COLORS), cycle(dashes)), strict=False))


def _over_steps(comparison: Comparison) -> Panel:
    goal = comparison.quality[0]
    caption = "Means over seeds with 95 % intervals. Equal steps are equal numbers of images."
    panel = Panel("step", f"{title(goal)} against steps", caption)
    history = comparison.data.histories[goal]
    return _curves(comparison, panel, history.assign(x=history["step"].astype(float)), "optimizer step")


def _over_time(comparison: Comparison) -> Panel:
    goal = comparison.quality[0]
    caption = "The same means against the training time on this hardware."
    panel = Panel(TRAIN_S.replace("/", "-"), f"{title(goal)} against training time", caption)
    seconds = comparison.data.histories[TRAIN_S].rename(columns={"value": "x"})
    history = comparison.data.histories[goal].merge(seconds, on=["trial", "step"])
    return _curves(comparison, panel, history, title(TRAIN_S))


def _curves(comparison: Comparison, panel: Panel, history: pd.DataFrame, x_title: str) -> Panel:
    figure, styles = go.Figure(), _styles(comparison)
    for case in comparison.cases:
        rows = history[history["trial"].isin(case.trials.values())]
        if len(rows):
            _line(figure, case, rows, *styles[case.name])
    if not figure.data:
        return without(panel, "a case with a finished trial")
    figure.update_layout(xaxis_title=x_title, yaxis_title=title(comparison.quality[0]))
    panel.figures = [scale_axis(figure, "y", history["value"])]
    return panel


def _line(figure: go.Figure, case: Case, rows: pd.DataFrame, color: str, dash: str) -> None:
    steps = [(group["x"].mean(), list(group["value"])) for _, group in rows.groupby("step")]
    xs = [x for x, _ in steps]
    means = [sum(values) / len(values) for _, values in steps]
    name = label(case.name)
    if len(case.trials) > 1:
        bounds = [mean_interval(values)[1:] if len(values) > 1 else (values[0], values[0]) for _, values in steps]
        lowest = min(min(values) for _, values in steps)
        band = [high for _, high in bounds] + [max(low, lowest / 2) for low, _ in reversed(bounds)]
        fill = f"rgba({int(color[1:3], 16)}, {int(color[3:5], 16)}, {int(color[5:], 16)}, 0.18)"
        shape = {"x": xs + xs[::-1], "y": band, "fill": "toself", "fillcolor": fill, "line": {"width": 0}}
        figure.add_scatter(**shape, legendgroup=name, showlegend=False, hoverinfo="skip", mode="lines")
    figure.add_scatter(
        x=xs,
        y=means,
        name=name,
        legendgroup=name,
        mode="lines+markers",
        line={"color": color, "dash": dash, "width": 2},
        marker={"size": 5},
        hovertemplate=f"{name}<br>%{{x:.4g}}: %{{y:.4g}}<extra></extra>",
    )


def _memory(comparison: Comparison) -> Panel:
    goal, figure, styles = comparison.quality[0], go.Figure(), _styles(comparison)
    panel = Panel("memory", f"{title(goal)} against memory", "One dot per seed, at the end of training.")
    for case in comparison.cases:
        if not {goal, PEAK_MIB} <= set(case.measures):
            continue
        fids, peaks, name = case.measures[goal].values, case.measures[PEAK_MIB].values, label(case.name)
        seeds = sorted(set(fids) & set(peaks))
        figure.add_scatter(
            x=[peaks[seed] for seed in seeds],
            y=[fids[seed] for seed in seeds],
            customdata=seeds,
            mode="markers",
            name=name,
            marker={"color": styles[case.name][0], "size": 9, "opacity": 0.8},
            hovertemplate=f"{name}, seed %{{customdata}}<br>%{{x:.4g}} MiB: %{{y:.4g}}<extra></extra>",
        )
    if not figure.data:
        return without(panel, "a trial that reported its memory")
    figure.update_layout(xaxis_title=title(PEAK_MIB), yaxis_title=title(goal))
    panel.figures = [scale_axis(figure, "y", [value for trace in figure.data for value in trace.y])]
    return panel


def _costs(comparison: Comparison) -> Panel:
    """Draw the cost of each case as a multiple of the first one's."""
    caption = "Ratios to the first case, paired by seed: geometric means with 95 % intervals."
    panel, figure = Panel("costs", "Cost", caption), go.Figure()
    for metric, (name, color) in COSTS.items():
        ratios = {label(case.name): case.against[metric] for case in comparison.cases if metric in case.against}
        if ratios:
            figure.add_bar(
                y=list(ratios),
                x=[ratio.value for ratio in ratios.values()],
                orientation="h",
                name=name,
                marker={"color": color},
                text=[f"{ratio.value:.2f}" for ratio in ratios.values()],
                textposition="inside",
                insidetextanchor="start",
                error_x=_whiskers(list(ratios.values())),
            )
    if not figure.data:
        return without(panel, "a second case that shares a seed with the first one")
    figure.add_vline(x=1, line={"width": 1, "dash": "dot", "color": GRAY})
    figure.update_layout(xaxis_title=f"ratio to {label(comparison.cases[0].name)}", barmode="group")
    figure.update_layout(yaxis={"autorange": "reversed"}, height=140 + 56 * len(comparison.cases))
    panel.figures = [figure]
    return panel


def _whiskers(ratios: list[Any]) -> dict[str, Any] | None:
    if any(ratio.n == 1 for ratio in ratios):
        return None
    above = [ratio.high - ratio.value for ratio in ratios]
    below = [ratio.value - ratio.low for ratio in ratios]
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below}


def _exponents(comparison: Comparison) -> Panel:
    """Draw a figure per relation: all reports, the fitted line of each case, and the predicted slope."""
    panel = Panel(
        "exponents",
        "Errors against δ",
        "One dot per report and seed, on logarithmic axes. Lines: mean exponent over seeds, through the center of the "
        f"dots. Dotted: predicted slope {PREDICTED:g}.",
    )
    styles = _styles(comparison)
    for relation in RELATIONS:
        fits = [exponent for exponent in comparison.exponents if exponent.relation == relation]
        if not fits:
            continue
        figure = go.Figure()
        for exponent in fits:
            _draw_fit(figure, exponent, styles[exponent.case][0])
        error, _, predictor = relation.name.partition(" ~ ")
        figure.update_layout(xaxis_title=f"δ: {predictor}", yaxis_title=error)
        for axis in "xy":
            log_axis(figure, axis, pd.concat([exponent.points[axis] for exponent in fits]))
        panel.figures.append(figure)
    return panel


def _draw_fit(figure: go.Figure, exponent: Exponent, color: str) -> None:
    name, points = label(exponent.case), exponent.points
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
    for slope, line in (
        (exponent.mean, {"color": color, "width": 2}),
        (PREDICTED, {"color": GRAY, "width": 1, "dash": "dot"}),
    ):
        figure.add_scatter(
            x=ends.tolist(),
            y=(y * (ends / x) ** slope).tolist(),
            mode="lines",
            line=line,
            legendgroup=name,
            showlegend=False,
            hoverinfo="skip",
        )

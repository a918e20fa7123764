"""Figures of the search space: slices, parallel coordinates, and the two most important parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations

import optuna
import optuna.visualization as draw
import plotly.graph_objects as go
from optuna.distributions import BaseDistribution, CategoricalDistribution
from plotly.colors import sample_colorscale

from dashboards.html.drawing import LOG_RATIO, Panel, label, log_axis, scale_axis, without
from dashboards.labels import display, title
from dashboards.palette import GOAL_SCALE, GRAY
from dashboards.reading.images import evenly
from dashboards.sweep.findings import Findings
from dashboards.sweep.marks import color_by_goal, goal_marker, mark, marks_of
from dashboards.sweep.plottable import (
    MOST_LINES,
    Point,
    by_importance,
    distribution_of,
    finished_points,
    first_goal,
    stopped_points,
    thinned,
)

FEWEST_INTERPOLATED = 20
"""Fewest finished trials between which a contour is interpolated; of fewer, only the points are shown."""
HOVER = "trial %{customdata}<br>%{x} → %{y:.4g}<extra></extra>"


def slices(findings: Findings, study: optuna.Study | None) -> Panel:
    """Draw slices."""
    caption = (
        "Trials against one parameter at a time, the most important first; more purple is better. "
        "Filled: finished. Hollow: stopped early, at the last value. Failed trials are left out."
    )
    panel, goal = Panel("slices", "Slices", caption), findings.data.goals[0]
    if not (finished := finished_points(study)):
        return without(panel, "a finished trial")
    stopped = stopped_points(findings.data, study)
    for name in by_importance(study):
        figure = go.Figure()
        for state, points, hollow in (("finished", finished, False), ("stopped", stopped, True)):
            if shown := [point for point in points if name in point.params]:
                figure.add_scatter(
                    x=[point.params[name] for point in shown],
                    y=[point.value for point in shown],
                    customdata=[point.number for point in shown],
                    mode="markers",
                    name=state,
                    legendgroup=state,
                    showlegend=False,
                    marker=goal_marker([point.value for point in shown], hollow),
                    hovertemplate=HOVER,
                )
                sign = {"color": GRAY, "symbol": "circle-open" if hollow else "circle", "size": 8}
                # In the legend, since plotly draws markers with a color scale in black there.
                figure.add_scatter(x=[None], y=[None], mode="markers", name=state, legendgroup=state, marker=sign)
        mark(figure, findings, {p.number: (p.params[name], p.value) for p in finished if name in p.params})
        color_by_goal(figure, goal, [point.value for point in finished], bar=False)
        _parameter_axis(
            figure,
            "x",
            distribution_of(study, name),
            [point.params[name] for point in (*finished, *stopped) if name in point.params],
        )
        figure.update_layout(height=300, xaxis_title=name, yaxis_title=title(goal))
        panel.figures.append(scale_axis(figure, "y", [point.value for point in (*finished, *stopped)]))
    return panel


def _parameter_axis(figure: go.Figure, axis: str, distribution: BaseDistribution, values: list) -> None:
    """Scale an axis as its parameter was searched."""
    if isinstance(distribution, CategoricalDistribution):
        choices = list(distribution.choices)
        settings = {"type": "category", "categoryorder": "array", "categoryarray": choices}
        figure.update_layout({f"{axis}axis": settings | {"range": [-0.5, len(choices) - 0.5]}})
    elif distribution.log:
        log_axis(figure, axis, values)


def parallel(findings: Findings, study: optuna.Study | None) -> Panel:
    """Draw parallel coordinates."""
    caption = (
        "One line per finished trial through its values, from the most important parameter to the goal; more purple is "
        "better. A gap: the parameter has no effect in this trial."
    )
    panel, goal = Panel("parallel", "Parallel coordinates", caption), label(title(findings.data.goals[0]))
    points = sorted(finished_points(study), key=lambda point: point.value)
    if len(points) < 2:
        return without(panel, "two or more finished trials")
    if len(points) > MOST_LINES:
        panel.caption += f" {MOST_LINES} trials, evenly spaced in the ranking."
    names, values = by_importance(study), [point.value for point in points]
    axes = {name: _parameter_scale(distribution_of(study, name)) for name in names}
    axes[goal] = _number_scale(min(values), max(values), 0 < LOG_RATIO * min(values) < max(values))
    figure = go.Figure()
    for point in reversed(evenly(points, MOST_LINES)):  # better ones on top
        share = (point.value - values[0]) / ((values[-1] - values[0]) or 1)
        color = sample_colorscale(GOAL_SCALE, share)[0]
        _line(figure, point, goal, axes, {"color": color, "width": 1.5}, f"trial {point.number}", legend=False)
    for found in marks_of(findings):
        for point in (point for point in points if point.number == found.number):
            _line(figure, point, goal, axes, {"color": found.color, "width": 4}, found.name, legend=True)
    for row, (name, (place, ticks)) in enumerate(axes.items()):
        figure.add_shape(type="line", x0=0, x1=1, y0=row, y1=row, line={"color": "gray", "width": 1}, layer="below")
        text = {"showarrow": False, "y": row}
        figure.add_annotation(text=f"<b>{name}</b>", x=0, xanchor="left", yshift=11, **text)
        for tick, shown in ticks.items():
            anchor = {0: "left", 1: "right"}.get(place(tick), "center")
            figure.add_annotation(text=shown, x=place(tick), xanchor=anchor, yshift=-11, **text)
    figure.update_xaxes(visible=False, range=[-0.02, 1.02])
    figure.update_yaxes(visible=False, range=[len(axes) - 0.6, -0.5])
    figure.update_layout(height=70 + 64 * len(axes), margin={"l": 12, "r": 12, "b": 12}, hovermode="closest")
    panel.figures = [figure]
    return panel


Scale = tuple[Callable, dict]
"""The position of a value between the ends of its axis, 0 to 1, and the axis's ticks with their texts."""


def _parameter_scale(distribution: BaseDistribution) -> Scale:
    """Place values of a parameter on an axis over its whole searched range."""
    if isinstance(distribution, CategoricalDistribution):
        choices = list(distribution.choices)
        last = max(1, len(choices) - 1)
        return lambda value: choices.index(value) / last, {choice: choice for choice in choices}
    return _number_scale(distribution.low, distribution.high, distribution.log)


def _number_scale(low: float, high: float, log: bool) -> Scale:
    ticks = {value: display(float(value)) for value in dict.fromkeys((low, high))}
    if low == high:
        return lambda value: 0.5, ticks
    if log:
        return lambda value: math.log(value / low) / math.log(high / low), ticks
    return lambda value: (value - low) / (high - low), ticks


def _line(
    figure: go.Figure, point: Point, goal: str, axes: dict[str, Scale], line: dict, name: str, legend: bool
) -> None:
    values = point.params | {goal: point.value}
    figure.add_scatter(
        x=[place(values[axis]) if axis in values else None for axis, (place, _) in axes.items()],
        y=list(range(len(axes))),
        mode="lines+markers",
        marker={"size": 4},
        line=line,
        name=name,
        showlegend=legend,
        text=[f"{axis}: {display(values.get(axis))}" for axis in axes],
        hovertemplate=f"{name}<br>%{{text}}<extra></extra>",
    )


def contour(findings: Findings, study: optuna.Study | None) -> Panel:
    """Draw two most important parameters."""
    panel, goal = Panel("contour", "The two most important parameters", ""), findings.data.goals[0]
    points = finished_points(study)
    pairs = combinations(by_importance(study), 2) if len(points) > 1 else ()
    pair = next((pair for pair in pairs if any(set(pair) <= set(point.params) for point in points)), ("", ""))
    x, y = sorted(pair)  # as Optuna does
    points = [point for point in points if {x, y} <= set(point.params)]
    if len(points) < 2:
        return without(panel, "two or more finished trials with two parameters")
    panel.caption = "Finished trials; more purple is better."
    figure = go.Figure()
    if len(points) >= FEWEST_INTERPOLATED:
        figure, note = _interpolated(study, [x, y], goal)
        panel.caption += f" Colors between the dots are interpolated.{note}"
    figure.add_scatter(
        x=[point.params[x] for point in points],
        y=[point.params[y] for point in points],
        customdata=[[point.number, point.value] for point in points],
        mode="markers",
        showlegend=False,
        marker=goal_marker([point.value for point in points]) | {"line": {"color": "white", "width": 1}},
        hovertemplate="trial %{customdata[0]}: %{customdata[1]:.4g}<br>%{x}, %{y}<extra></extra>",
    )
    mark(figure, findings, {point.number: (point.params[x], point.params[y]) for point in points})
    color_by_goal(figure, goal, [point.value for point in points], bar=True)
    for axis, name in (("x", x), ("y", y)):
        _parameter_axis(figure, axis, distribution_of(study, name), [point.params[name] for point in points])
    figure.update_layout(xaxis_title=x, yaxis_title=y, height=380)
    panel.figures = [figure]
    return panel


def _interpolated(study: optuna.Study, pair: list[str], goal: str) -> tuple[go.Figure, str]:
    """Draw Optuna's contour of the goal; return it with a sentence for the caption if it leaves out trials."""
    some, note = thinned(study)
    drawn = draw.plot_contour(some, pair, target=first_goal(study), target_name=title(goal))
    surface = drawn.data[0]
    surface.update(colorscale=None, reversescale=None, coloraxis="coloraxis", showscale=None, line={"width": 0.5})
    return go.Figure(surface), note

"""The live view's figures, thinned to the number of points that a browser draws between refreshes."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence

import numpy as np
import plotly.graph_objects as go

from dashboards.html.drawing import log_axis
from dashboards.labels import title
from dashboards.live.reader import Curve, Snapshot, Trial
from dashboards.palette import BEST, STATE_COLORS
from soflow.statistics import pareto_front

ENDS = {"stopped": "triangle-down-open", "failed": "x", "interrupted": "line-ns-open"}
"""Markers at the last report of trials that did not finish."""
MOST_POINTS = 12_000
"""Most points of a figure; a browser takes longer than the refresh interval to draw more."""
FEWEST_PER_CURVE = 8
MANY = 60
"""Number of trials above which lines are faint and markers small."""


def learning_curves(snapshot: Snapshot, metric: str, best: Trial | None) -> go.Figure:
    """Draw a metric of all trials over steps, colored by state, the best trial as a thick line."""
    figure = go.Figure()
    most = max(FEWEST_PER_CURVE, MOST_POINTS // max(1, len(snapshot.trials)))
    values: list[float] = []
    for state, color in STATE_COLORS.items():
        chosen = [trial for trial in snapshot.trials if trial.state == state and snapshot.curve(trial, metric).steps]
        if not chosen:
            continue
        curves = [thinned(snapshot.curve(trial, metric), most) for trial in chosen]
        values += [value for curve in curves for value in curve.values]
        figure.add_trace(_lines(chosen, curves, state, color, 0.35 if len(snapshot.trials) > MANY else 0.8))
        if state in ENDS:
            figure.add_trace(_ends(chosen, curves, state, color))
    if best is not None and (curve := snapshot.curve(best, metric)).steps:
        figure.add_trace(_lines([best], [thinned(curve, MOST_POINTS)], f"best: trial {best.number}", BEST, 1.0, 3.5))
    _scale(figure, metric, values)
    figure.update_xaxes(title="optimizer step", rangemode="tozero")
    return _framed(figure, metric)


def thinned(curve: Curve, most: int) -> Curve:
    """Select at most `most` finite points of a curve, including the first, the last and the lowest."""
    points = [point for point in zip(curve.steps, curve.values, curve.times_ms, strict=True) if math.isfinite(point[1])]
    if len(points) > most:
        lowest = min(range(len(points)), key=lambda i: points[i][1])
        kept = {round(i * (len(points) - 1) / (most - 1)) for i in range(most)}
        if lowest not in kept:
            kept.discard(min(kept - {0, len(points) - 1}, key=lambda i: abs(i - lowest), default=-1))
        points = [points[i] for i in sorted(kept | {lowest})]
    return Curve(*map(tuple, zip(*points, strict=True))) if points else Curve()


def _lines(
    trials: Iterable[Trial], curves: Iterable[Curve], name: str, color: str, opacity: float, width: float = 1.5
) -> go.Scatter:
    """Join curves into one trace, which browsers draw much faster than one per curve."""
    steps: list[float | None] = []
    values: list[float | None] = []
    numbers: list[int | None] = []
    for trial, curve in zip(trials, curves, strict=True):
        steps += [*curve.steps, None]
        values += [*curve.values, None]
        numbers += [trial.number] * (len(curve.steps) + 1)
    return go.Scatter(
        x=steps,
        y=values,
        customdata=numbers,
        name=name,
        mode="lines+markers",
        marker={"size": 3},
        line={"color": color, "width": width},
        opacity=opacity,
        hovertemplate="trial %{customdata}, step %{x}: %{y:.4g}<extra>" + name + "</extra>",
    )


def _ends(trials: Sequence[Trial], curves: Sequence[Curve], state: str, color: str) -> go.Scatter:
    ended = [(trial, curve) for trial, curve in zip(trials, curves, strict=True) if curve.steps]
    return go.Scatter(
        x=[curve.steps[-1] for _, curve in ended],
        y=[curve.values[-1] for _, curve in ended],
        customdata=[trial.number for trial, _ in ended],
        name=f"{state} here",
        mode="markers",
        marker={"symbol": ENDS[state], "size": 8 if len(ended) < MANY else 4, "color": color},
        hovertemplate="trial %{customdata} " + state + " at step %{x}: %{y:.4g}<extra></extra>",
        showlegend=False,
    )


def pareto(snapshot: Snapshot, quality: str, cost: str) -> go.Figure:
    """Draw a metric against a cost, with the Pareto front of the finished trials."""
    figure = go.Figure()
    for state, color in STATE_COLORS.items():
        points = [
            (trial.value(cost), trial.value(quality), trial.number) for trial in snapshot.trials if trial.state == state
        ]
        points = [point for point in points if math.isfinite(point[0]) and math.isfinite(point[1])]
        if points:
            figure.add_trace(_points(points, state, color))
    finished = [trial for trial in snapshot.trials if trial.state == "finished"]
    best = front([(trial.value(cost), trial.value(quality)) for trial in finished])
    if best:
        line = {"shape": "hv", "dash": "dot", "color": STATE_COLORS["finished"]}
        x, y = zip(*best, strict=True)
        figure.add_trace(go.Scatter(x=x, y=y, mode="lines", line=line, name="Pareto front", hoverinfo="skip"))
    _scale(figure, quality, [value for trace in figure.data for value in trace.y])
    figure.update_xaxes(title=html.escape(title(cost)))
    return _framed(figure, f"{quality} {cost}")


def _points(points: Sequence[tuple[float, float, int]], state: str, color: str) -> go.Scatter:
    x, y, numbers = zip(*points, strict=True)
    is_final = state == "finished"
    marker = {"color": color, "size": 8 if is_final else 6, "symbol": "circle" if is_final else "circle-open"}
    hover = "trial %{customdata}: %{y:.4g} at %{x:.4g}<extra>" + state + "</extra>"
    return go.Scatter(x=x, y=y, customdata=numbers, name=state, mode="markers", marker=marker, hovertemplate=hover)


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Select the Pareto front of (cost, quality) points, sorted by cost."""
    array = np.array(points, dtype=np.float64).reshape(-1, 2)
    return sorted({(cost, quality) for cost, quality in array[pareto_front(array)].tolist()})


def _scale(figure: go.Figure, metric: str, values: Sequence[float]) -> None:
    """Title the y axis and make it logarithmic if all values are positive."""
    figure.update_yaxes(title=html.escape(title(metric)))
    if values and min(values) > 0:
        log_axis(figure, "y", values)


def _framed(figure: go.Figure, revision: str) -> go.Figure:
    """Set the layout; zoom and hidden traces persist across refreshes while `revision` stays the same."""
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
    margin = {"l": 10, "r": 10, "t": 10, "b": 10}
    return figure.update_layout(uirevision=revision, legend=legend, margin=margin, height=420, hovermode="closest")

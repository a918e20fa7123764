"""The live view's figures; of many points those are drawn that a screen can show."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence

import plotly.graph_objects as go

from dashboards.html.drawing import BLUE, GREEN, GREY, ORANGE, RED
from dashboards.live.reader import Curve, Snapshot, Trial
from dashboards.sweep.findings import title

COLOURS = {
    "running": BLUE,
    "finished": GREEN,
    "stopped": ORANGE,
    "failed": RED,
    "interrupted": GREY,
}
"""Of states; also the order of the legend."""
BEST_COLOUR = "#8e5cc0"
ENDS = {"stopped": "triangle-down", "failed": "x", "interrupted": "line-ns-open"}
"""Marks where a trial ended before its last step."""
MOST_POINTS = 12_000
"""Points of a figure. More take a browser longer to draw than the refreshes are apart."""
FEWEST_PER_CURVE = 8
MANY = 60
"""From so many trials on, lines are faint and marks small."""


def learning_curves(snapshot: Snapshot, metric: str, best: Trial | None) -> go.Figure:
    """The metric of all trials over steps, coloured by state, the best one drawn thick."""
    figure = go.Figure()
    most = max(FEWEST_PER_CURVE, MOST_POINTS // max(1, len(snapshot.trials)))
    values: list[float] = []
    for state, colour in COLOURS.items():
        chosen = [trial for trial in snapshot.trials if trial.state == state and snapshot.curve(trial, metric).steps]
        if not chosen:
            continue
        curves = [thinned(snapshot.curve(trial, metric), most) for trial in chosen]
        values += [value for curve in curves for value in curve.values]
        figure.add_trace(_lines(chosen, curves, state, colour, 0.35 if len(snapshot.trials) > MANY else 0.8))
        if state in ENDS:
            figure.add_trace(_ends(chosen, curves, state, colour))
    if best is not None and (curve := snapshot.curve(best, metric)).steps:
        figure.add_trace(
            _lines([best], [thinned(curve, MOST_POINTS)], f"best: trial {best.number}", BEST_COLOUR, 1.0, 3.5)
        )
    _scale(figure, metric, values)
    figure.update_xaxes(title="optimiser step", rangemode="tozero")
    return _framed(figure, metric)


def thinned(curve: Curve, most: int) -> Curve:
    """At most this many finite points of a curve, first, last and lowest among them."""
    points = [point for point in zip(curve.steps, curve.values, curve.times_ms, strict=True) if math.isfinite(point[1])]
    if len(points) > most:
        lowest = min(range(len(points)), key=lambda i: points[i][1])
        kept = {round(i * (len(points) - 1) / (most - 1)) for i in range(most)}
        if lowest not in kept:
            kept.discard(min(kept - {0, len(points) - 1}, key=lambda i: abs(i - lowest), default=-1))
        points = [points[i] for i in sorted(kept | {lowest})]
    return Curve(*map(tuple, zip(*points, strict=True))) if points else Curve()


def _lines(
    trials: Iterable[Trial], curves: Iterable[Curve], name: str, colour: str, opacity: float, width: float = 1.5
) -> go.Scatter:
    """Many curves as one trace, which is drawn much faster than many."""
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
        line={"color": colour, "width": width},
        opacity=opacity,
        hovertemplate="trial %{customdata}, step %{x}: %{y:.4g}<extra>" + name + "</extra>",
    )


def _ends(trials: Sequence[Trial], curves: Sequence[Curve], state: str, colour: str) -> go.Scatter:
    ended = [(trial, curve) for trial, curve in zip(trials, curves, strict=True) if curve.steps]
    return go.Scatter(
        x=[curve.steps[-1] for _, curve in ended],
        y=[curve.values[-1] for _, curve in ended],
        customdata=[trial.number for trial, _ in ended],
        name=f"{state} here",
        mode="markers",
        marker={"symbol": ENDS[state], "size": 8 if len(ended) < MANY else 4, "color": colour},
        hovertemplate="trial %{customdata} " + state + " at step %{x}: %{y:.4g}<extra></extra>",
        showlegend=False,
    )


def pareto(snapshot: Snapshot, quality: str, cost: str) -> go.Figure:
    """The metric against a cost, with the front of finished trials: those that no other beats in both."""
    figure = go.Figure()
    for state, colour in COLOURS.items():
        points = [
            (trial.value(cost), trial.value(quality), trial.number) for trial in snapshot.trials if trial.state == state
        ]
        points = [point for point in points if math.isfinite(point[0]) and math.isfinite(point[1])]
        if points:
            figure.add_trace(_points(points, state, colour))
    finished = [trial for trial in snapshot.trials if trial.state == "finished"]
    best = front([(trial.value(cost), trial.value(quality)) for trial in finished])
    if best:
        line = {"shape": "hv", "dash": "dot", "color": COLOURS["finished"]}
        x, y = zip(*best, strict=True)
        figure.add_trace(go.Scatter(x=x, y=y, mode="lines", line=line, name="front", hoverinfo="skip"))
    _scale(figure, quality, [value for trace in figure.data for value in trace.y])
    figure.update_xaxes(title=html.escape(title(cost)))
    return _framed(figure, f"{quality} {cost}")


def _points(points: Sequence[tuple[float, float, int]], state: str, colour: str) -> go.Scatter:
    x, y, numbers = zip(*points, strict=True)
    over = state == "finished"
    marker = {"color": colour, "size": 8 if over else 6, "symbol": "circle" if over else "circle-open"}
    hover = "trial %{customdata}: %{y:.4g} at %{x:.4g}<extra>" + state + "</extra>"
    return go.Scatter(x=x, y=y, customdata=numbers, name=state, mode="markers", marker=marker, hovertemplate=hover)


def front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (cost, quality), less is better, those that no other beats in one without being worse in the other."""
    kept: list[tuple[float, float]] = []
    for cost, quality in sorted(point for point in points if all(map(math.isfinite, point))):
        if not kept or quality < kept[-1][1]:
            kept.append((cost, quality))
    return kept


def _scale(figure: go.Figure, metric: str, values: Sequence[float]) -> None:
    """A logarithmic axis with 1, 2 and 5 of each decade, unless there are values that it has no place for."""
    if not values or min(values) <= 0:
        figure.update_yaxes(title=html.escape(title(metric)))
        return
    decades = range(math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))) + 1)
    digits = (1, 2, 5) if len(decades) < 6 else (1,)
    ticks = [digit * 10.0**decade for decade in decades for digit in digits]
    texts = [f"{tick:g}" for tick in ticks]
    figure.update_yaxes(title=html.escape(title(metric)), type="log", tickvals=ticks, ticktext=texts)


def _framed(figure: go.Figure, revision: str) -> go.Figure:
    """`revision`: while it stays the same, so do zoom and hidden traces, whatever new data comes."""
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
    margin = {"l": 10, "r": 10, "t": 10, "b": 10}
    return figure.update_layout(uirevision=revision, legend=legend, margin=margin, height=420, hovermode="closest")

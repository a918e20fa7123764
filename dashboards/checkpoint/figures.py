"""Figures of a checkpoint sweep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from dashboards.html.drawing import Panel, scale_axis, without
from dashboards.labels import title
from dashboards.palette import BEST, BLUE, DEFAULT, GOAL_SCALE, GRAY
from orchestration.checkpoint_sweep import results as points
from orchestration.checkpoint_sweep.config import badness, direction
from orchestration.checkpoint_sweep.results import Result, describe
from orchestration.checkpoint_sweep.saved import Saved
from soflow.posthoc_ema import TRAINED, average_of

FEWEST_LENGTHS = 2
PLAIN = "with temperature 1, equal steps and guidance at all times"
"""Settings of the points that figures over EMA length show."""
LOG_FACTOR = 3
"""Ratio of the largest to the smallest value above which colors are logarithmic."""


def panels(results: Sequence[Result], saved: Saved) -> list[Panel]:
    """Draw all figures."""
    return [_contours(results, saved), _by_evaluations(results, saved), _over_lengths(results, saved)]


def _plain(results: Sequence[Result]) -> list[Result]:
    """Leave out points that differ in more than average, guidance, sampler and steps: others than PLAIN."""
    return [
        result
        for result in results
        if not result.point.times
        and result.point.temperature == 1
        and (result.point.guidance == 1 or result.point.guidance_interval == (0.0, 1.0))
    ]


def _length(result: Result) -> float | None:
    average = average_of(result.point.ema)
    return average.length if average else None


def _kinds(results: Sequence[Result]) -> list[tuple[int, str]]:
    return sorted({(result.point.nfe, result.point.sampler) for result in results})


def _contours(results: Sequence[Result], saved: Saved) -> Panel:
    """Draw the goal over EMA length and guidance, a figure for each number of steps and sampler."""
    name = title(saved.goal)
    caption = (
        f"{name} over the relative length of the average and the strength of guidance, a figure for each number of "
        "steps. Dots: measured points. Star: the best. Training's own average has no place on the axis."
    )
    panel = Panel("contours", f"{name} over EMA length and guidance", caption)
    for nfe, sampler in _kinds(results):
        chosen = [
            result
            for result in _plain(results)
            if (result.point.nfe, result.point.sampler) == (nfe, sampler)
            and _length(result) is not None
            and saved.goal in result.metrics
        ]
        values = {(_length(result), result.point.guidance): result.metrics[saved.goal] for result in chosen}
        lengths, strengths = (sorted({key[i] for key in values}) for i in (0, 1))
        if min(len(lengths), len(strengths)) < FEWEST_LENGTHS:
            continue
        z = [[values.get((length, strength)) for length in lengths] for strength in strengths]
        figure = go.Figure()
        style = {"colorscale": GOAL_SCALE, "reversescale": direction(saved.goal) == "maximize"}
        style |= {"connectgaps": True, "contours_coloring": "heatmap"}
        figure.add_contour(x=lengths, y=strengths, text=z, **_colors(z), **style)
        figure.data[0].update(hovertemplate=f"length %{{x}}, guidance %{{y}}: {name} %{{text:.4g}}<extra></extra>")
        keys = list(values)
        figure.add_scatter(
            x=[key[0] for key in keys], y=[key[1] for key in keys], mode="markers", marker={"color": GRAY, "size": 4}
        )
        best = min(values, key=lambda key: badness({saved.goal: values[key]}, saved.goal))
        star = {"symbol": "star", "size": 14, "color": BEST, "line": {"color": "white", "width": 1}}
        figure.add_scatter(x=[best[0]], y=[best[1]], mode="markers", marker=star)
        figure.update_traces(showlegend=False, selector={"type": "scatter"})
        steps = f"{nfe} step{'s' if nfe > 1 else ''}{f', {sampler}' if nfe > 1 else ''}"
        figure.update_layout(xaxis_title=f"relative EMA length σ_rel ({steps})", yaxis_title="guidance")
        panel.figures.append(figure)
    needed = f"two lengths of the average and two strengths of guidance, {PLAIN}"
    return panel if panel.figures else without(panel, needed)


def _colors(z: list[list[float | None]]) -> dict[str, Any]:
    """Return contours of the values, or of their logarithms if they differ by a large factor."""
    values = [value for row in z for value in row if value is not None]
    low, high = min(values), max(values)
    if low <= 0 or high < LOG_FACTOR * low:
        return {"z": z}
    ticks = np.geomspace(low, high, 5)
    bar = {"tickvals": np.log10(ticks).tolist(), "ticktext": [f"{tick:.2g}" for tick in ticks]}
    return {"z": [[None if value is None else math.log10(value) for value in row] for row in z], "colorbar": bar}


def _by_evaluations(results: Sequence[Result], saved: Saved) -> Panel:
    """Draw the goal against network evaluations per image."""
    name = title(saved.goal)
    caption = "All points, the best for each number of network evaluations per image, and training's defaults."
    panel = Panel("evaluations", f"{name} against network evaluations", caption)
    known = [result for result in results if saved.goal in result.metrics]
    if not known:
        return without(panel, "a measured point")
    figure = go.Figure()
    groups = (
        ("point", known, {"mode": "markers", "marker": {"color": BLUE, "size": 5, "opacity": 0.5}}),
        ("best", list(points.best_by_evaluations(known, saved.goal).values()), _line(BEST)),
        ("training's defaults", list(points.defaults_by_evaluations(known, saved.space).values()), _line(DEFAULT)),
    )
    for label, chosen, style in groups:
        ordered = sorted(chosen, key=lambda result: result.evaluations)
        figure.add_scatter(
            x=[result.evaluations for result in ordered],
            y=[result.metrics[saved.goal] for result in ordered],
            text=[describe(result.point) for result in ordered],
            hovertemplate="%{text}: %{y:.4g}<extra></extra>",
            name=label,
            **style,
        )
    ticks = sorted({result.evaluations for result in known})
    figure.update_layout(xaxis_title="network evaluations per image", yaxis_title=name)
    figure.update_layout(xaxis={"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]})
    panel.figures = [scale_axis(figure, "y", [result.metrics[saved.goal] for result in known])]
    return panel


def _line(color: str) -> dict:
    return {"mode": "lines+markers", "line": {"color": color, "width": 2}, "marker": {"color": color, "size": 8}}


def _over_lengths(results: Sequence[Result], saved: Saved) -> Panel:
    """Draw the goal over EMA length without guidance, with training's average as a dashed line."""
    name = title(saved.goal)
    caption = "Without guidance. Dashed: the average that training evaluated."
    panel = Panel("lengths", f"{name} over EMA length", caption)
    unguided = [result for result in _plain(results) if result.point.guidance == 1 and saved.goal in result.metrics]
    figure, drawn = go.Figure(), False
    for number, (nfe, sampler) in enumerate(_kinds(unguided)):
        chosen = [result for result in unguided if (result.point.nfe, result.point.sampler) == (nfe, sampler)]
        line = sorted((_length(result), result.metrics[saved.goal]) for result in chosen if _length(result) is not None)
        if len(line) < FEWEST_LENGTHS:
            continue
        drawn = True
        label = f"{nfe} step{'s' if nfe > 1 else ''}{f', {sampler}' if nfe > 1 else ''}"
        x, y = zip(*line, strict=True)
        color = {"color": f"hsl({(210 + 70 * number) % 360}, 50%, 50%)"}
        figure.add_scatter(x=x, y=y, mode="lines+markers", name=label, line=color, legendgroup=label)
        for result in chosen:
            if result.point.ema == TRAINED:
                dashed = {"x": [x[0], x[-1]], "y": [result.metrics[saved.goal]] * 2, "mode": "lines"}
                figure.add_scatter(
                    **dashed, line=color | {"dash": "dash"}, showlegend=False, legendgroup=label, hoverinfo="y"
                )
    if not drawn:
        return without(panel, f"two lengths of the average, without guidance and {PLAIN}")
    figure.update_layout(xaxis_title="relative EMA length σ_rel", yaxis_title=name)
    panel.figures = [figure]
    return panel

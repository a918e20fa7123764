"""The best trial and the default configuration's, marked alike in all figures, and points colored by the goal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from dashboards.labels import title
from dashboards.palette import BEST, DEFAULT, GOAL_SCALE
from dashboards.sweep.findings import Findings


@dataclass(frozen=True)
class Mark:
    """A trial that figures mark, with its name in legends."""

    number: int
    name: str
    color: str
    symbol: str


def marks_of(findings: Findings) -> list[Mark]:
    """List the default configuration's trial and the best one, which is drawn last."""
    best, default = findings.best, findings.default
    marks = []
    if default is not None and default != best:
        marks.append(Mark(default, f"default, trial {default}", DEFAULT, "diamond"))
    if best is not None:
        name = "best and default" if best == default else "best"
        marks.append(Mark(best, f"{name}, trial {best}", BEST, "star"))
    return marks


def mark(figure: go.Figure, findings: Findings, places: dict[int, tuple], legend: bool = True) -> None:
    """Mark trials that have a place (x, y) in a figure."""
    for found in marks_of(findings):
        if found.number in places:
            x, y = places[found.number]
            figure.add_scatter(
                x=[x],
                y=[y],
                mode="markers",
                name=found.name,
                showlegend=legend,
                marker={
                    "symbol": found.symbol,
                    "color": found.color,
                    "size": 13,
                    "line": {"color": "white", "width": 1},
                },
                hovertemplate=f"{found.name}<br>%{{x}} → %{{y:.4g}}<extra></extra>",
            )


def color_by_goal(figure: go.Figure, goal: str, values: Iterable[float], bar: bool) -> None:
    """Give a figure the color scale of the goal, over the values of the finished trials.

    Args:
        bar: whether the figure shows the scale.
    """
    values = list(values)
    axis = {"colorscale": GOAL_SCALE, "cmin": min(values), "cmax": max(values), "showscale": bar}
    colorbar = {"title": {"text": title(goal), "side": "right"}, "thickness": 12, "outlinewidth": 0}
    figure.update_layout(coloraxis=axis | {"colorbar": colorbar})


def goal_marker(values: Sequence[float], hollow: bool = False) -> dict:
    """Build markers colored by the goal's scale."""
    symbol = "circle-open" if hollow else "circle"
    return {"color": list(values), "coloraxis": "coloraxis", "symbol": symbol, "size": 8}

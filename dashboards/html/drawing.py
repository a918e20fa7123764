"""What all figures of reports share: panels, colours for light and dark, axes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import plotly.graph_objects as go

BLUE, ORANGE, GREEN, RED, GREY = "#3f7fbf", "#d9822b", "#3a9a6b", "#cc4b5a", "#8a929c"
COLORS = (BLUE, ORANGE, GREEN, RED, "#8a63b8", GREY, "#b8860b", "#4aa3a3")
"""Of cases and trials, in this order."""
SCALE = [[0, "#5b8fc7"], [0.5, "#9b7fb8"], [1, "#d9622b"]]
"""Of lines and dots; to be seen on a light and on a dark page."""
LOG_RATIO = 30
"""A goal whose largest value is this many times its smallest is drawn on a logarithmic axis."""

FEW = 20
"""Trials that each get a tick."""


@dataclass
class Panel:
    """Figures under one heading with how to read them; if there are none, `missing` says why."""

    id: str
    heading: str
    caption: str
    figures: list[go.Figure] = field(default_factory=list)
    missing: str = ""


def without(panel: Panel, need: str) -> Panel:
    """The panel without figures, and what they would take."""
    panel.missing = f"takes {need}"
    return panel


def name_trials(trace: go.Scatter, numbers: list[int] | None, x: str = "") -> None:
    """Hovering over a dot names its trial."""
    if numbers is not None and len(numbers) == len(trace.x or ()):
        trace.update(customdata=numbers, hovertemplate=f"trial %{{customdata}}<br>{x} → %{{y:.4g}}<extra></extra>")


def count_trials(figure: go.Figure, several: int) -> None:
    """An axis of trial numbers."""
    figure.update_layout(xaxis={"title": "trial", "dtick": 1 if several <= FEW else None})


def axis_of(figure: go.Figure, axis: str, values) -> go.Figure:
    """Logarithmic where values span orders of magnitude."""
    finite = [value for value in values if math.isfinite(value)]
    if finite and min(finite) > 0 and max(finite) > LOG_RATIO * min(finite):
        figure.update_layout({f"{axis}axis": {"type": "log"}})
        log_ticks(figure, axis, finite)
    return figure


def log_ticks(figure: go.Figure, axis: str, values) -> None:
    """A few round numbers, where plotly writes every digit of every decade."""
    low, high = math.log10(min(values)), math.log10(max(values))
    leading = (1,) if high - low > 3 else (1, 3) if high - low > 1.2 else (1, 2, 5)
    ticks = [digit * 10.0**power for power in range(math.floor(low) - 1, math.ceil(high) + 1) for digit in leading]
    figure.update_layout({f"{axis}axis": {"tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}})

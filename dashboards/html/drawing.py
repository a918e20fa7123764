"""Figure style shared by all reports: panels and axes."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import plotly.graph_objects as go

from dashboards.labels import shorten

LOG_RATIO = 30
"""Ratio of largest to smallest value above which an axis is logarithmic."""
MOST_DECADES = 12
"""Decades of a logarithmic axis above which some get no tick."""
FEW = 20
"""Most trials that each get an axis tick."""


@dataclass
class Panel:
    """Figures under one heading with a caption; without figures, `missing` gives the reason."""

    id: str
    heading: str
    caption: str
    figures: list[go.Figure] = field(default_factory=list)
    missing: str = ""


def without(panel: Panel, need: str) -> Panel:
    """Mark a panel as not drawn, with what it needs."""
    panel.missing = f"needs {need}"
    return panel


def label(text: str) -> str:
    """Shorten and escape user input, which plotly would take for markup."""
    return html.escape(shorten(text))


def number_axis(figure: go.Figure, num_trials: int) -> None:
    """Make x an axis of trial numbers."""
    figure.update_layout(xaxis={"title": "trial", "dtick": 1 if num_trials <= FEW else None})


def scale_axis(figure: go.Figure, axis: str, values: Iterable[float]) -> go.Figure:
    """Make an axis logarithmic if its values span orders of magnitude."""
    finite = [value for value in values if math.isfinite(value)]
    if finite and min(finite) > 0 and max(finite) > LOG_RATIO * min(finite):
        log_axis(figure, axis, finite)
    return figure


def log_axis(figure: go.Figure, axis: str, values: Iterable[float]) -> None:
    """Make an axis logarithmic with a few round ticks; plotly's default labels every digit of every decade."""
    values = list(values)
    low, high = math.log10(min(values)), math.log10(max(values))
    leading = (1,) if high - low > 3 else (1, 3) if high - low > 1.2 else (1, 2, 5)
    stride = max(1, round((high - low) / MOST_DECADES))
    powers = range(max(-300, math.floor(low) - 1), min(308, math.ceil(high)) + 1, stride)
    ticks = [digit * 10.0**power for power in powers for digit in leading if power < 308 or digit == 1]
    ticks_and_labels = {"tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
    figure.update_layout({f"{axis}axis": {"type": "log", **ticks_and_labels}})

"""Population-based training: m and w over steps, and who took over from whom."""

from __future__ import annotations

import math

import pandas as pd
import plotly.graph_objects as go

from dashboards.html.drawing import COLORS, GREY
from dashboards.reading.sweep_data import SweepRecord
from dashboards.sweep.findings import title
from orchestration.sweep.study import EXCHANGES
from orchestration.terminal.format import short_name

POINT = "point/"
"""What MLflow's metrics of m and w begin with."""


def exchanges_figures(record: SweepRecord) -> list[go.Figure]:
    """One figure per value that changed, with a line per trial."""
    metrics = sorted({name for run in record.runs.values() for name in run.data.metrics if name.startswith(POINT)})
    return [_figure(record.history(metric), metric.removeprefix(POINT), _exchanges(record)) for metric in metrics]


def _exchanges(record: SweepRecord) -> dict[int, list[dict]]:
    """What each trial took over, as the study tells it."""
    trials = record.study.get_trials(deepcopy=False) if record.study is not None else []
    return {trial.number: trial.user_attrs.get(EXCHANGES, []) for trial in trials}


def _figure(history: pd.DataFrame, path: str, exchanges: dict[int, list[dict]]) -> go.Figure:
    figure = go.Figure()
    for position, (number, rows) in enumerate(history.groupby("trial")):
        color = COLORS[position % len(COLORS)]
        figure.add_scatter(
            x=rows["step"],
            y=rows["value"],
            mode="lines",
            line={"color": color, "shape": "vh", "width": 2},
            name=f"trial {number}",
            hovertemplate=f"trial {number}, step %{{x}}: %{{y:.4g}}<extra></extra>",
        )
    handed = [_arrow(history, number, made) for number, several in exchanges.items() for made in several]
    handed = [arrow for arrow in handed if arrow is not None]
    if handed:
        gaps = {"x": [], "y": []}
        for step, before, after, _ in handed:
            gaps["x"] += [step, step, None]
            gaps["y"] += [before, after, None]
        figure.add_scatter(**gaps, mode="lines", line={"color": GREY, "dash": "dot", "width": 1.5}, hoverinfo="skip")
        figure.data[-1].name = "took over"
        figure.add_scatter(
            x=[step for step, *_ in handed],
            y=[after for _, _, after, _ in handed],
            mode="markers",
            marker={"color": GREY, "symbol": "diamond", "size": 8},
            text=[text for *_, text in handed],
            hovertemplate="%{text}<extra></extra>",
            showlegend=False,
        )
    symbol = short_name(path)
    figure.update_layout(xaxis_title="optimiser step", yaxis_title=symbol if len(symbol) < 20 else title(path))
    return figure


def _arrow(history: pd.DataFrame, number: int, made: dict) -> tuple[int, float, float, str] | None:
    """Where a trial took over: the step, the donor's value there, the trial's own after it, in words."""
    step, donor = made["step"], made["donor"]
    before = history[(history["trial"] == donor) & (history["step"] <= step)]["value"]
    after = history[(history["trial"] == number) & (history["step"] > step)]["value"]
    if before.empty or after.empty or not math.isfinite(before.iloc[-1]):
        return None
    return step, before.iloc[-1], after.iloc[0], f"step {step}: trial {number} went on from trial {donor}"

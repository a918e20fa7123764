"""A search's figures, Optuna's where it provides them, in one style for light and dark pages."""

from __future__ import annotations

import math
import warnings

import numpy as np
import optuna
import optuna.visualization as draw
import pandas as pd
import plotly.graph_objects as go

from dashboards.html.drawing import Panel, number_axis, scale_axis, without
from dashboards.labels import one_line_reason, title
from dashboards.palette import BEST, GRAY, MEMORY, NEUTRAL, OTHER_TIME, STATE_COLORS, TIME
from dashboards.reading.images import evenly
from dashboards.reading.protocols import is_quality
from dashboards.sweep.findings import Findings
from dashboards.sweep.marks import mark, marks_of
from dashboards.sweep.plottable import MOST_LINES, complete, finished_points, first_goal, importances, plottable_study
from dashboards.sweep.space import contour, parallel, slices
from orchestration.tracking.schema import FID, PEAK_MIB, TRAIN_S
from soflow.statistics import pareto_front

HOVER = "trial %{customdata}<br>%{x}: %{y:.4g}<extra></extra>"


def panels(findings: Findings) -> list[Panel]:
    """Draw all figures; a figure that fails becomes a panel with the reason."""
    study, drawn = plottable_study(findings.data), []
    for draw_panel in ALL if findings.comparable else (_costs,):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Optuna's warnings are for authors of code that uses it
                panel = draw_panel(findings, study)
        except Exception as error:  # a report must not fail with one figure
            name, heading = draw_panel.__name__.strip("_"), draw_panel.__doc__.removeprefix("Draw ").rstrip(".")
            panel = Panel(name, heading.capitalize(), "", missing=f"failed: {one_line_reason(error)}")
        drawn.append(panel)
    return drawn


def _history(findings: Findings, study: optuna.Study | None) -> Panel:
    """Draw optimization history."""
    panel = Panel("history", "Optimization history", "One dot per finished trial; the line is the best value so far.")
    if not (trials := complete(study)):
        return without(panel, "a finished trial in the Optuna study")
    data = findings.data
    figure = draw.plot_optimization_history(study, target=first_goal(study), target_name=title(data.goals[0]))
    dots = {"color": STATE_COLORS["finished"], "size": 6}
    figure.data[0].update(name="finished trial", marker=dots, hovertemplate="trial %{x}: %{y:.4g}<extra></extra>")
    if len(study.directions) > 1:  # Optuna draws no line if a target is given
        values = pd.Series({trial.number: trial.values[0] for trial in trials})
        figure.add_scatter(x=values.index, y=values.cummin(), mode="lines")
    line = {"color": BEST, "width": 2, "shape": "hv"}
    figure.update_traces(name="best so far", line=line, selector={"mode": "lines"})
    mark(figure, findings, {point.number: (point.number, point.value) for point in finished_points(study)})
    number_axis(figure, len(data.trials))
    panel.figures = [scale_axis(figure, "y", [trial.values[0] for trial in trials])]
    return panel


def _values_over_steps(findings: Findings, study: optuna.Study | None) -> Panel:
    """Draw the goal over steps."""
    data, goal = findings.data, findings.data.goals[0]
    history = data.histories[goal]
    caption = "One line per trial. Hollow triangles: stopped early. Bold: best trial and default configuration."
    panel = Panel("steps", f"{title(goal)} over steps", caption)
    if history.empty:
        return without(panel, f"a trial that reported {title(goal)}")
    figure = go.Figure()
    states = data.trials.set_index("trial")["state"]
    groups = {state: states.index[states == state] for state in STATE_COLORS}
    groups["other"] = states.index[~states.isin(list(STATE_COLORS))]
    for state, trials in groups.items():
        last = history[history["trial"].isin(trials)].groupby("trial")["value"].last().sort_values()
        if len(last) > MOST_LINES:
            panel.caption = f"{caption} {MOST_LINES} trials per state, evenly spaced by their last values."
        if len(last):
            rows = history[history["trial"].isin(evenly(list(last.index), MOST_LINES))]
            line = {"color": STATE_COLORS.get(state, GRAY), "width": 1}
            figure.add_scatter(**_lines(rows), name=state, line=line, opacity=0.7)
    stops = history[history["trial"].isin(groups["stopped"])].groupby("trial").last().reset_index()
    if len(stops):
        figure.add_scatter(
            x=stops["step"],
            y=stops["value"],
            customdata=stops["trial"],
            mode="markers",
            marker={"symbol": "triangle-down-open", "color": STATE_COLORS["stopped"], "size": 8},
            name="stopped here",
            hovertemplate=HOVER,
        )
    for found in marks_of(findings):
        rows = history[history["trial"] == found.number]
        if len(rows):
            figure.add_scatter(**_lines(rows), name=found.name, line={"color": found.color, "width": 3})
    figure.update_layout(xaxis_title="optimizer step", yaxis_title=title(goal))
    panel.figures = [scale_axis(figure, "y", history["value"])]
    return panel


def _lines(rows: pd.DataFrame) -> dict:
    """Join all lines into one trace, which browsers draw a hundred times faster than a trace per trial."""
    ends = rows.groupby("trial").tail(1).assign(value=math.nan)
    rows = pd.concat([rows, ends]).sort_values(["trial", "step"], kind="stable")
    return {
        "x": rows["step"].to_numpy(),
        "y": rows["value"].to_numpy("float32"),
        "customdata": rows["trial"].to_numpy(),
        "mode": "lines",
        "connectgaps": False,
        "hovertemplate": HOVER,
    }


def _importances(findings: Findings, study: optuna.Study | None) -> Panel:
    """Draw parameter importances."""
    caption = "Share of each parameter in what distinguishes the best trials (PED-ANOVA); unreliable for few trials."
    panel = Panel("importances", "Parameter importances", caption)
    if not (shares := importances(study)):
        return without(panel, "two or more finished trials of different quality")
    figure = go.Figure()
    figure.add_bar(
        x=list(shares.values()),
        y=list(shares),
        orientation="h",
        marker={"color": NEUTRAL},
        text=[f"{share:.2f}" for share in shares.values()],
        textposition="outside",
        cliponaxis=False,
        hovertemplate="%{y}: %{x:.3g}<extra></extra>",
    )
    figure.update_layout(xaxis_title="importance", yaxis_autorange="reversed", height=120 + 34 * len(shares))
    panel.figures = [figure]
    return panel


def _pareto(findings: Findings, study: optuna.Study | None) -> Panel:
    """Draw Pareto fronts."""
    data = findings.data
    quality = next((goal for goal in data.goals if is_quality(goal)), FID)
    panel = Panel("pareto", "Pareto fronts", "Finished trials; the dotted line joins the Pareto front of both axes.")
    finished = data.trials[data.trials["state"] == "finished"]
    for cost in dict.fromkeys([TRAIN_S, PEAK_MIB, *(goal for goal in data.goals if goal != quality)]):
        if {quality, cost} <= set(finished):
            rows = finished[finished[[quality, cost]].map(math.isfinite).all(axis=1)]
            if len(rows):
                panel.figures.append(_front(findings, rows, cost, quality))
    return panel if panel.figures else without(panel, "a finished trial with FID, training time and memory")


def _front(findings: Findings, rows: pd.DataFrame, cost: str, quality: str) -> go.Figure:
    figure, color = go.Figure(), STATE_COLORS["finished"]
    figure.add_scatter(
        x=rows[cost],
        y=rows[quality],
        customdata=rows["trial"],
        mode="markers",
        name="finished trial",
        showlegend=True,
        marker={"color": color, "size": 8},
        hovertemplate="trial %{customdata}<br>%{x:.4g} → %{y:.4g}<extra></extra>",
    )
    front = rows[pareto_front(rows[[cost, quality]].to_numpy(np.float64))].sort_values(cost)
    line = {"shape": "hv", "dash": "dot", "color": color}
    figure.add_scatter(x=front[cost], y=front[quality], mode="lines", line=line, name="Pareto front", hoverinfo="skip")
    mark(figure, findings, {row["trial"]: (row[cost], row[quality]) for _, row in rows.iterrows()})
    figure.update_layout(xaxis_title=title(cost), yaxis_title=title(quality))
    return scale_axis(scale_axis(figure, "y", rows[quality]), "x", rows[cost])


def _costs(findings: Findings, study: optuna.Study | None) -> Panel:
    """Draw time and memory."""
    caption = "Per trial. Wall-clock time beyond training is evaluation, waiting and interruptions."
    panel = Panel("costs", "Time and memory", caption)
    data, bars = findings.data, ((("wall_s", OTHER_TIME), (TRAIN_S, TIME)), ((PEAK_MIB, MEMORY),))
    for group, unit in zip(bars, ("seconds", "MiB"), strict=True):
        figure = go.Figure()
        for metric, color in group:
            if metric in data.trials and data.trials[metric].notna().any():
                figure.add_bar(
                    x=data.trials["trial"],
                    y=data.trials[metric],
                    name=title(metric).partition(" [")[0],
                    marker={"color": color, "line": {"width": 0}},
                    hovertemplate="trial %{x}: %{y:.4g}<extra></extra>",
                )
        if figure.data:
            figure.update_layout(barmode="overlay", bargap=0.15, yaxis_title=unit, height=300, showlegend=True)
            number_axis(figure, len(data.trials))
            panel.figures.append(figure)
    return panel if panel.figures else without(panel, "reported time or memory")


ALL = (_history, _values_over_steps, _importances, slices, parallel, contour, _pareto, _costs)

"""A search's figures, Optuna's where it provides them, in one style for light and dark pages."""

from __future__ import annotations

import math
import warnings

import numpy as np
import optuna
import optuna.visualization as draw
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from dashboards.html.drawing import (
    BLUE,
    GRAY,
    GREEN,
    ORANGE,
    RED,
    SCALE,
    Panel,
    log_axis,
    name_trials,
    number_axis,
    scale_axis,
    without,
)
from dashboards.labels import one_line_reason, title
from dashboards.reading.images import evenly
from dashboards.reading.protocols import is_quality
from dashboards.reading.sweep_data import SweepData
from dashboards.sweep.findings import Findings
from dashboards.sweep.plottable import MOST_LINES, complete, dimensions, first_goal, plottable_study, thinned
from orchestration.tracking.schema import FID, PEAK_MIB, TRAIN_S
from soflow.statistics import pareto_front

STATE_COLORS = {"finished": BLUE, "stopped": ORANGE, "failed": RED, "running": GREEN}
HOVER = "trial %{customdata}<br>%{x}: %{y:.4g}<extra></extra>"


def panels(findings: Findings) -> list[Panel]:
    """Draw all figures; a figure that fails becomes a panel with the reason."""
    study, drawn = plottable_study(findings.data), []
    for draw_panel in ALL if findings.comparable else (_costs,):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Optuna's warnings are for authors of code that uses it
                panel = draw_panel(findings.data, study)
        except Exception as error:  # a report must not fail with one figure
            name, heading = draw_panel.__name__.strip("_"), draw_panel.__doc__.removeprefix("Draw ").rstrip(".")
            panel = Panel(name, heading.capitalize(), "", missing=f"failed: {one_line_reason(error)}")
        drawn.append(panel)
    return drawn


def _history(data: SweepData, study: optuna.Study | None) -> Panel:
    """Draw optimization history."""
    panel = Panel("history", "Optimization history", "One dot per finished trial; the line is the best value so far.")
    if not (trials := complete(study)):
        return without(panel, "a finished trial in the Optuna study")
    figure = draw.plot_optimization_history(study, target=first_goal(study), target_name=title(data.goals[0]))
    name_trials(figure.data[0], [trial.number for trial in trials])
    figure.data[0].update(name="finished trial", marker={"color": BLUE, "size": 6})
    if len(study.directions) > 1:  # Optuna draws no line if a target is given
        values = pd.Series({trial.number: trial.values[0] for trial in trials})
        figure.add_scatter(x=values.index, y=values.cummin(), mode="lines")
    line = {"color": ORANGE, "width": 2, "shape": "hv"}
    figure.update_traces(name="best so far", line=line, selector={"mode": "lines"})
    number_axis(figure, len(data.trials))
    panel.figures = [scale_axis(figure, "y", [trial.values[0] for trial in trials])]
    return panel


def _values_over_steps(data: SweepData, study: optuna.Study | None) -> Panel:
    """Draw the goal over steps."""
    goal, history = data.goals[0], data.histories[data.goals[0]]
    caption = "One line per trial. Crosses: stopped early. Bold: best trial."
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
            marker={"symbol": "x", "color": ORANGE, "size": 6},
            name="stopped here",
            hovertemplate=HOVER,
        )
    finished = data.trials[data.trials["state"] == "finished"]
    if goal in finished and finished[goal].notna().any():
        best = finished.loc[finished[goal].idxmin(), "trial"]
        rows = history[history["trial"] == best]
        figure.add_scatter(**_lines(rows), name=f"best, trial {best}", line={"color": GREEN, "width": 3})
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


def _importances(data: SweepData, study: optuna.Study | None) -> Panel:
    """Draw parameter importances."""
    caption = "Share of each parameter in what distinguishes the best trials (PED-ANOVA); unreliable for few trials."
    panel = Panel("importances", "Parameter importances", caption)
    if len({trial.values[0] for trial in complete(study)}) < 2:
        return without(panel, "two or more finished trials")
    figure = draw.plot_param_importances(study, target=first_goal(study), target_name=title(data.goals[0]))
    figure.update_traces(marker_color=BLUE)
    figure.update_layout(xaxis_title="importance", yaxis_title=None, height=120 + 34 * len(data.paths))
    panel.figures = [figure]
    return panel


def _slices(data: SweepData, study: optuna.Study | None) -> Panel:
    """Draw slices."""
    panel = Panel("slices", "Slices", "Finished trials against one parameter at a time; later trials are more orange.")
    if not (trials := complete(study)):
        return without(panel, "a finished trial")
    for name in dimensions(study):
        figure = draw.plot_slice(study, [name], target=first_goal(study), target_name=title(data.goals[0]))
        for trace in figure.data:
            numbers = list(trace.marker.color) if isinstance(trace.marker.color, (list, tuple)) else None
            name_trials(trace, numbers, x="%{x}")
            trace.marker.update(colorscale=SCALE, showscale=False, size=7, line={"width": 0})
            if figure.layout.xaxis.type == "category":
                trace.x = [value.strip("'\"") for value in trace.x]
        if figure.layout.xaxis.type == "category":
            order = [value.strip("'\"") for value in figure.layout.xaxis.categoryarray]
            figure.update_xaxes(categoryarray=order, range=[-0.5, len(order) - 0.5])
        elif figure.layout.xaxis.type == "log":
            log_axis(figure, "x", [value for trace in figure.data for value in trace.x or ()])
        figure.update_layout(height=280)
        panel.figures.append(scale_axis(figure, "y", [trial.values[0] for trial in trials]))
    return panel


def _parallel(data: SweepData, study: optuna.Study | None) -> Panel:
    """Draw parallel coordinates."""
    panel = Panel("parallel", "Parallel coordinates", "One line per finished trial; better trials are more orange.")
    if len(complete(study)) < 2:
        return without(panel, "two or more finished trials")
    some, note = thinned(study)
    panel.caption += note
    figure = draw.plot_parallel_coordinate(some, target=first_goal(study), target_name=title(data.goals[0]))
    figure.update_layout(plot_bgcolor=None, height=420)
    for annotation in figure.layout.annotations:
        annotation.font.color = GRAY
    for line in figure.data:
        if line.mode == "lines" and line.y[0] is not None:  # the first axis is the goal, from 0 for the best to 1
            line.update(line_color=sample_colorscale(SCALE, 1 - line.y[0])[0], line_width=1.5, opacity=0.7)
        elif line.mode == "markers":
            line.marker.update(colorscale=SCALE, reversescale=True)
    panel.figures = [figure]
    return panel


def _contour(data: SweepData, study: optuna.Study | None) -> Panel:
    """Draw gap schedule."""
    panel = Panel("contour", "Gap schedule", "Finished trials by r_init and r_end, interpolated; orange is better.")
    ends = ["r_init", "r_end"]
    trials = [trial for trial in complete(study) if set(ends) <= set(trial.params)]
    if len({tuple(trial.params[name] for name in ends) for trial in trials}) < 4:
        return without(panel, "four or more finished trials with different r_init and r_end")
    some, note = thinned(study)
    panel.caption += note
    figure = draw.plot_contour(some, ends, target=first_goal(study), target_name=title(data.goals[0]))
    for trace in figure.data:
        if trace.type == "contour":
            trace.update(colorscale=SCALE, reversescale=True, line={"width": 0.5})
        else:
            trace.marker.update(color="white", size=7, line={"color": "black", "width": 1})
    for axis in "xy":
        settings = figure.layout[f"{axis}axis"]
        if settings.type == "log":
            log_axis(figure, axis, [trial.params[settings.title.text] for trial in trials])
    panel.figures = [figure]
    return panel


def _pareto(data: SweepData, study: optuna.Study | None) -> Panel:
    """Draw Pareto fronts."""
    quality = next((goal for goal in data.goals if is_quality(goal)), FID)
    panel = Panel("pareto", "Pareto fronts", "Finished trials; orange ones are on the Pareto front of both axes.")
    finished = data.trials[data.trials["state"] == "finished"]
    for cost in dict.fromkeys([TRAIN_S, PEAK_MIB, *(goal for goal in data.goals if goal != quality)]):
        if {quality, cost} <= set(finished):
            rows = finished[finished[[quality, cost]].map(math.isfinite).all(axis=1)]
            if len(rows):
                panel.figures.append(_front(rows, cost, quality))
    return panel if panel.figures else without(panel, "a finished trial with FID, training time and memory")


def _front(rows: pd.DataFrame, cost: str, quality: str) -> go.Figure:
    on_front, figure = pareto_front(rows[[cost, quality]].to_numpy(np.float64)), go.Figure()
    for name, color, shown in (("finished trial", BLUE, rows[~on_front]), ("Pareto front", ORANGE, rows[on_front])):
        figure.add_scatter(
            x=shown[cost],
            y=shown[quality],
            customdata=shown["trial"],
            mode="markers",
            name=name,
            showlegend=True,
            marker={"color": color, "size": 8},
            hovertemplate="trial %{customdata}<br>%{x:.4g} → %{y:.4g}<extra></extra>",
        )
    figure.update_layout(xaxis_title=title(cost), yaxis_title=title(quality))
    return scale_axis(scale_axis(figure, "y", rows[quality]), "x", rows[cost])


def _costs(data: SweepData, study: optuna.Study | None) -> Panel:
    """Draw time and memory."""
    caption = "Per trial. Wall-clock time beyond training is evaluation and waiting."
    panel = Panel("costs", "Time and memory", caption)
    bars = (("wall_s", GRAY), (TRAIN_S, BLUE)), ((PEAK_MIB, GREEN),)
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


ALL = (_history, _values_over_steps, _importances, _slices, _parallel, _contour, _pareto, _costs)

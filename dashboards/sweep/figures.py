"""A sweep's figures: Optuna's where it has them, from values as MLflow holds them, in one style for light and dark."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import optuna
import optuna.visualization as draw
import pandas as pd
import plotly.graph_objects as go
from optuna.trial import create_trial
from plotly.colors import sample_colorscale

from dashboards.html.drawing import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    SCALE,
    Panel,
    axis_of,
    count_trials,
    log_ticks,
    name_trials,
    without,
)
from dashboards.reading.sweep_data import SweepRecord
from dashboards.sweep.findings import Findings, is_quality, shortened, title
from dashboards.sweep.plottable import SPREAD, complete, dimensions, evenly, first_goal, only_some, spread, study_of
from dashboards.sweep.population import exchanges_figures


def panels(record: SweepRecord, findings: Findings) -> list[Panel]:
    """All of the report's figures; one that cannot be drawn is a panel that says why."""
    makers: list[Callable[[SweepRecord, optuna.Study | None], Panel]] = [_costs]
    if findings.comparable:
        makers = [_history, _values_over_steps, *_SEARCHES, _pareto, *makers]
        if record.param("early_stopping.kind") == "pbt":
            makers.insert(2, _population)
    study, found = study_of(record), []
    for make in makers:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Optuna's are for those who write code with it
                panel = make(record, study)
        except Exception as error:  # one figure must not take the report with it, whatever the records hold
            reason = shortened(" ".join(str(error).split()) or type(error).__name__)
            panel = Panel(make.__name__.strip("_"), make.__doc__.rstrip("."), "", missing=f"failed: {reason}")
        found.append(panel)
    return found


def _history(record: SweepRecord, study: optuna.Study | None) -> Panel:
    """Optimisation history."""
    panel = Panel("history", "Optimisation history", "One dot per finished trial; the line is the best so far.")
    if study is None or not complete(study):
        return without(panel, "a finished trial in the Optuna study")
    figure = draw.plot_optimization_history(study, target=first_goal(study), target_name=title(record.goals[0]))
    name_trials(figure.data[0], [trial.number for trial in complete(study)])
    figure.data[0].update(name="finished trial", marker={"color": BLUE, "size": 6})
    if len(study.directions) > 1:  # Optuna draws no line where a target is given
        values = pd.Series({trial.number: trial.values[0] for trial in complete(study)})
        figure.add_scatter(x=values.index, y=values.cummin(), mode="lines")
    line = {"color": ORANGE, "width": 2, "shape": "hv"}
    figure.update_traces(name="best so far", line=line, selector={"mode": "lines"})
    count_trials(figure, len(record.trials))
    panel.figures = [axis_of(figure, "y", [trial.values[0] for trial in complete(study)])]
    return panel


def _values_over_steps(record: SweepRecord, study: optuna.Study | None) -> Panel:
    """Values over steps."""
    goal = record.goals[0]
    panel = Panel(
        "steps",
        f"{title(goal)} over steps",
        _LINES,
    )
    history = record.history(goal)
    if history.empty:
        return without(panel, f"a trial that reported {title(goal)}")
    figure = go.Figure()
    states = record.trials.set_index("trial")["state"]
    finished = record.trials[record.trials["state"] == "finished"]
    for state, color in (("finished", BLUE), ("stopped", ORANGE), ("failed", RED), ("running", GREEN), ("other", GREY)):
        of_state = states.index[states == state] if state != "other" else states.index[~states.isin(_DRAWN)]
        last = history[history["trial"].isin(of_state)].groupby("trial")["value"].last().sort_values()
        if len(last) > SPREAD:
            panel.caption = f"{_LINES} Lines of {SPREAD} trials of each state, spread evenly over their last values."
        if len(last):
            rows = history[history["trial"].isin(evenly(list(last.index)))]
            figure.add_scatter(**_lines(rows), name=state, line={"color": color, "width": 1}, opacity=0.7)
    stops = history[history["trial"].isin(states.index[states == "stopped"])].groupby("trial").last().reset_index()
    if len(stops):
        figure.add_scatter(
            x=stops["step"],
            y=stops["value"],
            customdata=stops["trial"],
            mode="markers",
            marker={"symbol": "x", "color": ORANGE, "size": 6},
            name="stopped here",
            hovertemplate=_HOVER,
        )
    if goal in finished and finished[goal].notna().any():
        best = finished.loc[finished[goal].idxmin(), "trial"]
        figure.add_scatter(
            **_lines(history[history["trial"] == best]), name=f"best, trial {best}", line={"color": GREEN, "width": 3}
        )
    figure.update_layout(xaxis_title="optimiser step", yaxis_title=title(goal))
    panel.figures = [axis_of(figure, "y", history["value"])]
    return panel


_LINES = "One line per trial. A cross marks where early stopping ended one; the best trial is drawn bold."
_DRAWN = ("finished", "stopped", "failed", "running")
_HOVER = "trial %{customdata}<br>%{x}: %{y:.4g}<extra></extra>"


def _lines(rows: pd.DataFrame) -> dict:
    """All lines as one trace, which a browser draws a hundred times faster than a trace per trial."""
    ends = rows.groupby("trial").tail(1).assign(value=math.nan)
    rows = pd.concat([rows, ends]).sort_values(["trial", "step"], kind="stable")
    return {
        "x": rows["step"].to_numpy(),
        "y": rows["value"].to_numpy("float32"),
        "customdata": rows["trial"].to_numpy(),
        "mode": "lines",
        "connectgaps": False,
        "hovertemplate": _HOVER,
    }


def _importances(record: SweepRecord, study: optuna.Study | None) -> Panel:
    """Parameter importances."""
    panel = Panel(
        "importances",
        "Parameter importances",
        "Share of each parameter in what sets the best trials apart (PED-ANOVA); with few trials it says little.",
    )
    if study is None or len({trial.values[0] for trial in complete(study)}) < 2:
        return without(panel, "two finished trials or more")
    figure = draw.plot_param_importances(study, target=first_goal(study), target_name=title(record.goals[0]))
    figure.update_traces(marker_color=BLUE)
    figure.update_layout(xaxis_title="importance", yaxis_title=None, height=120 + 34 * len(record.paths))
    panel.figures = [figure]
    return panel


def _slices(record: SweepRecord, study: optuna.Study | None) -> Panel:
    """Slices."""
    panel = Panel("slices", "Slices", "Finished trials by one parameter at a time; the later a trial, the more orange.")
    if study is None or not complete(study):
        return without(panel, "a finished trial")
    values = [trial.values[0] for trial in complete(study)]
    for name in dimensions(study):
        figure = draw.plot_slice(study, [name], target=first_goal(study), target_name=title(record.goals[0]))
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
            log_ticks(figure, "x", [value for trace in figure.data for value in trace.x or ()])
        figure.update_layout(height=280)
        panel.figures.append(axis_of(figure, "y", values))
    return panel


def _parallel(record: SweepRecord, study: optuna.Study | None) -> Panel:
    """Parallel coordinates."""
    panel = Panel("parallel", "Parallel coordinates", "One line per finished trial, the better the more orange.")
    if study is None or len(complete(study)) < 2:
        return without(panel, "two finished trials or more")
    panel.caption += only_some(study)
    figure = draw.plot_parallel_coordinate(spread(study), target=first_goal(study), target_name=title(record.goals[0]))
    figure.update_layout(plot_bgcolor=None, height=420)
    for note in figure.layout.annotations:
        note.font.color = GREY
    for line in figure.data:
        if line.mode == "lines" and line.y[0] is not None:  # the first axis is the goal, from 0 for the best to 1
            line.update(line_color=sample_colorscale(SCALE, 1 - line.y[0])[0], line_width=1.5, opacity=0.7)
        elif line.mode == "markers":
            line.marker.update(colorscale=SCALE, reversescale=True)
    panel.figures = [figure]
    return panel


def _contour(record: SweepRecord, study: optuna.Study | None) -> Panel:
    """Gap schedule's ends."""
    panel = Panel(
        "contour",
        "The gap schedule's ends",
        "Finished trials, interpolated in between; orange is good.",
    )
    ends = ["r_init", "r_end"]
    having = [trial for trial in complete(study) if set(ends) <= set(trial.params)] if study else []
    if len({tuple(trial.params[name] for name in ends) for trial in having}) < 4:
        return without(panel, "four finished trials or more with different r_init and r_end")
    panel.caption += only_some(study)
    figure = draw.plot_contour(spread(study), ends, target=first_goal(study), target_name=title(record.goals[0]))
    for trace in figure.data:
        if trace.type == "contour":
            trace.update(colorscale=SCALE, reversescale=True, line={"width": 0.5})
        else:
            trace.marker.update(color="white", size=7, line={"color": "black", "width": 1})
    for axis in "xy":
        of_axis = figure.layout[f"{axis}axis"]
        if of_axis.type == "log":
            log_ticks(figure, axis, [trial.params[of_axis.title.text] for trial in having])
    panel.figures = [figure]
    return panel


_SEARCHES = (_importances, _slices, _parallel, _contour)


def _pareto(record: SweepRecord, study: optuna.Study | None) -> Panel:
    """Pareto fronts."""
    quality = next((goal for goal in record.goals if is_quality(goal)), "fid")
    panel = Panel("pareto", "Pareto fronts", "Finished trials; no other trial beats an orange one in both directions.")
    finished = record.trials[record.trials["state"] == "finished"]
    others = [goal for goal in record.goals if goal != quality]
    for cost in dict.fromkeys(["time/train_s", "memory/peak_mib", *others]):
        if {quality, cost} <= set(finished):
            rows = finished[finished[[quality, cost]].map(math.isfinite).all(axis=1)]
            if len(rows):
                panel.figures.append(_front(rows, cost, quality))
    return panel if panel.figures else without(panel, "a finished trial with FID, seconds and memory")


def _front(rows: pd.DataFrame, cost: str, quality: str) -> go.Figure:
    study = optuna.create_study(directions=["minimize", "minimize"])
    numbers = rows["trial"].tolist()
    study.add_trials([create_trial(values=values) for values in rows[[cost, quality]].to_numpy().tolist()])
    figure = draw.plot_pareto_front(study, target_names=[title(cost), title(quality)])
    for trace, color, name in zip(figure.data, (BLUE, ORANGE), ("finished trial", "Pareto front"), strict=True):
        name_trials(trace, [numbers[position] for position in trace.marker.color or ()], x="%{x:.4g}")
        trace.update(text=None, name=name, showlegend=True, marker={"color": color, "size": 8, "showscale": False})
        trace.marker.line.width = 0
    return axis_of(axis_of(figure, "y", rows[quality]), "x", rows[cost])


def _costs(record: SweepRecord, study: optuna.Study | None) -> Panel:
    """Wall-clock and memory."""
    panel = Panel("costs", "Wall-clock and memory", "By trial; wall-clock beyond training is evaluation and waiting.")
    table = record.trials
    bars = (("wall_s", GREY), ("time/train_s", BLUE)), (("memory/peak_mib", GREEN),)
    for group, unit in zip(bars, ("seconds", "MiB"), strict=True):
        figure = go.Figure()
        for metric, color in group:
            if metric in table and table[metric].notna().any():
                figure.add_bar(
                    x=table["trial"],
                    y=table[metric],
                    name=title(metric).partition(" [")[0],
                    marker={"color": color, "line": {"width": 0}},
                    hovertemplate="trial %{x}: %{y:.4g}<extra></extra>",
                )
        if figure.data:
            figure.update_layout(barmode="overlay", bargap=0.15, yaxis_title=unit, height=300, showlegend=True)
            count_trials(figure, len(table))
            panel.figures.append(figure)
    return panel if panel.figures else without(panel, "seconds or memory in MLflow")


def _population(record: SweepRecord, study: optuna.Study | None) -> Panel:
    """Guidance over steps."""
    caption = "What changed during training. A dotted line leads from the trial whose weights were taken over."
    panel = Panel("population", "Guidance over steps", caption, exchanges_figures(record))
    return panel if panel.figures else without(panel, "the trials' m and w over steps")

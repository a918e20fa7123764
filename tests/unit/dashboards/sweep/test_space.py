"""Figures of the search space: what is drawn of which trials, in which colors and order, from made-up studies."""

from __future__ import annotations

import math

import optuna
import pandas as pd
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from dashboards.palette import BEST, DEFAULT, GOAL_SCALE
from dashboards.reading.sweep_data import SweepData
from dashboards.sweep.findings import Findings
from dashboards.sweep.plottable import by_importance, importances, plottable_study
from dashboards.sweep.space import FEWEST_INTERPOLATED, contour, parallel, slices

SPACE = {
    "objective.a": FloatDistribution(0, 1),
    "objective.b": FloatDistribution(0.01, 10, log=True),
    "objective.kind": CategoricalDistribution(["x", "y", "z"]),
}


def made(num_finished: int, num_stopped: int = 0, num_failed: int = 0, best: int = 0, default: int | None = 1):
    """Findings and study of a search whose goal depends on b, hardly on a, and not on the kind."""
    states = ["finished"] * num_finished + ["stopped"] * num_stopped + ["failed"] * num_failed
    ends = {"finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}
    study, rows = optuna.create_study(), []
    for number, state in enumerate(states):
        share = number / len(states)
        params = {
            "objective.a": number * 0.37 % 1,
            "objective.b": 0.01 * 1000**share,
            "objective.kind": "xyz"[number % 3],
        }
        goal = 1 + 10 * share + params["objective.a"] / 10
        value = goal if state == "finished" else None
        study.add_trial(create_trial(state=ends[state], value=value, params=params, distributions=SPACE))
        rows.append({"trial": number, "state": state, "fid": goal + 20 * (state == "stopped"), **params})
    data = SweepData("made", "", None, {}, pd.DataFrame(rows), list(SPACE), ["fid"], study, [], {}, "")
    return Findings(data, data.trials, [], True, [], best, default), plottable_study(data)


def scatters(figure) -> dict[str, object]:
    """The traces by name, without those that only the legend shows."""
    return {trace.name: trace for trace in figure.data if trace.type == "scatter" and set(trace.x) != {None}}


@pytest.mark.parametrize("num", [2, FEWEST_INTERPOLATED - 1, FEWEST_INTERPOLATED, FEWEST_INTERPOLATED + 50])
def test_a_contour_is_interpolated_from_twenty_finished_trials_on(num):
    findings, study = made(num, num_stopped=30)
    panel = contour(findings, study)
    (figure,) = panel.figures
    interpolated = num >= FEWEST_INTERPOLATED
    assert [trace.type for trace in figure.data].count("contour") == interpolated
    assert ("interpolated" in panel.caption) == interpolated
    points = next(trace for trace in figure.data if trace.type == "scatter")
    assert {figure.layout.xaxis.title.text, figure.layout.yaxis.title.text} == set(by_importance(study)[:2])
    rows = findings.data.trials.iloc[:num]
    assert list(points.marker.color) == rows["fid"].tolist()
    for values, axis in ((points.x, figure.layout.xaxis), (points.y, figure.layout.yaxis)):
        assert list(values) == rows[f"objective.{axis.title.text}"].tolist()
    if interpolated:
        surface = next(trace for trace in figure.data if trace.type == "contour")
        x = figure.layout.xaxis.title.text
        assert set(surface.x) >= set(rows[f"objective.{x}"].iloc[:1])  # its grid goes through the trials


def test_slices_show_finished_trials_filled_stopped_ones_hollow_and_no_failed_ones():
    findings, study = made(5, num_stopped=3, num_failed=2)
    figures = slices(findings, study).figures
    assert [figure.layout.xaxis.title.text for figure in figures] == by_importance(study)
    trials = findings.data.trials
    for figure in figures:
        name = f"objective.{figure.layout.xaxis.title.text}"
        drawn = scatters(figure)
        for state, symbol in (("finished", "circle"), ("stopped", "circle-open")):
            rows, trace = trials[trials["state"] == state], drawn[state]
            assert list(trace.customdata) == rows["trial"].tolist()
            assert list(trace.x) == rows[name].tolist()
            assert list(trace.y) == list(trace.marker.color) == rows["fid"].tolist()
            assert trace.marker.symbol == symbol
            (sign,) = [other for other in figure.data if other.name == state and other is not trace]
            assert (sign.marker.symbol, sign.showlegend) == (symbol, None)  # the legend says it
        assert "failed" not in {trace.name for trace in figure.data}


def test_without_stopped_trials_the_legend_names_none():
    figures = slices(*made(5)).figures
    assert all("stopped" not in {trace.name for trace in figure.data} for figure in figures)


def test_the_goal_has_one_color_scale_and_marked_trials_one_color_in_all_figures():
    findings, study = made(FEWEST_INTERPOLATED, num_stopped=3)
    figures = [*slices(findings, study).figures, *contour(findings, study).figures, *parallel(findings, study).figures]
    goals = findings.data.trials["fid"].iloc[:FEWEST_INTERPOLATED]
    for figure in figures:
        by_name = scatters(figure)
        best, default = by_name["best, trial 0"], by_name["default, trial 1"]
        assert BEST in (best.marker.color, best.line.color)
        assert DEFAULT in (default.marker.color, default.line.color)
    for figure in figures[:-1]:
        axis = figure.layout.coloraxis
        assert [list(stop) for stop in axis.colorscale] == GOAL_SCALE
        assert (axis.cmin, axis.cmax) == (goals.min(), goals.max())
        colored = [trace for trace in figure.data if (trace.marker if "marker" in trace else trace).coloraxis]
        assert all(trace.colorscale is None for trace in colored if trace.type == "contour")
    lines = scatters(figures[-1])
    assert lines[f"trial {goals.idxmin()}"].line.color == "rgb(138, 69, 208)"  # the scale's low end
    assert lines[f"trial {goals.idxmax()}"].line.color == "rgb(163, 169, 176)"


def test_the_scale_s_low_end_is_the_best_trial_s_color():
    assert GOAL_SCALE[0] == [0, BEST]


def test_a_best_trial_that_is_the_default_one_is_marked_once():
    findings, study = made(5, best=2, default=2)
    names = [trace.name for trace in contour(findings, study).figures[0].data]
    assert names[1:] == ["best and default, trial 2"]


def test_parallel_axes_follow_importance_and_end_with_the_goal():
    findings, study = made(12, num_stopped=4)
    (figure,) = parallel(findings, study).figures
    shares = importances(study)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    headings = [text.text for text in figure.layout.annotations if text.text.startswith("<b>")]
    assert headings == [f"<b>{name}</b>" for name in [*shares, "FID"]]
    assert headings[0] == "<b>b</b>"
    lines = {name: trace for name, trace in scatters(figure).items() if name.startswith("trial")}
    assert set(lines) == {f"trial {number}" for number in range(12)}
    trials = findings.data.trials.iloc[:12]
    for number, row in trials.iterrows():
        placed = dict(zip(headings, lines[f"trial {number}"].x, strict=True))
        low, high = trials["fid"].min(), trials["fid"].max()
        assert placed["<b>FID</b>"] == pytest.approx((row["fid"] - low) / (high - low))
        assert placed["<b>a</b>"] == pytest.approx(row["objective.a"])
        assert placed["<b>b</b>"] == pytest.approx(math.log10(row["objective.b"] / 0.01) / 3)
        assert placed["<b>kind</b>"] == "xyz".index(row["objective.kind"]) / 2


def test_a_parameter_without_effect_leaves_a_gap_in_the_line():
    findings, study = made(3)
    without_b = {name: value for name, value in study.trials[0].params.items() if name != "b"}
    spaces = {name: space for name, space in study.trials[0].distributions.items() if name != "b"}
    study.add_trial(create_trial(value=3.0, params=without_b, distributions=spaces))
    (figure,) = parallel(findings, study).figures
    row = by_importance(study).index("b")
    assert [position is None for position in scatters(figure)["trial 3"].x].index(True) == row
    assert all(3 not in list(trace.customdata or ()) for trace in slices(findings, study).figures[row].data)


@pytest.mark.parametrize("draw", [parallel, contour])
def test_one_finished_trial_is_not_drawn(draw):
    panel = draw(*made(1))
    assert not panel.figures
    assert panel.missing.startswith("needs two or more finished trials")
    assert draw(made(1)[0], None).missing == panel.missing

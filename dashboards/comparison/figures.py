"""A comparison's figures: quality over steps, over seconds and against memory, and what each case costs."""

from __future__ import annotations

import html
from itertools import cycle

import pandas as pd
import plotly.graph_objects as go

from dashboards.comparison.compare import Case, Comparison
from dashboards.html.drawing import COLORS, GREY, Panel, axis_of
from dashboards.sweep.findings import shortened, title
from soflow.statistics import mean_interval

DASHES = ("solid", "dash", "dot", "dashdot")
COSTS = {"time/step_ms": "time per step", "memory/peak_mib": "peak memory"}


def panels(comparison: Comparison) -> list[Panel]:
    """All figures; those of quality only where it may be compared."""
    found = []
    if comparison.quality:
        found += [_over(comparison, "step"), _over(comparison, "time/train_s"), _memory(comparison)]
    return [*found, _costs(comparison)]


def _style(comparison: Comparison) -> dict[str, tuple[str, str]]:
    """Colour and dash of each case, the same in all figures."""
    dashes = (dash for dash in DASHES for _ in COLORS)
    return dict(zip((case.name for case in comparison.cases), zip(cycle(COLORS), cycle(dashes)), strict=False))


def _over(comparison: Comparison, what: str) -> Panel:
    goal = comparison.quality[0]
    label = "optimiser step" if what == "step" else title(what)
    panel = Panel(
        what.replace("/", "-"),
        f"{title(goal)} against {'steps' if what == 'step' else 'training time'}",
        "Means over seeds; the band is the mean's 95 % interval. Equal steps are equal numbers of images seen."
        if what == "step"
        else "The same means, placed at the seconds that training took to get there on this hardware.",
    )
    history = comparison.record.history(goal)
    if what != "step":
        seconds = comparison.record.history(what).rename(columns={"value": "x"})
        history = history.merge(seconds, on=["trial", "step"])
    else:
        history = history.assign(x=history["step"].astype(float))
    figure = go.Figure()
    for case in comparison.cases:
        rows = history[history["trial"].isin(case.trials.values())]
        if len(rows):
            _line(figure, case, rows, *_style(comparison)[case.name])
    if not figure.data:
        panel.missing = "no case has a finished trial"
        return panel
    figure.update_layout(xaxis_title=label, yaxis_title=title(goal))
    panel.figures = [axis_of(figure, "y", history["value"])]
    return panel


def _line(figure: go.Figure, case: Case, rows: pd.DataFrame, color: str, dash: str) -> None:
    steps = [(group["x"].mean(), list(group["value"])) for _, group in rows.groupby("step")]
    xs = [x for x, _ in steps]
    means = [sum(values) / len(values) for _, values in steps]
    name = html.escape(shortened(case.name))
    if len(case.trials) > 1:
        bounds = [mean_interval(values)[1:] if len(values) > 1 else (values[0], values[0]) for _, values in steps]
        lowest = min(min(values) for _, values in steps)
        band = [high for _, high in bounds] + [max(low, lowest / 2) for low, _ in reversed(bounds)]
        fill = f"rgba({int(color[1:3], 16)}, {int(color[3:5], 16)}, {int(color[5:], 16)}, 0.18)"
        shape = {"x": xs + xs[::-1], "y": band, "fill": "toself", "fillcolor": fill, "line": {"width": 0}}
        figure.add_scatter(**shape, legendgroup=name, showlegend=False, hoverinfo="skip", mode="lines")
    figure.add_scatter(
        x=xs,
        y=means,
        name=name,
        legendgroup=name,
        mode="lines+markers",
        line={"color": color, "dash": dash, "width": 2},
        marker={"size": 5},
        hovertemplate=f"{name}<br>%{{x:.4g}}: %{{y:.4g}}<extra></extra>",
    )


def _memory(comparison: Comparison) -> Panel:
    goal, memory = comparison.quality[0], "memory/peak_mib"
    panel = Panel("memory", f"{title(goal)} against memory", "One dot per seed, at the end of training.")
    figure = go.Figure()
    for case in comparison.cases:
        if goal not in case.measures or memory not in case.measures:
            continue
        seeds = sorted(set(case.measures[goal].values) & set(case.measures[memory].values))
        name = html.escape(shortened(case.name))
        figure.add_scatter(
            x=[case.measures[memory].values[seed] for seed in seeds],
            y=[case.measures[goal].values[seed] for seed in seeds],
            customdata=seeds,
            mode="markers",
            name=name,
            marker={"color": _style(comparison)[case.name][0], "size": 9, "opacity": 0.8},
            hovertemplate=f"{name}, seed %{{customdata}}<br>%{{x:.4g}} MiB: %{{y:.4g}}<extra></extra>",
        )
    if not figure.data:
        panel.missing = "no trial reported its memory"
        return panel
    figure.update_layout(xaxis_title=title(memory), yaxis_title=title(goal))
    values = [value for trace in figure.data for value in trace.y]
    panel.figures = [axis_of(figure, "y", pd.Series(values))]
    return panel


def _costs(comparison: Comparison) -> Panel:
    """What each case costs, as a multiple of the first."""
    panel = Panel(
        "costs",
        "Cost",
        "As multiples of the first case, paired by seed; bars are geometric means, whiskers their 95 % intervals.",
    )
    figure = go.Figure()
    for (metric, label), color in zip(COSTS.items(), COLORS, strict=False):
        cases = [case for case in comparison.cases if metric in case.against]
        if not cases:
            continue
        found = [case.against[metric] for case in cases]
        known = all(quotient.n > 1 for quotient in found)
        figure.add_bar(
            y=[html.escape(shortened(case.name)) for case in cases],
            x=[quotient.value for quotient in found],
            orientation="h",
            name=label,
            marker={"color": color},
            text=[f"{quotient.value:.2f}" for quotient in found],
            textposition="inside",
            insidetextanchor="start",
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [quotient.high - quotient.value for quotient in found],
                "arrayminus": [quotient.value - quotient.low for quotient in found],
            }
            if known
            else None,
        )
    if not figure.data:
        panel.missing = "there is no second case with a seed of the first one's"
        return panel
    first = html.escape(shortened(comparison.cases[0].name))
    figure.add_vline(x=1, line={"width": 1, "dash": "dot", "color": GREY})
    figure.update_layout(xaxis_title=f"multiple of {first}", yaxis={"autorange": "reversed"}, barmode="group")
    figure.update_layout(height=140 + 56 * len(comparison.cases))
    panel.figures = [figure]
    return panel

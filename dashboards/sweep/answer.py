"""A search's question and its answer in a few sentences."""

from __future__ import annotations

import math

import pandas as pd

from dashboards.labels import display, percent, shorten, thousands, title
from dashboards.reading.protocols import is_quality, not_comparable
from dashboards.reading.sweep_data import SweepData
from dashboards.sweep.findings import Findings
from orchestration.terminal.format import short_name
from orchestration.tracking.schema import DATASET, FID, FID_FLOOR, OBJECTIVE


def question(data: SweepData) -> str:
    names = [short_name(shorten(path)) for path in data.paths]
    searched = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names) or "configuration"
    goals = " and ".join("lowest " + title(goal) for goal in data.goals)
    model, dataset = data.param(OBJECTIVE, "this model"), data.param(DATASET, "its data")
    steps = data.param("training.total_steps")
    within = f" within {thousands(steps)} steps" if steps else ""
    give = "give" if len(names) > 1 else "gives"
    return f"Which {searched} {give} {shorten(model)} the {goals} on {shorten(dataset)}{within}?"


def answer(findings: Findings) -> list[str]:
    """Word the best trial, its configuration and protocol, and its distance from the default and the floor."""
    data, table = findings.data, findings.table
    if not findings.ranked:
        return [not_comparable(findings.protocols)]
    if findings.best is None:
        return [_no_answer(findings)]
    rows, goal = table.set_index("trial"), data.goals[0]
    best = rows.loc[findings.best]
    measured = findings.protocols[0] if findings.protocols and is_quality(goal) else None
    nfe = f" at {measured.first_nfe} NFE" if measured and measured.first_nfe else ""
    finished = int((table["state"] == "finished").sum())
    sentences = [
        f"Best trial: {findings.best} ({title(goal)} {best[goal]:.4g}{nfe}{_interval(best)}), of {len(table)} started, "
        f"{finished} finished."
    ]
    values = [f"{short_name(path)} = {display(best[path])}" for path in data.paths if best[path] == best[path]]
    if values:
        sentences.append(f"Configuration: {', '.join(values)}.")
    if measured:
        sentences.append(f"Protocol: {measured}.")
    sentences.append(f"{_against_default(rows, goal, findings)}{_against_floor(best, goal)}.")
    if finished > 1 and findings.best != findings.default:
        sentences.append(_selection(data, goal, finished))
    if len(data.goals) > 1 and (front := findings.pareto_trials):
        goals = " and ".join(map(title, data.goals))
        sentences.append(
            f"Pareto front of {goals}: trial {', '.join(map(str, front))}. The ranking uses the first goal."
        )
    return sentences


def _interval(row: pd.Series) -> str:
    low, high = row.get(f"{FID}/low", math.nan), row.get(f"{FID}/high", math.nan)
    return "" if math.isnan(low) else f", mean over seeds, 95 % interval {low:.4g} to {high:.4g}"


def _against_default(rows: pd.DataFrame, goal: str, findings: Findings) -> str:
    best, default = findings.best, findings.default
    if default is None:
        return "The default configuration was not tried"
    if default == best:
        return "The best trial is the default configuration"
    row, value = rows.loc[default], rows.loc[default, goal]
    name = f"default configuration (trial {default}"
    if row["state"] == "finished" and math.isfinite(value) and value > 0:
        change = rows.loc[best, goal] / value - 1
        amount = percent(abs(change), digits=0 if abs(change) >= 0.01 else 1)
        level = f"{amount} {'below' if change <= 0 else 'above'}" if amount != "0.0 %" else "Within 0.1 % of"
        return f"{level} the {name}, {title(goal)} {value:.4g})"
    reached = f", {title(goal)} {value:.4g}" if math.isfinite(value) else ""
    return f"The {name}) {row['state']} at step {row['step']}{reached}"


def _selection(data: SweepData, goal: str, finished: int) -> str:
    """Say that the best of many measurements overstates how good its configuration is, and how to measure it."""
    name = shorten(data.name)
    confirm = data.param("confirm", "0")
    how = (
        f"the sweep {name}-confirmed measures it on seeds that the search has not seen"
        if confirm not in ("0", "")
        else f"--resume {name} --confirm 3 trains the best three and the default again on new seeds"
    )
    return (
        f"Part of this is selection, as the lowest of {finished} values of {title(goal)} is also the luckiest; {how}."
    )


def _against_floor(row: pd.Series, goal: str) -> str:
    floor = row.get(FID_FLOOR, math.nan)
    multiple = times_floor(row[goal], floor) if goal == FID else ""
    return f"; {multiple}" if multiple else ""


def times_floor(fid: float, floor: float) -> str:
    """Word a FID as a multiple of its floor; empty if the floor is unknown."""
    if not math.isfinite(floor) or floor <= 0:
        return ""
    ratio = fid / floor
    return (
        f"{ratio:.{1 if ratio < 100 else 0}f} times the floor of {floor:.3g} (FID between two halves of the real data)"
    )


def _no_answer(findings: Findings) -> str:
    data, table = findings.data, findings.table
    if table.empty:
        return "MLflow contains no trial of this sweep."
    states = ", ".join(f"{count} {shorten(state)}" for state, count in table["state"].value_counts().items())
    finished = table[table["state"] == "finished"]
    if len(finished) and not finished["feasible"].any():
        return f"No finished trial satisfies the constraints {shorten(data.param('constraints'))} ({states})."
    return f"No trial finished with a finite {title(data.goals[0])} ({states})."

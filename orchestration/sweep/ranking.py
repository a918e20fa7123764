"""Results of a sweep: the ranking as a table and CSV, the best configuration, and the next commands."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.table import Table

from orchestration.storage import trial_folder
from orchestration.store.location import url_or_path
from orchestration.sweep.config import SweepConfig, read_constraint
from orchestration.sweep.rank import rank_trials
from orchestration.sweep.search_space import SearchSpace
from orchestration.sweep.study import LAST_RESULT, REASON, REJECTED, SweepStudy
from orchestration.sweep.ticket import trial_config
from orchestration.terminal.format import format_value, short_name, table_console
from orchestration.tracking.schema import TRACEBACK
from soflow.config_files import to_yaml
from soflow.files import write_atomic
from soflow.statistics import pareto_front

SHOWN = 60
"""Trials in the printed ranking; trials.csv has all."""
STATES = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "stopped", TrialState.FAIL: "failed"}
METRICS = ("fid", "kid", "class_consistency", "fid_floor", "time/train_s", "time/step_ms", "memory/peak_mib")


def ranking(trials: list[FrozenTrial], config: SweepConfig, space: SearchSpace, folder: Path) -> pd.DataFrame:
    """Make a row per trial that ended: finished ones by the first goal, stopped ones by step and goal, failed ones.

    Finished trials that break a constraint follow those that keep all of them. With several goals the column `pareto`
    marks the Pareto front.
    """
    trials = [trial for trial in trials if trial.state in STATES]
    constrained = (read_constraint(constraint).metric for constraint in config.constraints)
    shown = list(dict.fromkeys((*METRICS, *config.goals, *constrained)))
    columns = ["trial", "state", "step", *config.goals, "reason", "folder"]
    table = pd.DataFrame(
        [
            {"trial": trial.number, **space.point(trial.params), **_result(trial, config.goals, shown)}
            | {"folder": url_or_path(trial_folder(folder, trial.number))}
            for trial in trials
        ],
        columns=None if trials else columns,
    )
    breaks = [any(excess > 0 for excess in trial.constraints.values()) for trial in trials]
    table["feasible"] = [not broken for broken in breaks]
    if len(config.goals) > 1:
        finished = table["state"] == "finished"
        table["pareto"] = False
        feasible = finished & table["feasible"]
        if feasible.any():
            table.loc[feasible, "pareto"] = pareto_front(table.loc[feasible, list(config.goals)].to_numpy())
    table = rank_trials(table, list(config.goals))
    if config.constraints:
        table["feasible"] &= table["state"] == "finished"
    else:
        table = table.drop(columns="feasible")
    return table


def _result(trial: FrozenTrial, goals: Iterable[str], shown: list[str]) -> dict[str, Any]:
    result = trial.user_attrs.get(LAST_RESULT, {})
    metrics = dict.fromkeys(goals, math.nan) | result.get("metrics", {})
    return {
        "state": STATES[trial.state],
        "step": result.get("step", 0),
        **{name: metrics[name] for name in shown if name in metrics},
        "reason": trial.user_attrs.get(REASON, ""),
    }


@dataclass(frozen=True)
class Summary:
    """Result of a sweep, for logging."""

    num_trials: int
    metrics: dict[str, float]
    files: list[Path]


def write_summary(study: SweepStudy) -> Summary:
    """Write trials.csv and best.yaml, and print the ranking and the next commands.

    Cases are not ranked: a single seed says little, and the report compares them over all seeds.
    """
    config, folder = study.config, study.folder
    table = ranking(study.trials(), config, study.space, folder)
    summary = Summary(len(table), {}, [folder / "trials.csv"])
    write_atomic(summary.files[0], table.to_csv(index=False))
    console = table_console()
    if not config.cases:
        console.print(_as_rich(table.head(SHOWN), [dimension.path for dimension in study.space.dimensions]))
        if len(table) > SHOWN:
            console.print(f"{len(table) - SHOWN} more in trials.csv", highlight=False)
    best = table.iloc[0]
    if best["state"] == "finished" and not best.get("feasible", True):
        console.print(f"No finished trial keeps to {' and '.join(config.constraints)}.", highlight=False)
    elif best["state"] == "finished":
        summary.files.append(folder / "best.yaml")
        point = study.ticket(int(best["trial"])).point
        write_atomic(summary.files[-1], to_yaml(trial_config(config.run, point, config.cases)))
        summary.metrics.update({f"best/{name}": best[name] for name in METRICS if name in table})
        summary.metrics.update({"best/trial": int(best["trial"]), "rejected_points": len(study.rejected())})
        if not config.cases:
            _print_best(console, best, summary.files[-1])
    else:
        reasons = Counter(filter(None, table["reason"].astype(str)))
        often = f", most often because: {reasons.most_common(1)[0][0]}" if reasons else ""
        crash = next(folder.glob(f"trials/*/{TRACEBACK}"), None)
        where = f" Traceback: {crash}" if crash else ""
        console.print(f"No trial finished{often}.{where}", highlight=False, soft_wrap=True)
    if rejected := Counter(str(trial.user_attrs[REJECTED]) for trial in study.rejected()):
        count = rejected.total()
        points = "1 point was" if count == 1 else f"{count} points were"
        console.print(f"{points} unusable and drawn again, most often: {rejected.most_common(1)[0][0]}")
    if study.exhausted:
        console.print(f"The search ended after {len(table)} trials: no other valid point was found.")
    for line in (f"all trials:  {summary.files[0]}", f"compare:     {config.mlflow_ui}"):
        console.print(line, soft_wrap=True, highlight=False)
    return summary


def _print_best(console: Console, best: pd.Series, path: Path) -> None:
    floor = ""
    if "fid_floor" in best:  # unless the reference is a file of statistics
        floor = f", {best['fid'] / best['fid_floor']:.1f} times the real-data floor of {best['fid_floor']:.3g}"
    folder = trial_folder(path.parent, int(best["trial"]))
    grids = sorted((folder / "grids").glob("step-????????.png"))
    for line in (
        f"best:        trial {best['trial']}, FID {best['fid']:.4g}{floor}",
        *(f"its samples: {url_or_path(grid)}" for grid in grids[-1:]),
        f"train it:    python experiments/train.py --config {path}",
    ):
        console.print(line, soft_wrap=True, highlight=False)


def _as_rich(table: pd.DataFrame, paths: list[str]) -> Table:
    view = Table(title="ranking", title_justify="left")
    shown = {
        "trial": "trial",
        **{path: short_name(path) for path in paths},
        "step": "step",
        "fid": "FID",
        "kid": "KID",
        "class_consistency": "class consistency",
        "time/train_s": "train s",
        "memory/peak_mib": "MiB",
        "feasible": "feasible",
        "pareto": "Pareto",
        "state": "state",
    }
    shown = {column: title for column, title in shown.items() if column in table}
    for title in shown.values():
        view.add_column(title, justify="right", no_wrap=True)
    for _, row in table.iterrows():
        view.add_row(*(format_value(row[column]) for column in shown))
    return view

"""What a sweep leaves behind: the ranking as a table and CSV, the best configuration, pointers to the rest."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from optuna.trial import FrozenTrial, TrialState
from ray.tune.experiment import Trial
from rich.console import Console
from rich.table import Table

from orchestration.config import SweepConfig, read_constraint
from orchestration.storage import trial_folder
from orchestration.sweep.ray_search import current_point
from orchestration.sweep.search_space import trial_config
from orchestration.sweep.study import EXCHANGES, REASON, load_study
from orchestration.terminal.format import format_value, short_name, table_console
from soflow.config_files import to_yaml

STATES = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "stopped", TrialState.FAIL: "failed"}
METRICS = ("fid", "kid", "class_consistency", "fid_floor", "time/train_s", "time/step_ms", "memory/peak_mib")


def ranking(config: SweepConfig, folder: Path, trials: list[Trial]) -> pd.DataFrame:
    """One row per trial: finished ones by the first goal, then stopped ones by step and it, then failed ones.

    Finished trials that break a constraint come after those that keep them all. With several goals the column `pareto`
    marks those trials that no other beats in one goal without being worse in another.
    """
    study = load_study(config, folder)
    records = study.get_trials(deepcopy=False)
    infeasible = [trial.number for trial in records if any(excess > 0 for excess in trial.constraints.values())]
    shown = dict.fromkeys((*METRICS, *config.goals))
    shown |= dict.fromkeys(read_constraint(constraint)[0] for constraint in config.constraints)
    rows = []
    for trial in trials:
        result, record = trial.last_result or {}, records[trial.config["number"]]
        metrics = dict.fromkeys(config.goals, math.nan) | result | result.get("metrics", {})
        rows.append(
            {
                "trial": trial.config["number"],
                **current_point(trial.config),
                "state": STATES[record.state],
                "step": result.get("step", 0),
                **{name: metrics[name] for name in shown if name in metrics},
                **({"exchanges": _told(record)} if config.early_stopping.kind == "pbt" else {}),
                "reason": record.user_attrs.get(REASON, ""),
                "folder": str(trial_folder(folder, trial.config["number"])),
            }
        )
    table = pd.DataFrame(rows)
    if config.constraints:
        table["feasible"] = (table["state"] == "finished") & ~table["trial"].isin(infeasible)
    if len(config.goals) > 1:
        table["pareto"] = table["trial"].isin([trial.number for trial in study.best_trials])
    order = table["state"].map({"finished": 0, "stopped": 1, "failed": 2})
    breaks = table["trial"].isin(infeasible)
    return (
        table.assign(_order=order, _breaks=breaks, _step=-table["step"])
        .sort_values(["_order", "_breaks", "_step", *config.goals])
        .drop(columns=["_order", "_breaks", "_step"])
        .reset_index(drop=True)
    )


def _told(record: FrozenTrial) -> str:
    """What a trial of a population took over: at which steps, from which trials."""
    return ", ".join(f"{made['step']}: from {made['donor']}" for made in record.user_attrs.get(EXCHANGES, []))


@dataclass(frozen=True)
class Summary:
    """A sweep's end, for its record."""

    num_trials: int
    metrics: dict[str, float]
    files: list[Path]


def write_summary(config: SweepConfig, folder: Path, trials: list[Trial]) -> Summary:
    """Write trials.csv and best.yaml, print the ranking and what to do next; cases are not ranked by single seeds."""
    table = ranking(config, folder, trials)
    paths = list(trials[0].config["point"])
    summary = Summary(len(table), {}, [folder / "trials.csv"])
    table.to_csv(summary.files[0], index=False)
    console = table_console()
    if not config.cases:
        console.print(_as_rich(table, paths))
    best = table.iloc[0]
    if best["state"] == "finished" and not best.get("feasible", True):
        console.print(f"no finished trial keeps to {' and '.join(config.constraints)}", highlight=False)
    elif best["state"] == "finished":
        by_number = {trial.config["number"]: current_point(trial.config) for trial in trials}
        summary.files.append(folder / "best.yaml")
        summary.files[-1].write_text(to_yaml(trial_config(config.run, by_number[best["trial"]], config.cases)))
        summary.metrics.update({f"best/{name}": best[name] for name in METRICS if name in table})
        summary.metrics["best/trial"] = int(best["trial"])
        if not config.cases:
            _say_best(console, best, summary.files[-1])
    else:
        console.print("no trial reached its last step; failure.txt in a trial's folder tells more", highlight=False)
    for line in (f"all trials:  {summary.files[0]}", f"compare:     {config.mlflow_ui}"):
        console.print(line, soft_wrap=True, highlight=False)
    return summary


def _say_best(console: Console, best: pd.Series, path: Path) -> None:
    grids = sorted((Path(best["folder"]) / "grids").glob(f"step-{'?' * 8}.png"))
    floor = ""
    if "fid_floor" in best:  # unless the reference is a file of statistics
        floor = f", {best['fid'] / best['fid_floor']:.1f} times the real data's own {best['fid_floor']:.3g}"
    note = f", but its weights come from others (exchanges {best['exchanges']})" if best.get("exchanges") else ""
    for line in (
        f"best:        trial {best['trial']}, FID {best['fid']:.4g}{floor}",
        f"its samples: {grids[-1]}",
        f"train it:    python experiments/train.py --config {path}{note}",
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
        "class_consistency": "consistency",
        "time/train_s": "train s",
        "memory/peak_mib": "MiB",
        "feasible": "feasible",
        "pareto": "pareto",
        "state": "state",
    }
    shown = {column: title for column, title in shown.items() if column in table}
    for title in shown.values():
        view.add_column(title, justify="right", no_wrap=True)
    for _, row in table.iterrows():
        view.add_row(*(format_value(row[column]) for column in shown))
    return view

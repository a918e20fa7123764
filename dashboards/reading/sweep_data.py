"""A sweep, read once from MLflow and its Optuna study into one plain object.

Names, parameters, tags and failure reasons are user input: escape them where they are shown.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from dashboards.reading.mlflow_runs import (
    RUN_STATES,
    connect,
    differing_params,
    find_sweep,
    goals_of,
    one_line,
    param_of,
    read_artifact,
    read_history,
)
from orchestration.storage import SWEEP_FILE
from orchestration.tracking import schema

if TYPE_CHECKING:
    import optuna
    from mlflow.entities import Run
    from optuna.trial import FrozenTrial

COMPARED_OVER_STEPS = (
    schema.TRAIN_S,
    schema.CONSISTENCY_LOSS,
    schema.FLOW_DISTANCE,
    schema.ODE_VIOLATION,
    schema.TRUE_DISTANCE,
    schema.TRUE_VIOLATION,
)
"""Metrics whose histories a comparison uses, besides the first goal."""


@dataclass(frozen=True)
class SweepData:
    """Everything that the analysis of a sweep needs, read once.

    Attributes:
        name: name of the sweep.
        tracking_uri: MLflow server or database.
        run: the sweep's run in MLflow, None if it was permanently deleted.
        runs: the trials' runs by trial number.
        trials: one row per trial by number: `trial`, `run_id`, `state` (finished, stopped, failed, interrupted or
            running), `step` (last reported step), `reason` (of a failure), `wall_s`, then a column per searched path
            and one per metric, named as in MLflow. A metric is its final or else its last value; missing values are
            NaN.
        paths: the searched paths; `case` and `seed` for a comparison.
        goals: metrics to minimize; the first one ranks.
        study: copy of the Optuna study in memory, None if it cannot be read.
        notes: sentences about data that could not be read.
        histories: by metric, columns trial, step and value, of the metrics that are analyzed over steps.
        configuration: the sweep's configuration as YAML; empty if it was not attached to the run.
    """

    name: str
    tracking_uri: str
    run: Run | None
    runs: dict[int, Run]
    trials: pd.DataFrame
    paths: list[str]
    goals: list[str]
    study: optuna.Study | None
    notes: list[str]
    histories: dict[str, pd.DataFrame] = field(repr=False)
    configuration: str = field(repr=False)

    @property
    def is_comparison(self) -> bool:
        """True if the sweep compares cases instead of searching."""
        return schema.CASE in self.paths

    def param(self, name: str, default: str = "") -> str:
        return param_of(self.run, name, default)


def read_sweep(tracking_uri: str, name_or_id: str) -> SweepData:
    """Read a sweep by its name, its folder or the id of its run.

    Raises:
        TrackingError: if the server does not answer, or no sweep, or more than one, matches.
    """
    client = connect(tracking_uri)
    with one_line(tracking_uri):
        parent, children = find_sweep(client, name_or_id)
        name = parent.info.run_name if parent else children[0].data.tags.get(schema.SWEEP, name_or_id)
        runs = _by_number(children)
        notes = [] if parent else ["The sweep's run was deleted from MLflow; information stored only in it is missing."]
        if parent and parent.info.lifecycle_stage == "deleted":
            notes.append("The sweep's run is marked as deleted in MLflow.")
        from dashboards.reading.study import read_study  # imports optuna
        from orchestration.sweep.study import accepted

        study, note = read_study(client, parent, children)
        notes += [note] if note else []
        started = accepted(study.get_trials(deepcopy=False)) if study is not None else []
        if len(started) > len(runs):
            notes.append(f"MLflow contains {len(runs)} of the study's {len(started)} trials.")
        goals, paths = goals_of(parent), _searched(started, runs)
        metrics = [goals[0], *(COMPARED_OVER_STEPS if schema.CASE in paths else ())]
        histories = {metric: read_history(client, runs, metric) for metric in metrics}
        rungs = {number: run for number, run in runs.items() if goals[0] not in run.data.metrics}
        rung_history = read_history(client, rungs, f"{schema.RUNG}{goals[0]}")
        trials = _table(runs, paths, started, pd.concat([histories[goals[0]], rung_history]))
        content = read_artifact(client, parent.info.run_id, SWEEP_FILE) if parent else None
        configuration = content.decode(errors="replace") if content else ""
        return SweepData(name, tracking_uri, parent, runs, trials, paths, goals, study, notes, histories, configuration)


def _by_number(children: list[Run]) -> dict[int, Run]:
    """Map trial numbers to runs; runs without a number follow the others."""
    runs, unnumbered = {}, []
    for run in sorted(children, key=lambda run: run.info.start_time):
        number = run.data.tags.get(schema.NUMBER, "")
        if number.isdecimal() and int(number) not in runs:
            runs[int(number)] = run
        else:
            unnumbered.append(run)
    return dict(sorted(runs.items())) | dict(enumerate(unnumbered, max(runs, default=-1) + 1))


def _searched(started: list[FrozenTrial], runs: dict[int, Run]) -> list[str]:
    """List the paths that the study searched; without a study, the parameters that differ between trials."""
    if runs and all(schema.CASE in run.data.tags for run in runs.values()):
        return [schema.CASE, "seed"]
    if started:
        return list(dict.fromkeys(path for trial in started for path in trial.distributions))
    return differing_params(run.data.params for run in runs.values())


def _table(runs: dict[int, Run], paths: list[str], started: list[FrozenTrial], history: pd.DataFrame) -> pd.DataFrame:
    last_steps = history.groupby("trial")["step"].max().to_dict()
    params_of = {trial.number: trial.params for trial in started}
    rows = []
    for number, run in runs.items():
        data, info = run.data, run.info
        latest = {name: value for name, value in data.metrics.items() if not name.startswith(schema.FINAL)}
        # A trial that was stopped at a rung has reports of a shorter training only.
        rung = {name.removeprefix(schema.RUNG): value for name, value in latest.items() if name.startswith(schema.RUNG)}
        final = {name.removeprefix(schema.FINAL): value for name, value in data.metrics.items() if name not in latest}
        # Conditional dimensions without effect in a trial stay empty, although its run logs the default value.
        used = [path for path in paths if path in params_of.get(number, {path})]
        rows.append(
            {
                "trial": number,
                "run_id": info.run_id,
                "state": data.tags.get(schema.STATE) or RUN_STATES.get(info.status, "interrupted"),
                "step": last_steps.get(number, 0),
                "reason": data.tags.get(schema.FAILURE, ""),
                "wall_s": (info.end_time - info.start_time) / 1e3 if info.end_time else math.nan,
                **{path: parse_param(data.params.get(path, data.tags.get(path))) for path in used},
                **rung,
                **latest,
                **final,
            }
        )
    columns = ["trial", "run_id", "state", "step", "reason", "wall_s", *paths]
    return pd.DataFrame(rows, columns=list(dict.fromkeys([*columns, *(name for row in rows for name in row)])))


def parse_param(text: str | None) -> Any:
    """Convert a parameter logged as text to a number where possible; NaN if it is missing."""
    if text is None:
        return math.nan
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text

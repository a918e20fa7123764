"""A sweep as MLflow and its Optuna study hold it, read into one plain object for reports and views.

Everything in it was written by others: names, parameters, tags and reasons are to be escaped where they are shown.
"""

from __future__ import annotations

import math
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd
import yaml

from dashboards.reading.mlflow_runs import connect, find_sweep, one_line, read_artifact
from orchestration.storage import SWEEP_FILE
from orchestration.sweep.search_space import CASE

if TYPE_CHECKING:
    import optuna
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from optuna.trial import FrozenTrial

NUMBER = "optuna_number"
"""The tag of a trial's number."""
PROTOCOL = (
    "fid_feature_network",
    "fid_feature_weights_sha256",
    "fid_num_samples",
    "fid_reference",
    "fid_reference_fingerprint",
    "fid_num_references",
    "nfe",
)
"""Tags that must agree for two FIDs to be comparable."""
ENDS = {"RUNNING": "running", "FINISHED": "finished", "FAILED": "failed", "KILLED": "interrupted"}
"""What a trial without a state is, by MLflow's status."""
READERS = 8
"""Requests to a server at a time."""


@dataclass(frozen=True)
class SweepRecord:
    """All that a report needs, read once.

    Attributes:
        name: of the sweep.
        run: its own run in MLflow, None if that is gone for good.
        runs: the trials' runs by number.
        trials: one row per trial by number: `trial`, `run_id`, `state` (finished, stopped, failed, interrupted or
            running), `step` (the last that reported), `reason`, `wall_s`, then a column per searched path and one per
            metric, both under their names in MLflow; what is missing is NaN. A metric is its final value, or the last
            one; a path that a population changed has its last value.
        paths: the searched paths.
        goals: the metrics to minimise; the first one ranks.
        study: a copy in memory of the Optuna study, None if it cannot be had.
        reports: the study with the values over steps, which is another one where there are several goals.
        notes: what could not be read, in sentences.
    """

    name: str
    run: Run | None
    runs: dict[int, Run]
    trials: pd.DataFrame
    paths: list[str]
    goals: list[str]
    study: optuna.Study | None
    reports: optuna.Study | None
    notes: list[str]
    client: MlflowClient = field(repr=False)
    histories: dict[str, pd.DataFrame] = field(repr=False)

    def param(self, name: str, default: str = "") -> str:
        """A parameter of the sweep's run, or a tag, in which some parameters are kept because they may change."""
        data = self.run.data if self.run else None
        return (data.params.get(name) or data.tags.get(name) or default) if data else default

    def history(self, metric: str) -> pd.DataFrame:
        """Columns trial, step, value: what MLflow holds of a metric of all trials, by trial and step."""
        if metric not in self.histories:
            self.histories[metric] = _history(self.client, self.runs, metric)
        return self.histories[metric]

    def images(self, number: int) -> dict[str, dict[int, str]]:
        """Artifacts of a trial's pictures by their name, such as "samples", and step."""
        found: dict[str, dict[int, str]] = {}
        for item in self.client.list_artifacts(self.runs[number].info.run_id, "images"):
            if match := re.fullmatch(r"images/(.+?)[+%]step[+%](\d+)[+%]timestamp[+%].+\.png", item.path):
                found.setdefault(match[1].replace("~", "/"), {})[int(match[2])] = item.path
        return found

    def artifact(self, run: Run, path: str) -> bytes | None:
        """Content of a run's artifact; None if there is none."""
        return read_artifact(self.client, run.info.run_id, path)


def read_sweep(tracking_uri: str, name_or_id: str) -> SweepRecord:
    """Read a sweep by its name, its folder or its run's id.

    Raises:
        TrackingError: if the server does not answer, or there is no such sweep, or several.
    """
    client = connect(tracking_uri)
    with one_line(tracking_uri):
        parent, children = find_sweep(client, name_or_id)
        name = parent.info.run_name if parent else children[0].data.tags.get("sweep", name_or_id)
        runs = _by_number(children)
        notes = [] if parent else ["The sweep's own run is gone from MLflow; what it alone knew is missing."]
        if parent and parent.info.lifecycle_stage == "deleted":
            notes.append("The sweep's own run is marked as deleted in MLflow.")
        from dashboards.reading.study import read_study  # imports optuna

        study, reports, note = read_study(client, parent, children)
        notes += [note] if note else []
        begun = study.get_trials(deepcopy=False) if study is not None else []
        if len(begun) > len(runs):
            notes.append(f"MLflow holds {len(runs)} of the study's {len(begun)} trials.")
        goals = _goals(parent)
        paths = _searched(begun, runs)
        histories = {goals[0]: _history(client, runs, goals[0])}
        trials = _table(runs, paths, begun, histories[goals[0]])
        return SweepRecord(name, parent, runs, trials, paths, goals, study, reports, notes, client, histories)


def _by_number(children: list[Run]) -> dict[int, Run]:
    """Trials by their number; one without a number comes behind."""
    runs, others = {}, []
    for run in sorted(children, key=lambda run: run.info.start_time):
        number = run.data.tags.get(NUMBER, "")
        if number.isdecimal() and int(number) not in runs:
            runs[int(number)] = run
        else:
            others.append(run)
    behind = max(runs, default=-1) + 1
    return dict(sorted(runs.items())) | {behind + position: run for position, run in enumerate(others)}


def _goals(parent: Run | None) -> list[str]:
    try:
        goals = yaml.safe_load(parent.data.params["goals"])
    except (AttributeError, KeyError, yaml.YAMLError):
        goals = None
    return [str(goal) for goal in goals] if isinstance(goals, list) and goals else ["fid"]


def _searched(begun: list[FrozenTrial], runs: dict[int, Run]) -> list[str]:
    """What the study searched; without it, what differs between trials."""
    if runs and all(CASE in run.data.tags for run in runs.values()):
        return [CASE, "seed"]
    if begun:
        return list(dict.fromkeys(path for trial in begun for path in trial.distributions))
    values: dict[str, set[str]] = {}
    for run in runs.values():
        for name, value in run.data.params.items():
            values.setdefault(name, set()).add(value)
    return [name for name, different in values.items() if len(different) > 1]


def _table(runs: dict[int, Run], paths: list[str], begun: list[FrozenTrial], history: pd.DataFrame) -> pd.DataFrame:
    last_steps = history.groupby("trial")["step"].max().to_dict()
    chosen = {trial.number: trial.params for trial in begun}
    rows = []
    for number, run in runs.items():
        data, info = run.data, run.info
        latest = {name: value for name, value in data.metrics.items() if not name.startswith("final/")}
        final = {name.removeprefix("final/"): value for name, value in data.metrics.items() if name not in latest}
        # A dimension that had no effect in a trial was not chosen there, though its run holds the base's value.
        used = {path for path in paths if path in chosen.get(number, {path})}
        rows.append(
            {
                "trial": number,
                "run_id": info.run_id,
                "state": data.tags.get("state") or ENDS.get(info.status, "interrupted"),
                "step": last_steps.get(number, 0),
                "reason": data.tags.get("failure", ""),
                "wall_s": (info.end_time - info.start_time) / 1e3 if info.end_time else math.nan,
                **{path: _value(data, path) for path in paths if path in used},
                **latest,
                **final,
            }
        )
    columns = ["trial", "run_id", "state", "step", "reason", "wall_s", *paths]
    return pd.DataFrame(rows, columns=list(dict.fromkeys([*columns, *(name for row in rows for name in row)])))


def _value(data: Any, path: str) -> Any:
    """A searched path's value in a run: the last one, where a population changed it while the run trained."""
    if (changed := data.metrics.get(f"point/{path}")) is not None:
        return changed
    return typed(data.params.get(path, data.tags.get(path)))


def typed(text: str | None) -> Any:
    """A parameter as MLflow keeps it, as a number where it is one."""
    if text is None:
        return math.nan
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _history(client: MlflowClient, runs: dict[int, Run], metric: str) -> pd.DataFrame:
    having = {number: run.info.run_id for number, run in runs.items() if metric in run.data.metrics}
    with ThreadPoolExecutor(READERS if client.tracking_uri.startswith("http") else 1) as readers:
        found = readers.map(partial(client.get_metric_history, key=metric), having.values())
        rows = [(number, row.step, row.value) for number, rows in zip(having, found, strict=True) for row in rows]
    table = pd.DataFrame(rows, columns=["trial", "step", "value"])
    return table.sort_values(["trial", "step"], kind="stable").reset_index(drop=True)


def protocol_of(run: Run) -> tuple[tuple[str, str], ...]:
    """By what a trial's FID was measured; empty if it says nothing."""
    return tuple((name, run.data.tags[name]) for name in PROTOCOL if name in run.data.tags)


def configuration_of(record: SweepRecord) -> str:
    """The sweep's configuration as YAML, as it was attached to its run; empty if it was not."""
    content = record.artifact(record.run, SWEEP_FILE) if record.run else None
    return content.decode(errors="replace") if content else ""

"""Access to MLflow: connect to a server or a database, find a sweep's runs, read artifacts and histories."""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import yaml

from orchestration.store.location import is_url, url_or_path
from orchestration.store.parts import SPOOL
from orchestration.tracking.mlflow_writer import KEY_TAG, MLFLOW_SETTINGS
from orchestration.tracking.schema import FID, FOLDER, KIND, PARENT, SWEEP, SWEEP_KIND, TRIAL_KIND
from orchestration.tracking.tracker import ORIGIN_FILE
from orchestration.tracking.uri import TrackingError, check_tracking, database_of, root_cause
from soflow.config_base import without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

READERS = 8
"""Concurrent requests to a server."""
RUN_STATES = {"RUNNING": "running", "FINISHED": "finished", "FAILED": "failed", "KILLED": "interrupted"}
"""State of a trial without a state tag, by MLflow's run status."""


def connect(tracking_uri: str) -> MlflowClient:
    """Make a client of a reachable server or an existing database.

    Raises:
        TrackingError: if the server does not answer or the database does not exist.
    """
    if not tracking_uri.startswith(("http://", "https://")) and (database := database_of(tracking_uri)):
        if not database.exists():
            raise TrackingError(f"tracking_uri = {tracking_uri}: database not found; pass the database of the sweep")
    else:
        check_tracking(tracking_uri)
    for name, value in MLFLOW_SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return MlflowClient(tracking_uri=tracking_uri)


def concurrent_readers(client: MlflowClient) -> int:
    """Choose the number of concurrent requests: SQLite answers one at a time."""
    return READERS if client.tracking_uri.startswith("http") else 1


@contextmanager
def one_line(tracking_uri: str) -> Iterator[None]:
    """Turn errors of MLflow, its database and the network into one-line TrackingErrors."""
    try:
        yield
    except TrackingError:
        raise
    except Exception as error:  # MLflow, its store, its database driver and the network have no common base class
        place = f"tracking_uri = {without_password(tracking_uri)}"
        raise TrackingError(f"{place}: cannot be read ({root_cause(error)[:300]})") from error


def find_sweep(client: MlflowClient, name_or_id: str) -> tuple[Run | None, list[Run]]:
    """Find the run of a sweep, None if it was permanently deleted, and the runs of its trials.

    Raises:
        TrackingError: if no sweep, or more than one, matches.
    """
    from mlflow.exceptions import MlflowException

    experiments = all_experiments(client)
    try:
        parent = client.get_run(name_or_id) if re.fullmatch(r"[0-9a-f]{32}", name_or_id) else None
    except MlflowException:
        parent = None
    if parent is None:
        parent = _find_by_name(client, experiments, name_or_id)
    elif parent.data.tags.get(KIND) != SWEEP_KIND:
        raise TrackingError(f"run {name_or_id}: is not a sweep; pass the id of the trials' parent run, or its name")
    if parent is not None:
        return parent, _search(client, [parent.info.experiment_id], PARENT, parent.info.run_id)
    children = _search(client, experiments, PARENT, name_or_id) or [
        run for run in _search(client, experiments, SWEEP, name_or_id) if run.data.tags.get(KIND) == TRIAL_KIND
    ]
    parents = {run.data.tags.get(PARENT) for run in children}
    if len(parents) > 1:
        raise TrackingError(f"run {name_or_id}: {len(parents)} deleted sweeps have this name; pass the id of one")
    if not children:
        names = sorted({run.info.run_name for run in _search(client, experiments, KIND, SWEEP_KIND)})
        known = f"sweeps: {', '.join(names[-8:])}" if names else "MLflow contains no sweep"
        raise TrackingError(f"run {name_or_id}: no sweep has this name or id; {known}")
    return None, children


def all_experiments(client: MlflowClient) -> list[str]:
    return [experiment.experiment_id for experiment in client.search_experiments()]


def param_of(run: Run | None, name: str, default: str = "") -> str:
    """Get a parameter of a run, or the tag that replaces it for parameters that a resume may change."""
    data = run.data if run else None
    return (data.params.get(name) or data.tags.get(name) or default) if data else default


def listed(text: str) -> list[str]:
    """Parse a list that was logged as a parameter or tag; empty if the text is none."""
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError:
        return []
    return [str(value) for value in values] if isinstance(values, list) else []


def goals_of(run: Run | None) -> list[str]:
    """Parse the metrics that a sweep minimizes; FID if its run does not name them."""
    return listed(param_of(run, "goals")) or [FID]


def differing_params(params_of_trials: Iterable[dict[str, str]]) -> list[str]:
    """List the parameters with more than one value."""
    values: dict[str, set[str]] = {}
    for params in params_of_trials:
        for name, value in params.items():
            values.setdefault(name, set()).add(value)
    return [name for name, different in values.items() if len(different) > 1]


def read_artifact(client: MlflowClient, run_id: str, path: str) -> bytes | None:
    """Read an artifact; None if it does not exist or cannot be read."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return Path(client.download_artifacts(run_id, path, folder)).read_bytes()
        except Exception:  # artifact stores have no common error class
            return None


def read_history(client: MlflowClient, runs: dict[int, Run], metric: str) -> pd.DataFrame:
    """Read a metric of all trials: columns trial, step, value, sorted by trial and step."""
    run_ids = {number: run.info.run_id for number, run in runs.items() if metric in run.data.metrics}
    with ThreadPoolExecutor(concurrent_readers(client)) as pool:
        histories = pool.map(partial(client.get_metric_history, key=metric), run_ids.values())
        rows = [
            (number, point.step, point.value)
            for number, points in zip(run_ids, histories, strict=True)
            for point in points
        ]
    table = pd.DataFrame(rows, columns=["trial", "step", "value"])
    return table.sort_values(["trial", "step"], kind="stable").reset_index(drop=True)


def _find_by_name(client: MlflowClient, experiments: list[str], name: str) -> Run | None:
    """Find the sweep of this name or folder, by comparing here: MLflow's filters cannot quote every name."""
    from mlflow.entities import ViewType

    folder = name.rstrip("/") if is_url(name) else url_or_path(Path(name).absolute())
    matches = [
        run
        for run in _search(client, experiments, KIND, SWEEP_KIND, ViewType.ALL)
        if name in (run.info.run_name, run.data.tags.get(SWEEP)) or run.data.tags.get(FOLDER) == folder
    ]
    matches = [run for run in matches if run.info.lifecycle_stage == "active"] or matches
    if len(matches) > 1 and (key := _key_of(folder)):  # the name was used again, or another machine has such a path
        matches = [run for run in matches if run.data.tags.get(KEY_TAG) == key] or matches
    if len(matches) > 1:
        ids = ", ".join(run.info.run_id for run in matches)
        raise TrackingError(f"run {name}: {len(matches)} sweeps have this name; pass an id: {ids}")
    return matches[0] if matches else None


def _key_of(folder: str) -> str | None:
    """Return the key under which the records of a sweep's folder are sent; None if the folder is not here."""
    try:
        return f"{Path(folder).name}@{(Path(folder) / SPOOL / ORIGIN_FILE).read_text().strip()}"
    except OSError:
        return None


def _search(client: MlflowClient, experiments: list[str], tag: str, value: str, view: int = 1) -> list[Run]:
    """Find all runs with a tag; `view` is MLflow's ViewType, by default active runs only."""
    quote = '"' if "'" in value else "'"
    runs, token = [], None
    while experiments:
        page = client.search_runs(experiments, f"tags.`{tag}` = {quote}{value}{quote}", view, 1000, page_token=token)
        runs += page
        if not (token := page.token):
            break
    return runs

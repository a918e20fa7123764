"""Finding a sweep's runs in MLflow, on a server or in a database, by name or id."""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from orchestration.tracking.mlflow_writer import MLFLOW_SETTINGS
from orchestration.tracking.schema import KIND, PARENT
from orchestration.tracking.uri import TrackingError, check_tracking, database_of, root_cause, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


def connect(tracking_uri: str) -> MlflowClient:
    """A client of a server that answers, or of a database that exists.

    Raises:
        TrackingError: if there is none, in one line.
    """
    if not tracking_uri.startswith(("http://", "https://")) and (database := database_of(tracking_uri)):
        if not database.exists():
            raise TrackingError(f"tracking_uri = {tracking_uri}: there is no such database; give the one of the sweep")
    else:
        check_tracking(tracking_uri)
    for name, value in MLFLOW_SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return MlflowClient(tracking_uri=tracking_uri)


@contextmanager
def one_line(tracking_uri: str) -> Iterator[None]:
    """Inside, errors of MLflow, its database and the network become one line."""
    try:
        yield
    except TrackingError:
        raise
    except Exception as error:  # MLflow, its store, its database driver and the network each have their own
        place = f"tracking_uri = {without_password(tracking_uri)}"
        raise TrackingError(f"{place}: cannot be read ({root_cause(error)[:300]})") from error


def find_sweep(client: MlflowClient, name_or_id: str) -> tuple[Run | None, list[Run]]:
    """A sweep's own run, None if it is gone for good, and those of its trials.

    Raises:
        TrackingError: if there is no such sweep, or several.
    """
    from mlflow.exceptions import MlflowException

    everywhere = [experiment.experiment_id for experiment in client.search_experiments()]
    try:
        parent = client.get_run(name_or_id) if re.fullmatch(r"[0-9a-f]{32}", name_or_id) else None
    except MlflowException:
        parent = None
    if parent is None:
        parent = _named(client, everywhere, name_or_id)
    elif parent.data.tags.get(KIND) != "sweep":
        raise TrackingError(f"run {name_or_id}: is no sweep; give the run above the trials, or its name")
    if parent is not None:
        return parent, _search(client, [parent.info.experiment_id], PARENT, parent.info.run_id)
    children = _search(client, everywhere, PARENT, name_or_id) or [
        run for run in _search(client, everywhere, "sweep", name_or_id) if run.data.tags.get(KIND) == "trial"
    ]
    parents = {run.data.tags.get(PARENT) for run in children}
    if len(parents) > 1:
        raise TrackingError(f"run {name_or_id}: several sweeps of this name were deleted; give an id of one")
    if not children:
        sweeps = sorted({run.info.run_name for run in _search(client, everywhere, KIND, "sweep")})
        known = f"there are {', '.join(sweeps[-8:])}" if sweeps else "there is none"
        raise TrackingError(f"run {name_or_id}: no sweep has this name or id; {known}")
    return None, children


def read_artifact(client: MlflowClient, run_id: str, path: str) -> bytes | None:
    """Content of a run's artifact; None if there is none or it cannot be had."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return Path(client.download_artifacts(run_id, path, folder)).read_bytes()
        except Exception:  # each kind of store has its own
            return None


def _named(client: MlflowClient, experiments: list[str], name: str) -> Run | None:
    """The sweep of this name or folder; compared here, because MLflow's filters cannot quote every name."""
    from mlflow.entities import ViewType

    sweeps = _search(client, experiments, KIND, "sweep", ViewType.ALL)
    folder = str(Path(name).absolute())
    found = [
        run
        for run in sweeps
        if name in (run.info.run_name, run.data.tags.get("sweep")) or run.data.tags.get("folder") == folder
    ]
    active = [run for run in found if run.info.lifecycle_stage == "active"]
    if len(found := active or found) > 1:
        raise TrackingError(
            f"run {name}: {len(found)} sweeps have this name; give an id: {', '.join(run.info.run_id for run in found)}"
        )
    return found[0] if found else None


def _search(client: MlflowClient, experiments: list[str], tag: str, value: str, view: int = 1) -> list[Run]:
    """All runs with a tag; `view` is MLflow's ViewType, by default of what is not deleted."""
    quote = '"' if "'" in value else "'"
    found, token = [], None
    while experiments:
        page = client.search_runs(experiments, f"tags.`{tag}` = {quote}{value}{quote}", view, 1000, page_token=token)
        found += page
        if not (token := page.token):
            break
    return found

"""A sweep's Optuna study, read from the sweep's folder, from a database, or from the copy attached to its run."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import optuna
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import TrialState

from orchestration.storage import STUDY_FILE, SWEEP_FILE
from orchestration.store.location import path_of
from orchestration.sweep.resume import saved_config
from orchestration.sweep.study_storage import first_study, open_journal
from orchestration.tracking.schema import FOLDER
from orchestration.tracking.uri import database_of, root_cause

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


def read_study(client: MlflowClient, parent: Run | None, children: list[Run]) -> tuple[optuna.Study | None, str]:
    """Copy a sweep's study into memory; None and the reason if it cannot be read."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder = _folder(parent, children)
    try:
        # Not the URL among the run's parameters: whoever wrote these could let this program open any database.
        if folder and (folder / SWEEP_FILE).exists() and (url := saved_config(folder).study_storage):
            return _read_database(url, folder.name)
        if folder and (folder / STUDY_FILE).exists():
            return _read_journal(folder / STUDY_FILE)
        if parent and any(item.path == STUDY_FILE for item in client.list_artifacts(parent.info.run_id)):
            with tempfile.TemporaryDirectory() as temporary:
                return _read_journal(Path(client.download_artifacts(parent.info.run_id, STUDY_FILE, temporary)))
    except Exception as error:  # Optuna, SQLAlchemy and the drivers have no common base class; files may be damaged
        return None, f"The Optuna study cannot be read ({root_cause(error)[:200]})."
    return None, "No Optuna study in the sweep's folder or attached to its run; figures that need it are missing."


def _read_journal(path: Path) -> tuple[optuna.Study | None, str]:
    journal = open_journal(path)
    return _copy(journal, first_study(journal) or ""), ""


def _read_database(url: str, name: str) -> tuple[optuna.Study | None, str]:
    """Copy a study from a database, in which nothing is created or changed."""
    if database := database_of(url):
        if not database.exists():
            return None, f"Optuna study not found at {url}; figures that need it are missing."
        url = f"sqlite:///file:{quote(str(database))}?mode=ro&uri=true"
    return _copy(RDBStorage(url, skip_table_creation=True), name), ""


def _folder(parent: Run | None, children: list[Run]) -> Path | None:
    """Find the sweep's folder from the tags of its run or of its trials."""
    if parent and parent.data.tags.get(FOLDER):
        return path_of(parent.data.tags[FOLDER])
    for run in children:
        if folder := run.data.tags.get(FOLDER):
            return path_of(folder.rsplit("/", 2)[0]) if folder.count("/") > 2 else None
    return None


def _copy(storage: BaseStorage, name: str) -> optuna.Study:
    """Copy a study into memory, without its enqueued trials."""
    study = optuna.load_study(study_name=name, storage=storage)
    copy = optuna.create_study(directions=study.directions)
    copy.add_trials([trial for trial in study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING])
    return copy

"""A sweep's Optuna study: from the sweep's folder, from a database, or from the copy attached to its run."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import TrialState

from orchestration.sweep.study import STUDY, STUDY_FILE, open_journal
from orchestration.tracking.uri import root_cause

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

Studies = tuple[optuna.Study | None, optuna.Study | None, str | None]


def read_study(client: MlflowClient, parent: Run | None, children: list[Run]) -> Studies:
    """Copies in memory of a sweep's study and of that with its reports, and why there are none, if so."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder, url = _folder(parent, children), parent.data.params.get("study_storage") if parent else None
    name = parent.info.run_name if parent else ""
    try:
        if url not in (None, "", "None"):
            database = re.fullmatch(r"sqlite:///(.+)", url)
            if database and not Path(database[1]).exists():
                return None, None, f"The Optuna study is not at {url}; figures that need it are missing."
            return *_copies(RDBStorage(url), folder.name if folder else name), None
        if folder and (folder / STUDY_FILE).exists():
            return *_copies(open_journal(folder / STUDY_FILE), STUDY), None
        if parent and any(item.path == STUDY_FILE for item in client.list_artifacts(parent.info.run_id)):
            with tempfile.TemporaryDirectory() as temporary:
                journal = client.download_artifacts(parent.info.run_id, STUDY_FILE, temporary)
                return *_copies(open_journal(Path(journal)), STUDY), None
    except Exception as error:  # Optuna's, SQLAlchemy's, each driver's own, and those of damaged files
        return None, None, f"The Optuna study cannot be read ({root_cause(error)[:200]})."
    return None, None, "There is no Optuna study in the sweep's folder or attached to its run; its figures are missing."


def _folder(parent: Run | None, children: list[Run]) -> Path | None:
    """The sweep's folder, as its run tells it, or those of its trials."""
    if parent and parent.data.tags.get("folder"):
        return Path(parent.data.tags["folder"])
    for run in children:
        if folder := run.data.tags.get("folder"):
            return Path(folder).parents[1] if len(Path(folder).parents) > 2 else None
    return None


def _copies(storage: BaseStorage, name: str) -> tuple[optuna.Study, optuna.Study]:
    study = copied(optuna.load_study(study_name=name, storage=storage))
    if len(study.directions) == 1:
        return study, study
    return study, copied(optuna.load_study(study_name=f"{name}-stopping", storage=storage))


def copied(study: optuna.Study) -> optuna.Study:
    """In memory, without trials that are only planned."""
    copy = optuna.create_study(directions=study.directions)
    copy.add_trials([trial for trial in study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING])
    return copy

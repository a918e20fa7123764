"""Empty MLflow databases, copied from one that is made once: creating the tables takes about 10 s each time."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path


def new_database(folder: Path) -> str:
    """Return the URI of an empty MLflow database `mlflow.db` in a folder, made unless it exists."""
    path = folder / "mlflow.db"
    if not path.exists():
        shutil.copyfile(_template(), path)
    return f"sqlite:///{path}"


def _template() -> Path:
    """Return the database to copy, made by the first process of this test run that asks."""
    from mlflow import MlflowClient

    path = Path(os.environ["SOFLOW_TEST_SHARED"]) / "mlflow-template.db"
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            new = path.with_name("new.db")
            MlflowClient(f"sqlite:///{new}").search_experiments()
            new.rename(path)
    return path

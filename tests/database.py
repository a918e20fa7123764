"""Empty MLflow databases, copied from one that is made once: creating the tables takes about 10 s each time."""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path


def new_database(folder: Path) -> str:
    """Return the URI of an empty MLflow database `mlflow.db` in a folder, made unless it exists."""
    path = folder / "mlflow.db"
    if not path.exists():
        shutil.copyfile(Path(_template().name) / path.name, path)
    return f"sqlite:///{path}"


@functools.cache
def _template() -> tempfile.TemporaryDirectory:
    """Make the database to copy, once per process."""
    from mlflow import MlflowClient

    folder = tempfile.TemporaryDirectory(prefix="mlflow-template-")
    MlflowClient(f"sqlite:///{folder.name}/mlflow.db").search_experiments()
    return folder

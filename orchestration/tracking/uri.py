"""Whether a tracking URI can work, found out before anything else starts and without importing MLflow."""

from __future__ import annotations

import os
import re
import tempfile
import threading
from pathlib import Path


class TrackingError(RuntimeError):
    """Tracking cannot work as configured; the message names the field, its value and what is allowed."""


def check_tracking(tracking_uri: str, timeout_s: float = 15) -> None:
    """Find out whether tracking can work before anything else starts; does not import MLflow.

    Raises:
        TrackingError: if the server does not answer in time, the database's folder cannot be written, or the URI is
            of another kind.
    """
    if tracking_uri.startswith(("http://", "https://")):
        problem = _server_problem(tracking_uri.rstrip("/") + "/health", timeout_s)
    elif database := database_of(tracking_uri):
        problem = _database_problem(database)
    else:
        problem = "must be http://HOST:PORT or https://HOST of an MLflow server, or sqlite:///FOLDER/mlflow.db"
    if problem:
        raise TrackingError(f"tracking_uri = {without_password(tracking_uri)}: {problem}")


def _server_problem(url: str, timeout_s: float) -> str | None:
    problems: list[str | None] = []
    # A thread, because a request's own timeout neither covers name look-ups nor bounds the sum of its waits.
    thread = threading.Thread(target=lambda: problems.append(_request_problem(url, timeout_s + 1)), daemon=True)
    thread.start()
    thread.join(timeout_s)
    return problems[0] if problems else f"no answer within {timeout_s:g} s; is an MLflow server running there?"


def _request_problem(url: str, timeout_s: float) -> str | None:
    import requests  # what MLflow uses, so that passwords in the URI, proxies and certificates work the same

    insecure = os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1")
    certificate = os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH", True)
    try:
        response = requests.get(url, timeout=timeout_s, verify=False if insecure else certificate)
    except (requests.RequestException, OSError) as error:
        return (
            f"cannot be reached ({root_cause(error)}); start it with `mlflow server`, or use sqlite:///FOLDER/mlflow.db"
        )
    # Behind 401 and 403 there is a server; whether it will accept MLflow's credentials cannot be told from here.
    if response.status_code in (401, 403) or (response.ok and response.text.strip() == "OK"):
        return None
    return f"answers {response.status_code} to GET /health, unlike an MLflow server"


def _database_problem(database: Path) -> str | None:
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=database.parent):
            pass
        if database.exists():
            with database.open("r+b") as file:
                if file.read(15) not in (b"SQLite format 3", b""):
                    return "is a file, but no SQLite database; give the path of a new file"
    except OSError as error:
        return f"{error.filename or database.parent} cannot be written ({error.strerror}); give a folder that can"
    return None


def database_of(tracking_uri: str) -> Path | None:
    """The file of an SQLite database, None for other URIs."""
    path = re.fullmatch(r"sqlite:///([^?]+)(\?.*)?", tracking_uri)
    return Path(path[1]).absolute() if path and path[1] != ":memory:" else None


def without_password(uri: str) -> str:
    """A URI, or text with one, without the password that it may hold."""
    return re.sub(r"//[^/@\s]+@", "//***@", uri)


def root_cause(error: BaseException) -> str:
    """What a long chain of exceptions about a connection or a database began with, in a line."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return without_password(" ".join(str(error).split())) or type(error).__name__

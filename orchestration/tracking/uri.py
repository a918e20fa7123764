"""Validation of tracking URIs before a run starts, without importing MLflow."""

from __future__ import annotations

import configparser
import os
import re
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from orchestration.config import PASSWORDS
from soflow.config_base import has_password, without_password

SIGNED = {"MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4"}
"""Variables with which MLflow signs its requests in ways that the check at the start does not know."""


class TrackingError(RuntimeError):
    """Unusable tracking configuration; the message names the field, the value and the allowed values."""


def check_tracking(tracking_uri: str, timeout_s: float = 15) -> None:
    """Check that the server answers, or that the database is writable.

    Raises:
        TrackingError: if the server does not answer in time, the database's folder is not writable, or the URI has an
            unsupported scheme.
    """
    problem: str | None
    if has_password(tracking_uri):
        problem = f"must not contain a password, which would be stored and shown; {PASSWORDS}"
    elif tracking_uri.startswith(("http://", "https://")):
        problem = _server_problem(tracking_uri.rstrip("/"), timeout_s)
    elif database := database_of(tracking_uri):
        problem = _database_problem(database)
    else:
        problem = "must be http://HOST:PORT or https://HOST of an MLflow server, or sqlite:///FOLDER/mlflow.db"
    if problem:
        raise TrackingError(f"tracking_uri = {without_password(tracking_uri)}: {problem}")


def _server_problem(url: str, timeout_s: float) -> str | None:
    problems: list[str | None] = []
    # In a thread, because the timeout of a request neither covers name resolution nor bounds the sum of its waits.
    thread = threading.Thread(target=lambda: problems.append(_request_problem(url, timeout_s + 1)), daemon=True)
    thread.start()
    thread.join(timeout_s)
    return problems[0] if problems else f"no answer within {timeout_s:g} s; is an MLflow server running there?"


def _request_problem(url: str, timeout_s: float) -> str | None:
    import requests  # as MLflow does, so that proxies and certificates work in the same way

    insecure = os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1")
    certificate = os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH", True)
    user, password, token = _credentials()
    options: dict[str, Any] = {
        "timeout": timeout_s,
        "verify": False if insecure else certificate,
        "auth": (user, password) if user and password else None,
        "headers": {"Authorization": f"Bearer {token}"} if token else {},
    }
    try:
        response = requests.get(f"{url}/health", **options)
        if response.ok and response.text.strip() == "OK":
            # The health check needs no password, so ask for something that does.
            response = requests.post(f"{url}/api/2.0/mlflow/experiments/search", json={"max_results": 1}, **options)
        elif response.status_code not in (401, 403):
            return f"answers {response.status_code} to GET /health, unlike an MLflow server"
    except (requests.RequestException, OSError) as error:
        proxy = requests.utils.select_proxy(url, requests.utils.get_environ_proxies(url))
        through = f" through the proxy {without_password(proxy)} (NO_PROXY excepts hosts)" if proxy else ""
        return (
            f"cannot be reached{through} ({root_cause(error)}); start it with `mlflow server`, or use "
            "sqlite:///FOLDER/mlflow.db"
        )
    if response.status_code in (401, 403) and not os.environ.keys() & SIGNED:
        who = f"user {user}" if user and password else "the token" if token else "a request without a password"
        return (
            f"refuses {who} ({response.status_code} {response.reason}); set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        )
    return None


def _credentials() -> tuple[str | None, str | None, str | None]:
    """Return MLflow's user, password and token from the environment or ~/.mlflow/credentials, as MLflow does."""
    file = configparser.ConfigParser(interpolation=None)
    with suppress(configparser.Error, OSError, UnicodeDecodeError):
        file.read(Path.home() / ".mlflow" / "credentials")

    def setting(name: str) -> str | None:
        return os.environ.get(name) or file.get("mlflow", name.lower(), fallback=None)

    user, password = (setting(f"MLFLOW_TRACKING_{name}") for name in ("USERNAME", "PASSWORD"))
    return user, password, os.environ.get("MLFLOW_TRACKING_TOKEN")


def _database_problem(database: Path) -> str | None:
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=database.parent):
            pass
        if database.exists():
            with database.open("r+b") as file:
                if file.read(15) not in (b"SQLite format 3", b""):
                    return "must be an SQLite database, but the file is another; choose the path of a new file"
    except OSError as error:
        return f"{error.filename or database.parent} cannot be written ({error.strerror}); choose a writable folder"
    return None


def database_of(tracking_uri: str) -> Path | None:
    """Return the path of an SQLite database, None for other URIs."""
    path = re.fullmatch(r"sqlite:///([^?]+)(\?.*)?", tracking_uri)
    return Path(path[1]).absolute() if path and path[1] != ":memory:" else None


def root_cause(error: BaseException) -> str:
    """Format the first exception of a chain in one line, without passwords."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return without_password(" ".join(str(error).split())) or type(error).__name__

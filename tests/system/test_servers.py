"""A sweep with the servers of a team: MLflow with login on PostgreSQL, studies in PostgreSQL, files in an S3 store."""

from __future__ import annotations

import configparser
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest
from session import SMALL, Session, wait_for_line

from tests.object_store import BUCKET, inherit, objects, s3_server
from tests.postgres import AVAILABLE, PASSWORD, USER, postgres

ADMIN, OLD, NEW = "admin", "the-first-password", "the-second-password"
TRIALS = 4
FLAGS = [
    *SMALL,
    "--num-trials",
    str(TRIALS),
    "--max-concurrent",
    "1",
    "--early-stopping.kind",
    "none",
    "--name",
    "team",
]


class MlflowServer:
    """MLflow with login, its records in PostgreSQL and its artifacts in the store."""

    def __init__(self, folder: Path, database: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        settings = configparser.ConfigParser()
        settings["mlflow"] = {
            "default_permission": "READ",
            "database_uri": f"sqlite:///{folder / 'users.db'}",
            "admin_username": ADMIN,
            "admin_password": OLD,
            "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
        }
        with open(folder / "auth.ini", "w") as file:
            settings.write(file)
        environment = os.environ | {
            "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "for tests",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--app-name", "basic-auth", "--workers", "1", "--backend-store-uri", database]
        command += ["--artifacts-destination", f"s3://{BUCKET}/mlflow"]
        with open(folder / "server.log", "w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        deadline = time.monotonic() + 120
        while True:
            with suppress(OSError):
                urllib.request.urlopen(f"{self.uri}/health", timeout=1).close()
                return
            assert time.monotonic() < deadline, (folder / "server.log").read_text()
            time.sleep(0.2)

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def team(tmp_path, monkeypatch):
    """The servers; the environment has their passwords, no URL has one."""
    with s3_server() as store, postgres("mlflow", "optuna") as address:
        inherit(store | {"PGPASSWORD": PASSWORD, "MLFLOW_TRACKING_USERNAME": ADMIN}, monkeypatch.setenv)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", OLD)
        monkeypatch.setenv("SOFLOW_CACHE", str(tmp_path / "first"))
        server = MlflowServer(tmp_path, f"postgresql+psycopg://{USER}@{address}/mlflow")
        try:
            yield server, f"postgresql+psycopg://{USER}@{address}/optuna"
        finally:
            server.stop()


def rotate_password(server: MlflowServer) -> None:
    from mlflow.server import get_app_client

    client = get_app_client("basic-auth", tracking_uri=server.uri)
    client.update_user_password(ADMIN, NEW, OLD)


@pytest.mark.soak
@pytest.mark.skipif(not AVAILABLE, reason="PostgreSQL is not installed")
def test_a_killed_sweep_with_rotated_passwords_goes_on_elsewhere_and_loses_nothing(team, tmp_path, monkeypatch):
    server, study = team
    session = Session(tmp_path)
    url = f"s3://{BUCKET}/exp"
    flags = ["--tracking-uri", server.uri, "--study-storage", study, "--storage", url, "--progress", "plain"]
    sweep = session.start("sweep_schedule.py", *FLAGS, *flags)
    wait_for_line(sweep, "trial 0 finished")
    rotate_password(server)
    lines = wait_for_line(sweep, "trial 2 running, step 4/")
    os.killpg(sweep.pid, signal.SIGKILL)
    output = "".join(lines) + sweep.communicate(timeout=60)[0]
    session.assert_nothing_left()

    # Another machine; the old password is refused before anything starts.
    monkeypatch.setenv("SOFLOW_CACHE", str(tmp_path / "second"))
    resume = ["sweep_schedule.py", "--resume", f"{url}/team", "--storage", url, "--tracking-uri", server.uri]
    refused = session.fail(*resume)
    assert f"tracking_uri = {server.uri}: refuses user {ADMIN} (401" in refused, refused
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", NEW)
    output += session.succeed(*resume)
    while "records have not reached" in output.splitlines()[-1]:  # a busy machine: as the line says, resume once more
        output += session.succeed(*resume)

    session.tracking_uri = server.uri
    runs = session.runs()
    assert sorted(runs) == ["team", *(f"team-{number:04d}" for number in range(TRIALS))]
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    for number in range(TRIALS):
        assert [step for step, _ in session.history(f"team-{number:04d}", "fid")] == [4, 8, 12]
    import optuna

    trials = optuna.load_study(study_name="team", storage=study).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * TRIALS
    assert any(name.endswith("sampler.pt") for name in objects("mlflow"))
    texts = {"output": output} | _texts(tmp_path / "first") | _texts(tmp_path / "second") | _objects()
    texts |= {f"run {name}": str(run.to_dictionary()) for name, run in runs.items()}
    for name, text in texts.items():
        for secret in (OLD, NEW, PASSWORD, os.environ["AWS_SECRET_ACCESS_KEY"]):
            assert secret not in text, f"{secret} in {name}"


def _texts(folder: Path) -> dict[str, str]:
    return {str(path): path.read_bytes().decode(errors="replace") for path in folder.rglob("*") if path.is_file()}


def _objects() -> dict[str, str]:
    from pyarrow.fs import FileSystem

    filesystem, path = FileSystem.from_uri(f"s3://{BUCKET}/exp")
    found = {}
    for name in objects("exp"):
        with filesystem.open_input_stream(f"{path}/{name}") as stream:
            found[name] = stream.read().decode(errors="replace")
    return found

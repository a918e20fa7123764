"""Start the MLflow UI and the live view, each on a free port of this machine alone, and end both with Ctrl-C.

$ python -m dashboards.ui
$ python -m dashboards.ui --storage /data/results
$ python -m dashboards.ui --tracking-uri http://tracking.example:5000
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import tyro
from filelock import FileLock

from orchestration.config import LaunchConfig
from orchestration.storage import check_storage
from orchestration.terminal.command_line import fail
from orchestration.tracking.mlflow_writer import MLFLOW_SETTINGS
from orchestration.tracking.uri import TrackingError, check_tracking, database_of, root_cause
from soflow.config_base import ConfigError

LOOPBACK = "127.0.0.1"
ROOT = Path(__file__).parents[1]
STARTS_WITHIN_S, ENDS_WITHIN_S = 120.0, 5.0
QUIET = MLFLOW_SETTINGS | {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # background jobs are for what is not trained here
    "STREAMLIT_BROWSER_GATHER_USAGE_STATS": "false",
    "DO_NOT_TRACK": "1",
    "PYTHONWARNINGS": "ignore",  # of the two programs' own code
}


@dataclass
class UiConfig:
    storage: Path = Path("results")
    """Folder of sweeps and runs, with mlflow.db in it; need not exist yet."""
    tracking_uri: str | None = None
    """MLflow: an http(s):// server, which is then used as it is, or a sqlite:/// database, by default mlflow.db in
    `storage`."""


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the two programs end first
    options = tyro.cli(UiConfig, description=__doc__)
    uri = options.tracking_uri or LaunchConfig(storage=options.storage).resolved_tracking_uri
    try:
        if options.tracking_uri is None:
            check_storage(options.storage)
        check_tracking(uri)
        return run(uri)
    except (ConfigError, TrackingError) as error:
        fail(error)
    except KeyboardInterrupt:
        return 0


def run(uri: str) -> int:
    """Start both, say where they are, and wait until one ends or Ctrl-C; what is started here ends here."""
    environment = os.environ | {name: os.environ.get(name, value) for name, value in QUIET.items()}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with ExitStack() as until_the_end:
        programs: dict[str, subprocess.Popen] = {}

        def start(name: str, command: list[str], **settings: str) -> None:
            programs[name] = process = subprocess.Popen(
                [sys.executable, "-m", *command],
                env=environment | settings,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is ours alone, so that both end in order
            )
            until_the_end.callback(end, process)

        mlflow_url, live_port = re.sub("//[^/@]*@", "//", uri).rstrip("/"), free_port()
        if not uri.startswith("http"):
            make_database(uri)
            mlflow_url = f"http://{LOOPBACK}:{(port := free_port())}"
            start("the MLflow UI", mlflow_command(uri, port))
        live_url = f"http://{LOOPBACK}:{live_port}"
        # In its environment, because others on this machine can read a command, and the URI may hold a password.
        start("the live view", live_command(live_port), MLFLOW_TRACKING_URI=uri, SOFLOW_MLFLOW_UI=mlflow_url)
        pages = {"the MLflow UI": f"{mlflow_url}/health", "the live view": f"{live_url}/_stcore/health"}
        for name in programs:
            if not wait_for(pages[name], programs):
                return 1
        print(f"live view:  {live_url}\nMLflow UI:  {mlflow_url}\nCtrl-C ends both.", flush=True)
        while all(process.poll() is None for process in programs.values()):
            time.sleep(0.5)
        say_what_ended(programs)
        return 1


def mlflow_command(uri: str, port: int) -> list[str]:
    command = ["mlflow", "server", "--host", LOOPBACK, "--port", str(port), "--workers", "1"]
    command += ["--uvicorn-opts", "--log-level warning"]
    artifacts = database_of(uri).parent / "artifacts"
    return [*command, "--backend-store-uri", uri, "--default-artifact-root", artifacts.as_uri()]


def live_command(port: int) -> list[str]:
    options = {
        "server.address": LOOPBACK,
        "server.port": port,
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "browser.serverAddress": LOOPBACK,
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "viewer",
        "client.showErrorDetails": "none",
        "logger.level": "error",
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    page = str(Path(__file__).parent / "live" / "app.py")
    return ["streamlit", "run", page, *flags]


def make_database(uri: str) -> None:
    """Make the tables, alone: two processes that do so at once, as a sweep that starts now, leave a broken database.

    Raises:
        TrackingError: if it cannot be opened.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import logging

    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    try:
        with FileLock(f"{database_of(uri)}.lock"):
            MlflowClient(uri).search_experiments(max_results=1)
    except Exception as error:  # MLflow's, SQLAlchemy's, the file system's
        raise TrackingError(f"tracking_uri = {uri}: cannot be opened ({root_cause(error)[:300]})") from None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return probe.getsockname()[1]


def wait_for(url: str, programs: dict[str, subprocess.Popen]) -> bool:
    """Wait until a page answers; False, after saying why, if a program ends before or it takes too long."""
    deadline = time.monotonic() + STARTS_WITHIN_S
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # it is on this machine
    while all(process.poll() is None for process in programs.values()):
        try:
            with opener.open(url, timeout=2):
                return True
        except OSError:
            if time.monotonic() > deadline:
                print(f"error: {url} did not answer within {STARTS_WITHIN_S:.0f} s", file=sys.stderr)
                return False
            time.sleep(0.2)
    say_what_ended(programs)
    return False


def say_what_ended(programs: dict[str, subprocess.Popen]) -> None:
    for name, process in programs.items():
        if process.poll() is not None:
            print(f"error: {name} has ended (exit code {process.returncode}); so does the other", file=sys.stderr)


def end(process: subprocess.Popen) -> None:
    """End a program and all that it started."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, how)
            process.wait(ENDS_WITHIN_S)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


if __name__ == "__main__":
    sys.exit(main())

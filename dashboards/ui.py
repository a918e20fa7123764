"""Start the MLflow UI and the live view, each on a free port of localhost; Ctrl-C stops both.

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
from pathlib import Path

from filelock import FileLock

from orchestration.config import Folder, Launch
from orchestration.storage import check_storage
from orchestration.terminal.command_line import fail, read_command_line
from orchestration.tracking.mlflow_writer import MLFLOW_SETTINGS
from orchestration.tracking.uri import TrackingError, check_tracking, database_of, root_cause
from soflow.config_base import ConfigError, Section

LOOPBACK = "127.0.0.1"
ROOT = Path(__file__).parents[1]
STARTS_WITHIN_S, STOPS_WITHIN_S = 120.0, 5.0
QUIET = MLFLOW_SETTINGS | {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # background jobs serve MLflow features that are not used here
    "STREAMLIT_BROWSER_GATHER_USAGE_STATS": "false",
    "DO_NOT_TRACK": "1",
    "PYTHONWARNINGS": "ignore",
}


class UiOptions(Section):
    storage: Folder = Path("results")
    """Folder of sweeps and runs, which contains mlflow.db. Need not exist yet."""
    tracking_uri: str | None = None
    """MLflow: a running http(s):// server, or a sqlite:/// database. Default: mlflow.db in `storage`."""


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: stop both programs first
    options = read_command_line(UiOptions, __doc__)
    uri = options.tracking_uri or Launch(storage=options.storage).resolved_tracking_uri
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
    """Start both programs, print their addresses, wait until one exits or Ctrl-C, and stop both."""
    environment = os.environ | {name: os.environ.get(name, value) for name, value in QUIET.items()}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with ExitStack() as exit_stack:
        programs: dict[str, subprocess.Popen] = {}

        def start(name: str, command: list[str], **settings: str) -> None:
            programs[name] = process = subprocess.Popen(
                [sys.executable, "-m", *command],
                env=environment | settings,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # only this process receives Ctrl-C, and stops both in order
            )
            exit_stack.callback(stop, process)

        mlflow_url, live_port = re.sub("//[^/@]*@", "//", uri).rstrip("/"), free_port()
        if not uri.startswith("http"):
            make_database(uri)
            mlflow_url = f"http://{LOOPBACK}:{(port := free_port())}"
            start("the MLflow UI", mlflow_command(uri, port))
        print("starting the live view and the MLflow UI, which takes up to half a minute", flush=True)
        live_url = f"http://{LOOPBACK}:{live_port}"
        # In the environment: other users of this machine can read command lines, and the URI may contain a password.
        start("the live view", live_command(live_port), MLFLOW_TRACKING_URI=uri, SOFLOW_MLFLOW_UI=mlflow_url)
        pages = {"the MLflow UI": f"{mlflow_url}/health", "the live view": f"{live_url}/_stcore/health"}
        for name in programs:
            if not wait_for(pages[name], programs):
                return 1
        print(f"live view:  {live_url}\nMLflow UI:  {mlflow_url}\nCtrl-C stops both.", flush=True)
        while all(process.poll() is None for process in programs.values()):
            time.sleep(0.5)
        report_exits(programs)
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
    page = str(Path(__file__).parent / "live" / "server.py")
    return ["streamlit", "run", page, *flags]


def make_database(uri: str) -> None:
    """Create MLflow's tables under a lock: two processes that do so at once, such as a sweep, break the database.

    Raises:
        TrackingError: if the database cannot be opened.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import logging

    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    try:
        with FileLock(f"{database_of(uri)}.lock"):
            MlflowClient(uri).search_experiments(max_results=1)
    except Exception as error:  # MLflow, SQLAlchemy, the file system
        raise TrackingError(f"tracking_uri = {uri}: cannot be opened ({root_cause(error)[:300]})") from None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return probe.getsockname()[1]


def wait_for(url: str, programs: dict[str, subprocess.Popen]) -> bool:
    """Wait until a page answers; print the reason and return False if a program exits or the time is up."""
    deadline = time.monotonic() + STARTS_WITHIN_S
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # localhost needs no proxy
    while all(process.poll() is None for process in programs.values()):
        try:
            with opener.open(url, timeout=2):
                return True
        except OSError:
            if time.monotonic() > deadline:
                print(f"error: {url} did not answer within {STARTS_WITHIN_S:.0f} s", file=sys.stderr)
                return False
            time.sleep(0.2)
    report_exits(programs)
    return False


def report_exits(programs: dict[str, subprocess.Popen]) -> None:
    for name, process in programs.items():
        if process.poll() is not None:
            print(f"error: {name} exited with code {process.returncode}; stopping the other", file=sys.stderr)


def stop(process: subprocess.Popen) -> None:
    """Stop a program and its child processes."""
    for stop_signal in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, stop_signal)
            process.wait(STOPS_WITHIN_S)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


if __name__ == "__main__":
    sys.exit(main())

"""Connection to a Ray cluster, or start of one on this machine."""

from __future__ import annotations

import gc
import logging
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from orchestration.config import GIB, Launch, ResourcesConfig
from orchestration.interruption import listen, signals_kept_from_children
from soflow.config_base import ConfigError, first_line
from soflow.plugins import loaded_roots

CONNECT_TIMEOUT_S, HEALTH_TIMEOUT_S = 3, 40
"""Limits for opening the port, and for the health check, which imports Ray."""
REMEDY = "start one with `ray start --head`, or leave out address to use this machine alone"
LONGEST_SOCKET_FOLDER = 40
"""Bytes of the folder's path in which Ray's sockets are."""
TOKEN_FILE = Path.home() / ".ray" / "auth_token"
PREEMPTION_WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
"""Setting of Ray Train: watch for announced ends of nodes. The watcher is one more process per worker group."""
RAY_SETTINGS = {
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "2",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "300",  # until a worker that does not answer is replaced
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # silences a warning about its default
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",  # processes start one after another on a busy laptop
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # results are logged to MLflow
}


def check_fits(resources: ResourcesConfig, groups: int, available: dict[str, float], where: str) -> None:
    """Check that `groups` concurrent worker groups fit into the available CPUs, GPUs and bytes of memory.

    Raises:
        ConfigError: with the required and the available number.
    """
    names = {"CPU": ("CPUs", "cpus", 1), "GPU": ("GPUs", "gpus", 1), "memory": ("GiB of memory", "memory_gib", GIB)}
    for kind, per_worker in resources.per_worker().items():
        required = groups * resources.num_workers * per_worker
        if required > available.get(kind, 0):
            name, field, unit = names[kind]
            raise ConfigError(
                f"resources = {groups} x {resources.num_workers} workers x {per_worker / unit:g} {name}: need "
                f"{required / unit:g} {name}, {where} has {available.get(kind, 0) / unit:g}; lower max_concurrent, "
                f"resources.num_workers or resources.{field}_per_worker"
            )


def share_gpus(resources: ResourcesConfig, groups: int, gpus: float) -> ResourcesConfig:
    """Divide `gpus` among all workers, at most one each, unless resources.gpus_per_worker is configured."""
    if resources.gpus_per_worker is not None:
        return resources
    share = min(1.0, gpus / (groups * resources.num_workers))
    return resources.model_copy(update={"gpus_per_worker": share})


def check_address(address: str) -> None:
    """Check that a Ray cluster answers at an address.

    Raises:
        ConfigError: if none answers within three quarters of a minute.
    """
    if address != "auto":
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise ConfigError(f"address = {address}: must be HOST:PORT, or auto for a cluster on this machine")
        try:
            socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
        except OSError as error:
            raise ConfigError(f"address = {address}: no connection ({error}); {REMEDY}") from None
    _enable_token_authentication()
    # If the port does not belong to a Ray cluster, connecting blocks for a minute in Ray's native code. A process
    # with a time limit avoids that.
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check"]
    try:
        result = subprocess.run(
            command if address == "auto" else [*command, "--address", address],
            capture_output=True,
            text=True,
            timeout=HEALTH_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(f"address = {address}: must be the address of a Ray cluster; {REMEDY}") from None
    if result.returncode:
        lines = result.stderr.strip().splitlines() or ["no reason given"]
        raise ConfigError(f"address = {address}: the Ray cluster refuses access ({lines[-1][:160]}…); {REMEDY}")


def _create_token() -> None:
    """Create the token with which the processes of a local cluster recognize each other, readable by this user alone.

    Ray listens on all interfaces and requires the token by default, but would create a file that everybody can read.
    """
    if "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ:
        return
    with suppress(OSError):  # without a writable home, Ray says what is missing
        TOKEN_FILE.parent.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=TOKEN_FILE.parent) as file:  # with mode 0600
            file.write(secrets.token_hex(32))
            file.flush()
            with suppress(FileExistsError):  # a link appears whole, and of two processes one wins
                os.link(file.name, TOKEN_FILE)
        TOKEN_FILE.chmod(0o600)


def _enable_token_authentication() -> None:
    """Make Ray send the user's token, if one exists, to a configured address; clusters without tokens ignore it."""
    if "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ or TOKEN_FILE.exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


@contextmanager
def connected(
    config: Launch, groups: int | None, meanwhile: Callable[[], None] | None = None
) -> Iterator[ResourcesConfig]:
    """Connect to the configured cluster; yield the resources of each of `groups` worker groups.

    A cluster that this function starts stops with the connection.

    Args:
        groups: None for as many as fit, at least one.
        meanwhile: what to do in a thread while Ray's processes start, which takes seconds.

    Raises:
        ConfigError: if the cluster cannot be reached or is too small.
    """
    if config.address is None:
        # Ray counts GPUs and memory, below.
        available = {"CPU": os.cpu_count() or 1, "GPU": float("inf"), "memory": float("inf")}
        check_fits(config.resources, groups or 1, available, "this machine")
    else:
        check_address(config.address)
    thread = threading.Thread(target=meanwhile, daemon=True)
    thread.start()
    try:
        with ray_session(config.address):
            thread.join()
            available = _resources_of_cluster(config, groups or 1)
            yield share_gpus(config.resources, groups or 1, available.get("GPU", 0))
    finally:
        thread.join()  # Python aborts if it ends while a thread computes with torch


def _resources_of_cluster(config: Launch, groups: int) -> dict[str, float]:
    """Return a cluster's resources; if they are too few, ask its autoscaler for nodes and wait for them.

    Raises:
        ConfigError: if they are too few after `wait_for_nodes_s`.
    """
    import ray
    from ray.autoscaler.sdk import request_resources

    began, asked = time.monotonic(), False
    try:
        while True:
            available = ray.cluster_resources()
            try:
                check_fits(config.resources, groups, available, "the cluster")
                return available
            except ConfigError:
                if time.monotonic() - began >= config.wait_for_nodes_s:
                    raise
            if not asked:
                print(f"waiting for nodes, at most {config.wait_for_nodes_s:g} s", flush=True)
                worker = config.resources.per_worker()
                request_resources(bundles=[worker] * (groups * config.resources.num_workers))
                asked = True
            time.sleep(1)
    finally:
        if asked:  # the groups themselves keep the nodes from now on
            request_resources(num_cpus=0)


@contextmanager
def ray_session(address: str | None) -> Iterator[None]:
    """Connect to the Ray cluster at `address`; without one, start a cluster and stop it at the end.

    Raises:
        ConfigError: if the cluster cannot be reached.
    """
    # On this machine alone, nothing announces the end of a node.
    settings = RAY_SETTINGS | {PREEMPTION_WATCHER: "1" if address else "0"}
    for name, value in settings.items():
        os.environ.setdefault(name, value)

    # "local" starts a new cluster even if one is running on this machine, which may belong to somebody else.
    options: dict[str, Any] = {"address": address} if address else {"address": "local", "dashboard_host": "127.0.0.1"}
    runtime_env: dict[str, Any] = {
        "env_vars": {name: os.environ[name] for name in settings} | {"PYTHONWARNINGS": "ignore"}
    }
    if address:
        runtime_env["py_modules"] = _packages() + [str(root) for root in loaded_roots()]
    options |= {"log_to_driver": False, "logging_level": logging.ERROR, "runtime_env": runtime_env}
    if not address:
        print("starting Ray on this machine", flush=True)
        _create_token()
    try:
        _init(options)
    except Exception as error:  # ray.init also raises bare exceptions
        if address:
            raise ConfigError(f"address = {address}: cannot connect to Ray ({first_line(error)})") from None
        print(f"Ray did not start ({first_line(error)}); trying once more", flush=True)
        _shut_down()
        try:
            _init(options)
        except Exception as again:
            raise ConfigError(
                f"address = None: Ray did not start on this machine ({first_line(again)}); wait until it is less "
                "busy, or look into the folder ray/session_latest/logs among the temporary files"
            ) from None
    listen()
    try:
        yield
    finally:
        _shut_down()


def _init(options: dict[str, Any]) -> None:
    import ray

    with signals_kept_from_children(), _short_socket_paths():
        ray.init(**options)


def _shut_down() -> None:
    """Disconnect from Ray, without the garbage collector.

    If it freed references to Ray's objects in another thread, such as the tracker's, during the shutdown, Ray would end
    the whole process.
    """
    import ray

    _end_helpers(ray._private.worker._global_node)
    gc.collect()
    gc.disable()
    try:
        ray.shutdown()
    finally:
        gc.enable()


def _end_helpers(node: Any) -> None:
    """End the dashboard and other Python processes that ray.init started, if any, by SIGKILL.

    SIGTERM is blocked in them (`signals_kept_from_children`), and ray.shutdown would wait a second for each. It still
    does so for the raylet and the GCS: the agents of a raylet end at once only if they can tell the GCS.
    """
    if node is None:  # Ray did not start
        return
    for kind, started in node.all_processes.items():
        if kind not in ("raylet", "gcs_server"):
            for one in started:
                one.process.kill()


@contextmanager
def _short_socket_paths() -> Iterator[None]:
    """Let the processes that are started inside put their sockets into /tmp if their folder has a long name.

    A socket's path is limited to 107 bytes, of which Ray needs about 65.
    """
    before = {name: os.environ.get(name) for name in ("RAY_TMPDIR", "TMPDIR")}
    if len((before["RAY_TMPDIR"] or tempfile.gettempdir()).encode()) > LONGEST_SOCKET_FOLDER:
        os.environ |= dict.fromkeys(before, "/tmp")
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _packages() -> list[str]:
    """Return the folders of this project's packages, which Ray sends to all nodes, as it does plug-ins."""
    import soflow

    return [soflow.__path__[0], str(Path(__file__).parent)]

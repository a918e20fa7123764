"""Connecting to a Ray cluster, or starting one on this machine."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestration.config import LaunchConfig, ResourcesConfig
from soflow.config_base import ConfigError

CONNECT_TIMEOUT_S, HEALTH_TIMEOUT_S = 3, 12
"""For two questions: whether the port is open, and whether a cluster is behind it, which takes an import of Ray."""
REMEDY = "start one with `ray start --head`, or leave address out to use this machine alone"
TOKEN_FILE = Path.home() / ".ray" / "auth_token"
RAY_SETTINGS = {
    # The watcher is one more process per worker group to start; lost workers are noticed without it.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # silences a warning about its default
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",  # processes start one after another on a busy laptop
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # MLflow is the record
    "TUNE_GLOBAL_CHECKPOINT_S": "5",  # how much an abrupt end of the driver costs
}


def check_fits(resources: ResourcesConfig, groups: int, there: dict[str, float], where: str) -> None:
    """Make sure that `groups` worker groups fit at a time into CPUs and GPUs that are `there`.

    Raises:
        ConfigError: saying what is needed and what there is.
    """
    for kind, each in (("CPU", resources.cpus_per_worker), ("GPU", resources.gpus_per_worker or 0)):
        needed = groups * resources.num_workers * each
        if needed > there.get(kind, 0):
            raise ConfigError(
                f"resources = {groups} x {resources.num_workers} workers x {each:g} {kind}s: need {needed:g} {kind}s, "
                f"{where} has {there.get(kind, 0):g}; lower max_concurrent, resources.num_workers or "
                f"resources.{kind.lower()}s_per_worker"
            )


def share_gpus(resources: ResourcesConfig, groups: int, gpus: float) -> ResourcesConfig:
    """Give every worker its share of the GPUs that there are, unless the configuration says how much it gets."""
    if resources.gpus_per_worker is not None:
        return resources
    share = min(1.0, gpus / (groups * resources.num_workers))
    return resources.model_copy(update={"gpus_per_worker": share})


def check_address(address: str) -> None:
    """Make sure that a Ray cluster answers at an address.

    Raises:
        ConfigError: if none does within 15 seconds.
    """
    if address != "auto":
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise ConfigError(f"address = {address}: must read HOST:PORT, or auto for a cluster on this machine")
        try:
            socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
        except OSError as error:
            raise ConfigError(f"address = {address}: no Ray cluster answers there ({error}); {REMEDY}") from None
    _use_token_if_there_is_one()
    # Connecting blocks for a minute inside Ray's native code where the other side does not answer as a cluster: so ask
    # in a process that can be ended.
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check"]
    try:
        asked = subprocess.run(
            command if address == "auto" else [*command, "--address", address],
            capture_output=True,
            text=True,
            timeout=HEALTH_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(f"address = {address}: what answers there is no Ray cluster; {REMEDY}") from None
    if asked.returncode:
        lines = asked.stderr.strip().splitlines() or ["no reason given"]
        raise ConfigError(f"address = {address}: the Ray cluster does not let us in ({lines[-1][:160]}…); {REMEDY}")


def _use_token_if_there_is_one() -> None:
    """Ray itself does not send a token to an address that is given; clusters that want none ignore it."""
    if "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ or TOKEN_FILE.exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


@contextmanager
def connected(config: LaunchConfig, groups: int) -> Iterator[ResourcesConfig]:
    """A connection to the configured cluster, with what each of `groups` worker groups gets of it.

    A cluster of our own ends with the connection.

    Raises:
        ConfigError: if the cluster cannot be reached or is too small.
    """
    if config.address is None:
        there = {"CPU": os.cpu_count() or 1, "GPU": float("inf")}  # GPUs are counted once Ray has found them
        check_fits(config.resources, groups, there, "this machine")
    else:
        check_address(config.address)
    import ray

    with ray_session(config.address):
        there = ray.cluster_resources()
        check_fits(config.resources, groups, there, "the cluster")
        yield share_gpus(config.resources, groups, there.get("GPU", 0))


@contextmanager
def ray_session(address: str | None) -> Iterator[None]:
    """A connection to the Ray cluster at `address`; without one, to a cluster of our own that ends with it.

    Raises:
        ConfigError: if the cluster cannot be reached.
    """
    for name, value in RAY_SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray

    # "local" starts a cluster even where another one is running, which is not ours to use unasked.
    options = {"address": address} if address else {"address": "local", "dashboard_host": "127.0.0.1"}
    runtime_env: dict[str, Any] = {"env_vars": RAY_SETTINGS | {"PYTHONWARNINGS": "ignore"}}
    if address:
        runtime_env["py_modules"] = _packages()
    try:
        ray.init(**options, log_to_driver=False, logging_level=logging.ERROR, runtime_env=runtime_env)
    except (ConnectionError, RuntimeError, TimeoutError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"address = {address or 'local'}: cannot connect to Ray ({reason})") from None
    try:
        yield
    finally:
        ray.shutdown()


def _packages() -> list[str]:
    """Folders of this program's own packages: other nodes run the same code, and need not have it installed."""
    import orchestration
    import soflow

    return [str(Path(package.__file__).parent) for package in (soflow, orchestration)]

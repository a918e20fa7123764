"""Folders of sweeps and runs in `storage`: never overwritten, found again by name."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from orchestration.config import LaunchConfig, SweepConfig
from soflow.config_base import ConfigError

LOG = logging.getLogger(__name__)

SWEEP_FILE = "sweep.yaml"
RUN_FILE = "run.yaml"
LOCK_FILE = ".lock"


def check_storage(storage: Path) -> None:
    """Make sure that `storage` exists and can be written.

    Raises:
        ConfigError: naming the folder.
    """
    if re.match(r"\w+:/", str(storage)):  # a URL, of which Path has dropped a slash
        raise ConfigError(f"storage = {storage}: must be a folder, one that all nodes see; object stores are none")
    try:
        storage.mkdir(parents=True, exist_ok=True)
        probe = storage / f".write-test-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"storage = {storage}: must be a folder that can be written ({error.strerror})") from None


def new_folder(config: LaunchConfig) -> Path:
    """The folder of a new sweep or run.

    Raises:
        ConfigError: if the name is taken.
    """
    started = time.strftime("%Y%m%d-%H%M%S")
    folder = config.storage / (config.name or f"{config.objective.name}-{config.dataset.name}-{started}")
    if folder.exists():
        raise _taken(folder)
    return folder


def create(folder: Path, file: str, text: str) -> None:
    """Make a new folder with one file in it, both or nothing.

    Raises:
        ConfigError: if the name was taken meanwhile.
    """
    partial = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    partial.mkdir(parents=True)
    (partial / file).write_text(text)
    try:
        partial.rename(folder)  # fails if there is a folder with something in it
    except OSError:
        shutil.rmtree(partial)
        raise _taken(folder) from None


def _taken(folder: Path) -> ConfigError:
    return ConfigError(f"name = {folder.name}: is taken in {folder.parent}; choose another or use --resume")


@contextmanager
def sole_owner(folder: Path) -> Iterator[None]:
    """Inside, no other process goes on with this sweep or run; the lock ends with the process, however that ends.

    Raises:
        ConfigError: if another process does.
    """
    lock = FileLock(folder / LOCK_FILE, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigError(f"resume = {folder.name}: another process is at it in {folder.parent}") from None
    except (OSError, NotImplementedError) as error:
        LOG.warning("%s: cannot be locked (%s); see that no two processes go on with it", folder, error)
    try:
        yield
    finally:
        lock.release()


def resumable_sweep(config: SweepConfig) -> Path:
    """The folder of the sweep to resume.

    Raises:
        ConfigError: if there is no sweep of this name.
    """
    folder = config.storage / config.resume
    if not (folder / SWEEP_FILE).exists():
        there = sorted(path.parent.name for path in config.storage.glob(f"*/{SWEEP_FILE}"))
        known = f"there are {', '.join(there)}" if there else "there is none"
        raise ConfigError(f"resume = {config.resume}: no sweep of this name in {config.storage}; {known}")
    return folder


def resumable_run(folder: Path) -> Path:
    """The folder of the run to resume.

    Raises:
        ConfigError: if it is none.
    """
    if not (folder / RUN_FILE).exists():
        raise ConfigError(f"resume = {folder}: must be the folder of a run, which holds {RUN_FILE}")
    return folder


def trial_folder(sweep: Path, number: int) -> Path:
    """Where a trial's checkpoints and grids are, by its number in the study."""
    return sweep / "trials" / f"{number:04d}"


def resume_command(config: SweepConfig, folder: Path) -> str:
    """What goes on with a sweep: the program that runs it, told its name."""
    program = Path(sys.argv[0])
    name = program.name if program.parent.name == "experiments" else "sweep_schedule.py"
    storage = "" if config.storage == Path("results") else f" --storage {config.storage}"
    return f"python experiments/{name} --resume {folder.name}{storage}"

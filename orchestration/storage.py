"""Folders of sweeps and runs in `storage`: never overwritten, and found again by name."""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from orchestration.config import LaunchConfig
from soflow.config_base import ConfigError
from soflow.files import LOCK_FILE
from soflow.plugins import label

LOG = logging.getLogger(__name__)

SWEEP_FILE = "sweep.yaml"
RUN_FILE = "run.yaml"
STUDY_FILE = "study.journal"
REPORT_FILE = "report.html"
SPOOL = "spool"
"""Folder of the records that MLflow has not taken yet."""


def check_storage(storage: Path) -> None:
    """Create `storage` if it is missing, and check that it is writable.

    Raises:
        ConfigError: naming the folder.
    """
    if re.match(r"\w+:/", str(storage)):  # a URL, of which Path has dropped a slash
        raise ConfigError(f"storage = {storage}: must be a folder that all nodes share; object stores do not work")
    try:
        storage.mkdir(parents=True, exist_ok=True)
        probe = storage / f".write-test-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"storage = {storage}: must be a writable folder ({error.strerror})") from None


def new_folder(config: LaunchConfig) -> Path:
    """Return the folder of a new sweep or run, which does not exist yet.

    Raises:
        ConfigError: if the name is taken.
    """
    started = time.strftime("%Y%m%d-%H%M%S")
    folder = config.storage / (config.name or f"{label(config.objective.name)}-{label(config.dataset.name)}-{started}")
    if folder.exists():
        raise _taken(folder)
    return folder


def create(folder: Path, file: str, text: str) -> None:
    """Create a folder with one file in it, atomically.

    Raises:
        ConfigError: if the name was taken in the meantime.
    """
    partial = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    partial.mkdir(parents=True)
    (partial / file).write_text(text)
    try:
        partial.rename(folder)  # fails if the folder exists and is not empty
    except OSError:
        shutil.rmtree(partial)
        raise _taken(folder) from None


def _taken(folder: Path) -> ConfigError:
    return ConfigError(f"name = {folder.name}: is taken in {folder.parent}; choose another or use --resume")


@contextmanager
def sole_owner(folder: Path) -> Iterator[None]:
    """Lock a sweep or run for this process; the lock ends with the process, however that ends.

    Raises:
        ConfigError: if another process has the lock.
    """
    lock = FileLock(folder / LOCK_FILE, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigError(
            f"resume = {folder.name}: another process is already running this sweep in {folder.parent}"
        ) from None
    except (OSError, NotImplementedError) as error:
        LOG.warning("%s: cannot be locked (%s); make sure that no two processes run it", folder, error)
    try:
        yield
    finally:
        lock.release()


def resumed_folder(storage: Path, name: str, file: str, field: str = "resume") -> Path:
    """Find a sweep or run by its name in `storage` or by its folder.

    Args:
        name: the name or folder.
        file: SWEEP_FILE or RUN_FILE, which the folder contains.
        field: name of the argument in the error.

    Raises:
        ConfigError: listing the names that exist.
    """
    for folder in (storage / name, Path(name)):
        if (folder / file).exists():
            return folder
    kind = "sweep" if file == SWEEP_FILE else "run"
    names = sorted(path.parent.name for path in storage.glob(f"*/{file}"))
    known = f"existing: {', '.join(names)}" if names else "none exists"
    raise ConfigError(
        f"{field} = {name}: must be the name or folder of a {kind}, which contains {file}; in {storage}, {known}"
    )


def trial_folder(sweep: Path, number: int) -> Path:
    """Return the folder of a trial's checkpoints, grids and reports, by its number in the study."""
    return sweep / "trials" / f"{number:04d}"


def resume_command(folder: Path) -> str:
    """Return the command that resumes a sweep or run, from any working directory with the project in it."""
    program = Path(sys.argv[0])
    name = program.name if program.parent.name == "experiments" else "sweep_schedule.py"
    return shlex.join(["python", f"experiments/{name}", "--resume", str(folder.absolute())])

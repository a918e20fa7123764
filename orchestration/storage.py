"""Folders of sweeps and runs in `storage`: never overwritten, and found again by name."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from orchestration.config import LaunchConfig
from orchestration.store.location import is_url, path_of, store_of, url_or_path
from orchestration.store.parts import SPOOL as SPOOL
from orchestration.store.parts import STUDY_FILE as STUDY_FILE
from orchestration.store.program import (
    check_store,
    claimed,
    fetch_program,
    fetch_trials,
    is_stored,
    put_aside,
    stored_names,
)
from soflow.config_base import ConfigError
from soflow.files import LOCK_FILE
from soflow.plugins import label

LOG = logging.getLogger(__name__)

SWEEP_FILE = "sweep.yaml"
RUN_FILE = "run.yaml"
REPORT_FILE = "report.html"


def check_storage(storage: Path, may_be_store: bool = False) -> None:
    """Create `storage` if it is missing, and check that it is writable; of a store also its local folder.

    Raises:
        ConfigError: naming the folder.
    """
    if store := store_of(storage):
        if not may_be_store:
            raise ConfigError(f"storage = {store.url}: must be a folder on a disk; only sweeps and train.py use stores")
        check_store(store)
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
    put_aside(folder)
    if is_stored(folder) or folder.exists():
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
    return ConfigError(
        f"name = {folder.name}: is taken in {url_or_path(folder.parent)}; choose another or use --resume"
    )


@contextmanager
def sole_owner(folder: Path) -> Iterator[None]:
    """Lock a sweep or run for this process, then bring its files to their state in a store.

    The lock ends with the process, however that ends.

    Raises:
        ConfigError: if another process has the lock, or in a store, gives signs of life.
    """
    lock = FileLock(folder / LOCK_FILE, blocking=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)  # a store's may be new to this machine
        lock.acquire()
    except Timeout:
        raise ConfigError(
            f"resume = {folder.name}: another process is already running this sweep in {url_or_path(folder.parent)}"
        ) from None
    except (OSError, NotImplementedError) as error:
        LOG.warning("%s: cannot be locked (%s); make sure that no two processes run it", folder, error)
    try:
        with claimed(folder):
            fetch_program(folder)
            yield
    finally:
        lock.release()


def resumed_folder(storage: Path, name: str, file: str, field: str = "resume") -> Path:
    """Find a sweep or run by its name in `storage` or by its folder; files in a store stay there until `sole_owner`.

    Args:
        name: the name or folder, or the URL of a folder in a store.
        file: SWEEP_FILE or RUN_FILE, which the folder contains.
        field: name of the argument in the error.

    Raises:
        ConfigError: listing the names that exist.
    """
    for folder in (path_of(name),) if is_url(name) else (storage / name, Path(name)):
        if is_stored(folder) or (folder / file).exists():
            return folder
    kind = "sweep" if file == SWEEP_FILE else "run"
    names = stored_names(storage) or sorted(path.parent.name for path in storage.glob(f"*/{file}"))
    known = f"existing: {', '.join(names)}" if names else "none exists"
    place = url_or_path(storage)
    raise ConfigError(
        f"{field} = {name}: must be the name or folder of a {kind}, which contains {file}; in {place}, {known}"
    )


def fetch_to_read(folder: Path) -> None:
    """Bring a sweep's or run's files, and its trials' reports, to their state in a store; on a disk, do nothing.

    Raises:
        ConfigError: if the store cannot be read.
    """
    if store_of(folder) is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(Timeout), FileLock(folder / LOCK_FILE, blocking=False):  # the files of a running process are current
        fetch_program(folder)
        fetch_trials(folder)


def trial_folder(sweep: Path, number: int) -> Path:
    """Return the folder of a trial's checkpoints, grids and reports, by its number in the study."""
    return sweep / "trials" / f"{number:04d}"


def resume_command(folder: Path) -> str:
    """Return the command that resumes a sweep or run, from any working directory with the project in it."""
    program = Path(sys.argv[0])
    name = program.name if program.parent.name == "experiments" else "sweep_schedule.py"
    return shlex.join(["python", f"experiments/{name}", "--resume", url_or_path(folder.absolute())])

"""The files of a sweep's or run's program on their way to and from an object store; without a store, nothing happens.

What the program has told MLflow, the store knows: its files are copied before each delivery of records. So a program
that is resumed on another machine, from the store alone, contradicts nothing that was recorded.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from orchestration.store.location import CREDENTIALS, Store, store_of
from orchestration.store.owner import owned
from orchestration.store.parts import AT_ONCE, DRIVER, Damaged, Pusher, pull, read_manifest
from orchestration.store.runs import CHECKPOINTS, fetch_run
from soflow.config_base import ConfigError, first_line

IMAGE_WAIT_S = 40.0
"""Seconds after a report until an image of it that its worker has not uploaded counts as lost with the worker."""


@contextmanager
def _access(store: Store) -> Iterator[None]:
    try:
        yield
    except Damaged as error:
        raise ConfigError(f"{error}; restore the object, if the bucket keeps earlier versions, or start anew") from None
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(
            f"storage = {store.url}: cannot be used ({first_line(error)}); credentials come from {CREDENTIALS}"
        ) from None


def check_store(store: Store) -> None:
    """Check that a store can be written.

    Raises:
        ConfigError: if it cannot.
    """
    with _access(store):
        probe = store.object_of(store.folder / f".write-test-{time.time_ns()}")
        with store.filesystem.open_output_stream(probe) as stream:
            stream.write(b"soflow")
        store.filesystem.delete_file(probe)


def is_stored(folder: Path) -> bool:
    """Check whether a store has this sweep or run."""
    if (store := store_of(folder)) is None:
        return False
    with _access(store):
        return read_manifest(store, folder, DRIVER).version is not None


def put_aside(folder: Path) -> None:
    """Rename the local folder of a sweep or run that was deleted from its store; its name is free again."""
    if store_of(folder) and (folder / DRIVER.version).exists() and not is_stored(folder):
        folder.rename(folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}"))


def fetch_program(folder: Path) -> None:
    """Bring the program's files of a sweep or run to their state in the store.

    Raises:
        ConfigError: if the store cannot be read, or has damaged files.
    """
    if store := store_of(folder):
        with _access(store):
            pull(store, folder, DRIVER)


def fetch_trials(folder: Path) -> None:
    """Bring the reports and pictures of a sweep's trials to their state in the store."""
    if store := store_of(folder):
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda trial: fetch_run(trial, CHECKPOINTS), _folders(store, folder / "trials")))


def stored_names(storage: Path) -> list[str]:
    """Return the names of the sweeps and runs in a store; none of a disk."""
    store = store_of(storage)
    return [] if store is None else sorted(path.name for path in _folders(store, storage))


def _folders(store: Store, parent: Path) -> list[Path]:
    from pyarrow.fs import FileSelector, FileType

    with _access(store):
        found = store.filesystem.get_file_info(FileSelector(store.object_of(parent), allow_not_found=True))
    return [parent / info.base_name for info in found if info.type == FileType.Directory]


def claimed(folder: Path):
    """Return a context in which no program on another machine runs this sweep or run."""
    return owned(store, folder) if (store := store_of(folder)) else nullcontext()


class Delivery:
    """What has to be in the store, or has to come from it, before records are delivered to MLflow."""

    def __init__(self, folder: Path):
        self._store = store_of(folder)
        self._pusher = Pusher(self._store, folder, DRIVER) if self._store else None

    def ready(self, events: list[dict[str, Any] | None]) -> list[dict[str, Any] | None]:
        """Copy the program's files to the store; return the first of the events that can be delivered now.

        Raises:
            OSError: if the store cannot be written.
        """
        if self._pusher is None or self._store is None:
            return events
        try:
            self._pusher.push()
        except OSError as error:
            raise OSError(f"{self._store.url} cannot be written: {first_line(error)}") from error
        for event in events:
            if event and "path" in event:  # it may be of a process on another machine
                event["path"] = str(self._store.here(Path(event["path"])))
        for number, event in enumerate(events):
            if event and event["kind"] == "image" and not self._is_here(event):
                return events[:number]
        return events

    def _is_here(self, event: dict[str, Any]) -> bool:
        """Fetch a run's image; False if it may still come."""
        image = Path(event["path"])
        if not image.exists():
            fetch_run(image.parent.parent, CHECKPOINTS)
        return image.exists() or time.time() > event["time_ms"] / 1000 + IMAGE_WAIT_S

    def finish(self) -> None:
        """Copy the last state to the store.

        Raises:
            OSError: if the store cannot be written.
        """
        if self._pusher is not None:
            self._pusher.push()

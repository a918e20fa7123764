"""A run's files on their way between its workers and an object store; without a store, nothing happens here.

Uploads run in the background: training waits for the network only at the end of a run.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from orchestration.store.location import is_url, path_of, store_of
from orchestration.store.parts import RUN, Damaged, Pusher, pull
from soflow.config_base import CheckpointPath, first_line

LOG = logging.getLogger(__name__)
FIRST_RETRY_S, LONGEST_RETRY_S = 1.0, 30.0
CHECKPOINTS = "*.pt"
FIRST_TRIES = 4
"""Tries until a process gives up a store that it has never reached."""
_reached: set[str] = set()


def fetch_run(folder: Path, without: str | None = None) -> None:
    """Bring a run's local folder to its state in the store; wait while a store that has worked before is away.

    Damaged files are left out, with a warning: a run computes a report again, from an earlier checkpoint if need be.

    Args:
        without: pattern of files that are not needed, such as CHECKPOINTS.

    Raises:
        OSError: if this process has never reached the store: it may lack credentials.
    """
    if (store := store_of(folder)) is None:
        return
    pause, tries = FIRST_RETRY_S, 0
    while True:
        try:
            pull(store, folder, RUN, without)
            _reached.add(store.url)
            return
        except Damaged as error:
            LOG.warning("%s", error)
            return
        except OSError as error:
            tries += 1
            if store.url not in _reached and tries == FIRST_TRIES:
                raise OSError(f"{store.url} cannot be used on {socket.gethostname()}: {first_line(error)}") from None
            if pause == FIRST_RETRY_S:
                LOG.warning("%s: cannot be read (%s); trying again until it can", store.url_of(folder), error)
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_RETRY_S)


def _fetched(path: Any) -> Any:
    if not (isinstance(path, str) and is_url(path)):
        return path
    folder = path_of(path)
    if store := store_of(folder):
        try:
            pull(store, folder, RUN)
        except (Damaged, OSError, ImportError) as error:
            raise ValueError(f"cannot be fetched ({first_line(error)})") from None
    return folder


StoredCheckpoint = Annotated[CheckpointPath, BeforeValidator(_fetched)]
"""As CheckpointPath, or the URL of a run's or trial's folder in a store, which is fetched."""


class Uploads:
    """Uploads of one worker process, in a thread of its own.

    What a run has written since its last upload is copied at once: a slow store skips checkpoints that were replaced.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[Path] = []
        self._pusher: Pusher | None = None
        threading.Thread(target=self._work, name="uploads", daemon=True).start()

    def add(self, folder: Path) -> None:
        """Upload what a run has written, soon."""
        if store_of(folder) is None:
            return
        with self._changed:
            if folder not in self._waiting[1:]:  # the first may be under way, with an earlier state
                self._waiting.append(folder)
            self._changed.notify_all()

    def wait(self, timeout_s: float | None = None) -> None:
        """Block until everything is uploaded, by default however long the store is away."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting, timeout_s)

    def _work(self) -> None:
        pause, outage = FIRST_RETRY_S, False
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                folder = self._waiting[0]
            try:
                self._push(folder)
            except Exception as error:  # the thread must survive every outage
                if not outage:
                    LOG.warning("%s: cannot be uploaded (%s); trying again until it can", folder, error)
                time.sleep(pause)
                pause, outage = min(2 * pause, LONGEST_RETRY_S), True
                continue
            if outage:
                LOG.warning("%s: is uploaded again", folder)
            pause, outage = FIRST_RETRY_S, False
            with self._changed:
                self._waiting.pop(0)
                self._changed.notify_all()

    def _push(self, folder: Path) -> None:
        store = store_of(folder)
        assert store is not None  # checked by `add`
        if self._pusher is None or self._pusher.folder != folder:
            self._pusher = Pusher(store, folder, RUN)
        self._pusher.push()

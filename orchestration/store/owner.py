"""The one process that runs a sweep or run in an object store, where files cannot be locked."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from orchestration.store.location import Store
from soflow.config_base import ConfigError

LOG = logging.getLogger(__name__)

OWNER = ".owner.json"
SIGN_S = 20.0
"""Seconds between two signs of life."""
DEAD_S = 90.0
"""Seconds without a sign after which a process counts as dead."""


@contextmanager
def owned(store: Store, folder: Path) -> Iterator[None]:
    """Claim a sweep or run in a store for this process, with signs of life until the block ends.

    Raises:
        ConfigError: if a process on another machine gives signs, or the store cannot be written.
    """
    target, me = store.object_of(folder / OWNER), uuid.uuid4().hex

    def write(alive: bool) -> None:
        sign = {"id": me, "host": socket.gethostname(), "pid": os.getpid(), "time": time.time() if alive else 0}
        with store.filesystem.open_output_stream(target) as stream:
            stream.write(json.dumps(sign).encode())

    def sign() -> None:
        while not ended.wait(SIGN_S):
            with suppress(OSError):  # the store is away; others cannot claim it either
                write(alive=True)

    ended = threading.Event()
    try:
        _check_free(store, folder)
        write(alive=True)
    except OSError as error:
        raise ConfigError(f"storage = {store.url}: cannot be used ({first_line(error)})") from None
    thread = threading.Thread(target=sign, name="owner", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(SIGN_S)  # a sign under way would come after the last one
        try:
            write(alive=False)
        except OSError:
            LOG.warning("%s: counts as running for %d s more", store.url_of(folder), DEAD_S)


def _check_free(store: Store, folder: Path) -> None:
    try:
        with store.filesystem.open_input_stream(store.object_of(folder / OWNER)) as stream:
            sign = json.loads(stream.read())
    except (FileNotFoundError, ValueError):
        return
    silent = time.time() - sign["time"]
    if silent < DEAD_S and not _is_dead(sign):
        raise ConfigError(
            f"resume = {folder.name}: process {sign['pid']} on {sign['host']} is already running it; its last sign of "
            f"life is {max(0, silent):.0f} s old; stop it, or wait until it has given none for {DEAD_S:.0f} s"
        )


def _is_dead(sign: dict) -> bool:
    """Check whether a process of this machine is gone."""
    if sign["host"] != socket.gethostname():
        return False
    try:
        os.kill(sign["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def first_line(error: BaseException) -> str:
    """Return the first line of an error, without the SDK's details."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]

"""The one process that runs a sweep or run in an object store, where files cannot be locked."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from orchestration.store.location import Store
from soflow.config_base import ConfigError, first_line

LOG = logging.getLogger(__name__)

OWNER = ".owner.json"
SIGN_S = 20.0
"""Seconds between two signs of life."""
DEAD_S, POLL_S = 90.0, 2.0
"""Seconds without a sign after which a process counts as dead, and between two looks."""
CLOCKS_AGREE_S = 600.0
"""Largest difference between the clocks of two machines: a sign as old as this needs no second look."""
READS = 5
"""Attempts to read a sign, after which it counts as damaged, and its process as dead."""


@contextmanager
def owned(store: Store, folder: Path) -> Iterator[None]:
    """Claim a sweep or run in a store for this process, with signs of life until the block ends.

    If its last process was on another machine, and did not end well, wait DEAD_S for a sign of it. If this process has
    given no signs for so long that another one took over, it is interrupted.

    Raises:
        ConfigError: if a process on another machine gives signs, or the store cannot be used.
    """
    me = uuid.uuid4().hex

    def write(alive: bool) -> None:
        sign = {"id": me, "host": socket.gethostname(), "machine": _machine(), "pid": os.getpid()}
        with store.filesystem.open_output_stream(store.object_of(folder / OWNER)) as stream:
            stream.write(json.dumps(sign | {"time": time.time() if alive else 0}).encode())

    def keep_signing() -> None:
        while not ended.wait(SIGN_S):
            with suppress(OSError):  # the store is away; others cannot claim it either
                if (sign := _read(store, folder)) and sign["id"] != me:
                    LOG.warning("%s: process %d on %s took over", store.url_of(folder), sign["pid"], sign["host"])
                    os.kill(os.getpid(), signal.SIGTERM)
                    return
                write(alive=True)

    ended = threading.Event()
    try:
        _wait_until_free(store, folder)
        write(alive=True)
        if (sign := _read(store, folder)) and sign["id"] != me:  # both started at once
            raise _running(folder, sign)
    except OSError as error:
        raise ConfigError(f"storage = {store.url}: cannot be used ({first_line(error)})") from None
    thread = threading.Thread(target=keep_signing, name="owner", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(SIGN_S)  # a sign under way would come after the last one
        try:
            if (sign := _read(store, folder)) is None or sign["id"] == me:
                write(alive=False)
        except OSError:
            LOG.warning("%s: its end was not noted; a resume elsewhere waits %d s", store.url_of(folder), DEAD_S)


def _read(store: Store, folder: Path) -> dict[str, Any] | None:
    """Return the last sign, None if there is none; one that is replaced while it is read comes in parts of both."""
    for _ in range(READS):
        with suppress(ValueError):
            try:
                with store.filesystem.open_input_stream(store.object_of(folder / OWNER)) as stream:
                    return json.loads(stream.read())
            except FileNotFoundError:
                return None
        time.sleep(0.1)
    return None


def _wait_until_free(store: Store, folder: Path) -> None:
    """Wait until the last process is surely dead; refuse if it lives, on this machine or by another sign of life."""
    first = sign = _read(store, folder)
    began = time.monotonic()
    while sign and time.monotonic() - began < DEAD_S and time.time() - sign["time"] < CLOCKS_AGREE_S:
        if sign["machine"] == _machine() and not _lives(sign["pid"]):
            return
        if sign["machine"] == _machine() or (first and sign["time"] != first["time"]):
            raise _running(folder, sign)
        if sign is first:
            print(f"waiting {DEAD_S:.0f} s for a sign of life of process {sign['pid']} on {sign['host']}", flush=True)
        time.sleep(POLL_S)
        sign = _read(store, folder)


def _running(folder: Path, sign: dict[str, Any]) -> ConfigError:
    return ConfigError(f"resume = {folder.name}: process {sign['pid']} on {sign['host']} is running it; stop it first")


def _lives(pid: int) -> bool:
    """Check whether a process of this machine is alive."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True


def _machine() -> str:
    """Return a name of this machine's processes, also among containers that share its host name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return socket.gethostname()

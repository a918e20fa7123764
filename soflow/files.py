"""Files that several processes may read and write at once: checksums, atomic writes, and patience with disks."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

LOG = logging.getLogger(__name__)
LOCK_FILE = ".lock"
"""File in the folder of a run or sweep that its process locks."""


def sha256(path: Path) -> str:
    """Compute the file's SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` and move it to `path` when the block succeeds.

    Readers see the old file or folder, or the whole new one. If the block raises, nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def read_number(path: Path) -> int | None:
    """Read the number in a file; None if the file is missing or damaged."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


OUTAGES = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EACCES}
"""Errors of a disk that is full, read-only or away for a time."""
RETRY_S = 5.0
Result = TypeVar("Result")


def patiently(write: Callable[[], Result], place: Path, say: Callable[[str], object] = LOG.warning) -> Result:
    """Write, again and again while the disk is full, read-only or away; say so once, and once when it is over.

    Args:
        write: leaves nothing half-written when it raises.
        place: file or folder that is written to.
    """
    waiting = False
    while True:
        try:
            result = write()
        except (OSError, RuntimeError) as error:  # torch.save hides errors of the disk behind a RuntimeError
            outage = _outage(error) or (None if isinstance(error, OSError) else error_of_disk(place))
            if outage is None or outage.errno not in OUTAGES:
                raise
            if not waiting:
                say(f"{place}: cannot be written ({outage.strerror}); waiting until it can")
            waiting = True
            time.sleep(RETRY_S)
        else:
            if waiting:
                say(f"{place}: can be written again")
            return result


def _outage(error: BaseException | None) -> OSError | None:
    """Find the outage that an exception is, or came from; None if there is none."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in OUTAGES:
            return error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def error_of_disk(place: Path) -> OSError | None:
    """Return the error of writing a megabyte to the disk of a file or folder; None if it succeeds."""
    try:
        with tempfile.TemporaryFile(dir=next(path for path in (place, *place.parents) if path.is_dir())) as file:
            file.write(bytes(2**20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error
    return None


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file atomically: readers see either the old or the complete new content."""
    with atomic(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)

"""A queue of events on disk: they outlive the process and wait there for as long as nobody can take them.

Events are lines of `journal.jsonl`, kept after delivery as a record; the file `delivered` holds the position in bytes
up to which they were taken.
"""

from __future__ import annotations

import errno
import itertools
import json
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

LOG = logging.getLogger(__name__)


class TrackingError(RuntimeError):
    """Tracking cannot work as configured; the message names the field, its value and what is allowed."""


class Spool:
    """First in, first out, with any number of recording threads and one delivering thread.

    A disk that is full or not writable never raises: events then wait in memory alone, which is told once.

    Args:
        folder: where the files lie, created if missing.
        visit: called with every event that is in the journal already, delivered or not, oldest first.

    Raises:
        TrackingError: if another spool is open on the same folder.
    """

    def __init__(self, folder: Path, visit: Callable[[dict[str, Any]], object] = lambda event: None):
        self.folder = folder.absolute()
        # (line, where it ends in the journal or None if the disk refused it), oldest first.
        self._waiting: deque[tuple[bytes, int | None]] = deque()
        self._changed = threading.Condition()
        self._stopped, self._warned = False, False
        self._journal, self._end = None, 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Unbuffered: what write() took survives a killed process, and what it refused is not tried again later.
            journal = FileIO(self.folder / "journal.jsonl", "a+")
            _lock(journal, self.folder)
            self._load(journal, visit)
        except OSError as error:
            self._warn(error)

    def _load(self, journal: FileIO, visit: Callable[[dict[str, Any]], object]) -> None:
        journal.seek(0)
        content = journal.readall()
        self._end = content.rfind(b"\n") + 1
        journal.truncate(self._end)  # the last process may have died within a write
        delivered = self._delivered()
        end = 0
        for line in content[: self._end].splitlines(keepends=True):
            end += len(line)
            try:
                visit(json.loads(line))
            except ValueError:
                LOG.warning("%s: the line before byte %d is damaged and left out", journal.name, end)
                continue
            if end > delivered:
                self._waiting.append((line, end))
        self._journal = journal

    def _delivered(self) -> int:
        """The position up to which events were taken; 0 if unknown or if the journal is a new, shorter one."""
        try:
            position = int((self.folder / "delivered").read_text())
        except (OSError, ValueError):
            return 0
        return position if position <= self._end else 0

    def append(self, event: dict[str, Any]) -> None:
        """Record an event of JSON types; scalars of numpy and torch become numbers, anything else text."""
        line = json.dumps(event, default=_plain).encode() + b"\n"
        with self._changed:
            self._waiting.append((line, self._write(line)))
            self._changed.notify_all()

    def _write(self, line: bytes) -> int | None:
        """Where the line ends in the journal, None if the disk refused it."""
        if self._journal is None:
            return None
        try:
            if self._journal.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._warn(error)
            with suppress(OSError):
                self._journal.truncate(self._end)
            return None
        self._end += len(line)
        return self._end

    def wait(self) -> bool:
        """Block until an event waits (True) or `stop` was called (False)."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stopped)
            return not self._stopped

    def wait_empty(self, timeout_s: float) -> bool:
        """Block until no event waits; False if some still do after the timeout."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting, timeout_s)

    def peek(self, limit: int) -> Iterator[dict[str, Any]]:
        """The oldest waiting events, at most `limit`."""
        with self._changed:
            lines = [line for line, _ in itertools.islice(self._waiting, limit)]
        return map(json.loads, lines)

    def drop(self, count: int) -> None:
        """Forget the oldest `count` events, which were delivered."""
        with self._changed:
            taken = [self._waiting.popleft()[1] for _ in range(count)]
            ends = [end for end in taken if end is not None]
            if ends:
                self._save_position(ends[-1])
            self._changed.notify_all()

    def _save_position(self, end: int) -> None:
        temporary = self.folder / "delivered.tmp"
        try:
            temporary.write_text(str(end))
            os.replace(temporary, self.folder / "delivered")
        except OSError as error:  # the events would be sent once more after a restart, which does no harm
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            LOG.warning("%s: cannot be written (%s); reports wait in memory instead", self.folder, error.strerror)
        self._warned = True

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def close(self) -> None:
        """Let others open the folder."""
        if self._journal is not None:
            self._journal.close()

    def __len__(self) -> int:
        return len(self._waiting)


def _lock(journal: FileIO, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise TrackingError(f"{folder}: another process still delivers from it; wait for its end or stop it") from None
    except OSError:  # a file system without locks
        return


def _plain(value: Any) -> Any:
    return value.item() if getattr(value, "shape", None) == () else str(value)

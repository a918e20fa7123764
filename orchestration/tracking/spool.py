"""A queue of events on disk: they outlive the process and wait there for as long as nobody can take them.

Events are lines of `journal.jsonl`, kept after delivery as a record; the file `delivered` holds the position in bytes
up to which they were taken, `index.json` what is to be known of all events up to some position, so that opening a long
journal reads little of it. Memory holds only the events that the disk refused.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

from orchestration.tracking.uri import TrackingError
from soflow.files import write_atomic

LOG = logging.getLogger(__name__)

BYTES_PER_INDEX = 16 * 2**20
"""How much journal is written between two savings of the index, and so the most that opening has to parse."""
BYTES_PER_READ = 2**20


class Index(Protocol):
    """What is to be known of all events that were ever recorded."""

    def add(self, event: dict[str, Any]) -> None: ...

    def state(self) -> dict[str, Any]: ...

    def load(self, state: dict[str, Any]) -> None: ...


class Spool:
    """First in, first out, with any number of recording threads and one delivering thread.

    A disk that is full or not writable never raises: events then wait in memory alone, which is told once.

    Args:
        folder: where the files lie, created if missing.
        index: is told of every event, of those already in the journal too, oldest first.

    Raises:
        TrackingError: if another spool is open on the same folder.
    """

    def __init__(self, folder: Path, index: Index | None = None):
        self.folder, self._index = folder.absolute(), index
        # Oldest first: [start, end] of a stretch of the journal, or a line that the disk refused.
        self._waiting: deque[list[int] | bytes] = deque()
        self._num_waiting = 0
        self._peeked: list[int | None] = []  # where the events of the last peek end, None if not in the journal
        self._changed = threading.Condition()
        self._stopped, self._warned = False, False
        self._journal, self._end, self._indexed = None, 0, 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Unbuffered: what write() took survives a killed process, and what it refused is not tried again later.
            journal = FileIO(self.folder / "journal.jsonl", "a+")
            _lock(journal, self.folder)
            self._load(journal)
        except OSError as error:
            self._warn(error)

    def _load(self, journal: FileIO) -> None:
        self._end = _end_of_lines(journal)
        journal.truncate(self._end)  # the last process may have died within a write
        if self._index is not None:
            self._indexed = self._load_index(journal)
            for line, end in _lines(journal, self._indexed, self._end):
                event = _parsed(line)
                if event is None:
                    LOG.warning("%s: the line before byte %d is damaged and left out", journal.name, end)
                else:
                    self._index.add(event)
        delivered = self._delivered(journal)
        if delivered < self._end:
            self._waiting.append([delivered, self._end])
            self._num_waiting = sum(chunk.count(b"\n") for chunk, _ in _chunks(journal, delivered, self._end))
        self._journal = journal

    def _load_index(self, journal: FileIO) -> int:
        """The position up to which the saved index knows the journal; 0 if there is none that belongs to it."""
        try:
            saved = json.loads((self.folder / "index.json").read_text())
            if not _is_line_end(journal, saved["position"], self._end):
                return 0
            self._index.load(saved["state"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        return saved["position"]

    def _delivered(self, journal: FileIO) -> int:
        """The position up to which events were taken; 0 if unknown or if the journal is another one."""
        try:
            position = int((self.folder / "delivered").read_text())
        except (OSError, ValueError):
            return 0
        return position if _is_line_end(journal, position, self._end) else 0

    def append(self, event: dict[str, Any]) -> None:
        """Record an event of JSON types; scalars of numpy and torch become numbers, anything else text."""
        line = json.dumps(event, default=_plain).encode() + b"\n"
        with self._changed:
            start = self._end
            if not self._write(line):
                self._waiting.append(line)
            elif self._waiting and isinstance(self._waiting[-1], list):
                self._waiting[-1][1] = self._end
            else:
                self._waiting.append([start, self._end])
            self._num_waiting += 1
            if self._index is not None:
                self._index.add(event)
                if self._end - self._indexed >= BYTES_PER_INDEX:
                    self._save_index()
            self._changed.notify_all()

    def _write(self, line: bytes) -> bool:
        """Whether the disk took it."""
        if self._journal is None:
            return False
        try:
            if self._journal.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._warn(error)
            with suppress(OSError):
                self._journal.truncate(self._end)
            return False
        self._end += len(line)
        return True

    def _save_index(self) -> None:
        if any(isinstance(item, bytes) for item in self._waiting):
            return  # the index knows events that would be lost with this process
        saved = json.dumps({"position": self._end, "state": self._index.state()})
        if self._replace("index.json", saved):
            self._indexed = self._end

    def wait(self) -> bool:
        """Block until an event waits (True) or `stop` was called (False)."""
        with self._changed:
            self._changed.wait_for(lambda: self._num_waiting or self._stopped)
            return not self._stopped

    def wait_empty(self, timeout_s: float) -> bool:
        """Block until no event waits; False if some still do after the timeout."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._num_waiting, timeout_s)

    def peek(self, limit: int) -> list[dict[str, Any] | None]:
        """The oldest waiting events, at most `limit`; None stands for a damaged one.

        Raises:
            OSError: if the journal cannot be read.
        """
        with self._changed:
            items = [list(item) if isinstance(item, list) else item for item in self._waiting]
        taken: list[tuple[bytes, int | None]] = []
        for item in items:
            lines = _lines(self._journal, *item) if isinstance(item, list) else [(item, None)]
            for line in lines:
                if len(taken) == limit:
                    break
                taken.append(line)
        self._peeked = [end for _, end in taken]
        return [_parsed(line) for line, _ in taken]

    def drop(self, count: int) -> None:
        """Forget the oldest `count` events, of those last peeked, which were delivered."""
        ends = self._peeked[:count]
        with self._changed:
            for end in ends:
                if end is None or end == self._waiting[0][1]:
                    self._waiting.popleft()
                else:
                    self._waiting[0][0] = end
            self._num_waiting -= len(ends)
            if journalled := [end for end in ends if end is not None]:
                # If that fails, events would be sent once more after a restart, which does no harm.
                self._replace("delivered", str(journalled[-1]))
            self._changed.notify_all()

    def _replace(self, name: str, text: str) -> bool:
        """Write a file whole; False if the disk refuses."""
        try:
            write_atomic(self.folder / name, text)
        except OSError as error:
            self._warn(error)
            return False
        return True

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            LOG.warning("%s: cannot be written (%s); reports wait in memory instead", self.folder, error.strerror)
        self._warned = True

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    @property
    def stopped(self) -> bool:
        return self._stopped

    def close(self) -> None:
        """Let others open the folder."""
        if self._journal is not None:
            with self._changed:
                if self._index is not None and self._end > self._indexed:
                    self._save_index()
            self._journal.close()

    def __len__(self) -> int:
        return self._num_waiting


def _chunks(journal: FileIO, start: int, end: int) -> Iterator[tuple[bytes, int]]:
    """Pieces of the journal from start to end, each with the position where it ends."""
    while start < end:
        chunk = os.pread(journal.fileno(), min(BYTES_PER_READ, end - start), start)
        if not chunk:
            raise OSError(errno.EIO, f"{journal.name} is shorter than it was")
        start += len(chunk)
        yield chunk, start


def _lines(journal: FileIO, start: int, end: int) -> Iterator[tuple[bytes, int]]:
    """Lines of the journal from start to end, each with the position where it ends."""
    rest = b""
    for chunk, _ in _chunks(journal, start, end):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            start += len(line) + 1
            yield line, start


def _end_of_lines(journal: FileIO) -> int:
    """The position after the last newline."""
    end = os.fstat(journal.fileno()).st_size
    while end > 0:
        start = max(0, end - BYTES_PER_READ)
        newline = os.pread(journal.fileno(), end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _is_line_end(journal: FileIO, position: int, end: int) -> bool:
    return position == 0 or (position <= end and os.pread(journal.fileno(), 1, position - 1) == b"\n")


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except ValueError:
        return None


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

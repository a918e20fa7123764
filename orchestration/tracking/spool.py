"""Queue of events on disk, which survive the process and any outage of the server.

Events are lines of `journal.jsonl` and stay there after delivery. The file `delivered` contains the position in bytes
up to which events were delivered. `index.json` contains a summary of all events up to some position, so that opening a
long journal reads only its end. Only events that could not be written to disk are kept in memory.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

from orchestration.tracking.uri import TrackingError
from soflow.files import write_atomic

LOG = logging.getLogger(__name__)

BYTES_PER_INDEX = 16 * 2**20
"""Journal bytes between two saves of the index, and so the most that opening a spool has to parse."""
BYTES_PER_READ = 2**20


class Index(Protocol):
    """Summary of all events of a spool, updated with every event."""

    def add(self, event: dict[str, Any]) -> None:
        """Update the summary with an event."""
        ...

    def state(self) -> dict[str, Any]:
        """Return the summary as JSON types."""
        ...

    def load(self, state: dict[str, Any]) -> None:
        """Restore the summary from `state`."""
        ...


class Spool:
    """First-in-first-out queue for any number of appending threads and one delivering thread.

    A full or read-only disk never raises: events are then kept in memory, with one warning.

    Args:
        folder: folder of the files, created if missing.
        index: summary that receives every event, including those already in the journal, oldest first.

    Raises:
        TrackingError: if another spool is open on the same folder.
    """

    def __init__(self, folder: Path, index: Index | None = None):
        self.folder, self._index = folder.absolute(), index
        # Undelivered events, oldest first: [start, end] of a journal range, or a line that could not be written.
        self._waiting: deque[list[int] | bytes] = deque()
        self._num_waiting = 0
        self._peeked: list[int | None] = []  # end positions of the last peek's events, None if not in the journal
        self._changed = threading.Condition()
        self._stopped, self._warned = False, False
        self._journal: FileIO | None = None
        self._end, self._indexed = 0, 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Unbuffered: a line that write() accepted survives a kill, and a failed one is not written again at close.
            journal = FileIO(self.folder / "journal.jsonl", "a+")
            _lock(journal, self.folder)
            self._load(journal)
        except OSError as error:
            self._warn(error)

    def _load(self, journal: FileIO) -> None:
        self._end = _end_of_lines(journal)
        # A process killed during a write leaves half a line, to which the next event would be appended.
        journal.truncate(self._end)
        if self._index is not None:
            self._indexed = self._load_index(journal, self._index)
            for line, end in _lines(journal, self._indexed, self._end):
                event = _parsed(line)
                if event is None:
                    LOG.warning("%s: skipping the damaged line before byte %d", journal.name, end)
                else:
                    self._index.add(event)
        delivered = self._delivered(journal)
        if delivered < self._end:
            self._waiting.append([delivered, self._end])
            self._num_waiting = sum(chunk.count(b"\n") for chunk, _ in _chunks(journal, delivered, self._end))
        self._journal = journal

    def _load_index(self, journal: FileIO, index: Index) -> int:
        """Load the saved index and return the journal position that it covers; 0 without a valid index."""
        try:
            saved = json.loads((self.folder / "index.json").read_text())
            if not _is_line_end(journal, saved["position"], self._end):
                return 0
            index.load(saved["state"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        return saved["position"]

    def _delivered(self, journal: FileIO) -> int:
        """Return the position up to which events were delivered; 0 if unknown or not of this journal."""
        try:
            position = int((self.folder / "delivered").read_text())
        except (OSError, ValueError):
            return 0
        return position if _is_line_end(journal, position, self._end) else 0

    def append(self, event: dict[str, Any]) -> None:
        """Append an event of JSON types; numpy and torch scalars become numbers, other objects text."""
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
                    self._save_index(self._index)
            self._changed.notify_all()

    def _write(self, line: bytes) -> bool:
        """Append a line to the journal; return False if the disk rejects it."""
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

    def _save_index(self, index: Index) -> None:
        if any(isinstance(item, bytes) for item in self._waiting):
            # The index includes events that exist in memory only. If they are lost with this process, a saved index
            # would claim that they were logged, and a resumed run would not log them again.
            return
        saved = json.dumps({"position": self._end, "state": index.state()})
        if self._replace("index.json", saved):
            self._indexed = self._end

    def wait(self) -> bool:
        """Block until an event is undelivered (True) or `stop` was called (False)."""
        with self._changed:
            self._changed.wait_for(lambda: self._num_waiting or self._stopped)
            return not self._stopped

    def wait_empty(self, timeout_s: float) -> bool:
        """Block until every event is delivered; return False on timeout."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._num_waiting, timeout_s)

    def peek(self, limit: int) -> list[dict[str, Any] | None]:
        """Return the oldest undelivered events, at most `limit`; None for a damaged one.

        Raises:
            OSError: if the journal cannot be read.
        """
        with self._changed:
            items = [list(item) if isinstance(item, list) else item for item in self._waiting]
        peeked: list[tuple[bytes, int | None]] = []
        lines: Iterable[tuple[bytes, int | None]]
        for item in items:
            if isinstance(item, bytes):
                lines = [(item, None)]
            else:
                assert self._journal is not None  # it has the range
                lines = _lines(self._journal, *item)
            for line_and_end in lines:
                if len(peeked) == limit:
                    break
                peeked.append(line_and_end)
        self._peeked = [end for _, end in peeked]
        return [_parsed(line) for line, _ in peeked]

    def drop(self, count: int) -> None:
        """Remove the first `count` events of the last `peek`, which were delivered."""
        ends = self._peeked[:count]
        with self._changed:
            for end in ends:
                first = self._waiting[0]
                if end is None or isinstance(first, bytes) or end == first[1]:
                    self._waiting.popleft()
                else:
                    first[0] = end
            self._num_waiting -= len(ends)
            if journalled := [end for end in ends if end is not None]:
                # If this write fails, events are sent again after a restart, which changes nothing in MLflow.
                self._replace("delivered", str(journalled[-1]))
            self._changed.notify_all()

    def rewind(self) -> None:
        """Make all events of the journal undelivered again, for a server that has lost what was delivered."""
        with self._changed:
            in_memory = [item for item in self._waiting if isinstance(item, bytes)]
            self._waiting.clear()
            self._num_waiting = len(in_memory)
            if self._journal is not None and self._end:
                self._waiting.append([0, self._end])
                self._num_waiting += sum(chunk.count(b"\n") for chunk, _ in _chunks(self._journal, 0, self._end))
            self._waiting += in_memory
            self._replace("delivered", "0")

    def _replace(self, name: str, text: str) -> bool:
        """Replace a file atomically; return False if the disk rejects it."""
        try:
            write_atomic(self.folder / name, text)
        except OSError as error:
            self._warn(error)
            return False
        return True

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            LOG.warning("%s: cannot be written (%s); reports are kept in memory", self.folder, error.strerror)
        self._warned = True

    def stop(self) -> None:
        """Make `wait` return False."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    @property
    def stopped(self) -> bool:
        return self._stopped

    def close(self) -> None:
        """Save the index and release the folder's lock."""
        if self._journal is not None:
            with self._changed:
                if self._index is not None and self._end > self._indexed:
                    self._save_index(self._index)
            self._journal.close()

    def __len__(self) -> int:
        return self._num_waiting


def _chunks(journal: FileIO, start: int, end: int) -> Iterator[tuple[bytes, int]]:
    """Yield chunks of the journal from start to end, each with its end position."""
    while start < end:
        chunk = os.pread(journal.fileno(), min(BYTES_PER_READ, end - start), start)
        if not chunk:
            raise OSError(errno.EIO, f"{journal.name} was truncated by another program")
        start += len(chunk)
        yield chunk, start


def _lines(journal: FileIO, start: int, end: int) -> Iterator[tuple[bytes, int]]:
    """Yield lines of the journal from start to end, each with its end position."""
    rest = b""
    for chunk, _ in _chunks(journal, start, end):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            start += len(line) + 1
            yield line, start


def _end_of_lines(journal: FileIO) -> int:
    """Return the position after the last newline."""
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
        raise TrackingError(f"{folder}: another process is delivering from it; wait for it to end or stop it") from None
    except OSError:  # the file system does not support locks
        return


def _plain(value: Any) -> Any:
    return value.item() if getattr(value, "shape", None) == () else str(value)

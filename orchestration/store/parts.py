"""Copying of folders between this machine and an object store, whole state by whole state.

A folder has two *parts*, each with one writer: `driver`, with the files of a sweep's or run's program, and `run`, with
those of the training workers. A part's manifest in the store lists its files with size and checksum. It is written
after them, and no object in use is overwritten: so readers see the old or the new state, whenever a writer dies.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from filelock import FileLock

from orchestration.store.location import Store
from soflow.files import atomic, sha256, write_atomic

LOG = logging.getLogger(__name__)

SPOOL, STUDY_FILE = "spool", "study.journal"
"""Folder of the records that MLflow has not taken yet, and file of a sweep's study."""
AT_ONCE = 8
"""Files that are copied at a time."""
BLOCK = 2**20
RUN_FILES = (
    "reports/*.json",
    "config.yaml",
    "best.json",
    "code/**/*",
    "grids/*.png",
    "*.pt",
    "snapshots/*.pt",
)
"""Files of a run, reports first: a report found by a scan has all its files, as they were written before it."""
GROWING = (f"{SPOOL}/journal.jsonl", STUDY_FILE)
"""Files to which their process appends, in the order of a scan: what the first says has happened, the second knows."""
KEPT = (*GROWING, "sweep.yaml", "run.yaml", "config.yaml")
"""Files that their process never deletes."""


class Damaged(RuntimeError):
    """Objects of a store that are missing or do not match their checksums; the message names them."""


@dataclass(frozen=True)
class StoredFile:
    """Object that has a file's content."""

    object: str
    """Path in the store, relative to the folder."""
    size: int
    sha256: str


@dataclass
class Manifest:
    """State of a part in the store."""

    version: str | None = None
    """Random; None if the store has no such part."""
    files: dict[str, StoredFile] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """Files of a folder that have one writer."""

    name: str
    scan: Callable[[Path], Iterable[Path]]

    @property
    def manifest(self) -> str:
        return f".manifest-{self.name}.json"

    @property
    def version(self) -> str:
        """Name of the local file with the version that this machine has read or written last."""
        return f".version-{self.name}"


def _run_files(folder: Path) -> list[Path]:
    return [path for pattern in RUN_FILES for path in folder.glob(pattern) if path.is_file()]


def _driver_files(folder: Path) -> list[Path]:
    found = [path for path in (*folder.glob(f"{SPOOL}/*"), *folder.glob("*")) if path.is_file()]
    names = {path: path.relative_to(folder).as_posix() for path in found}
    kept = [path for path in found if path.name[0] != "." and not any(fnmatch(names[path], of) for of in RUN_FILES)]
    return sorted(kept, key=lambda path: (*GROWING, names[path]).index(names[path]))


DRIVER, RUN = Part("driver", _driver_files), Part("run", _run_files)


def pull(store: Store, folder: Path, part: Part, without: str | None = None) -> None:
    """Bring a part of a local folder to its state in the store, and delete its other files.

    If nobody else has changed the store since this machine read or wrote it, the local files may be ahead: they stay.

    Args:
        without: pattern of files that are not needed.

    Raises:
        Damaged: after all intact files were copied.
        OSError: if the store cannot be reached.
    """
    with _no_push(folder, part):
        while True:
            manifest = read_manifest(store, folder, part)
            known = folder / part.version
            unchanged = manifest.version == (known.read_text() if known.exists() else None)
            wanted = {
                name: stored for name, stored in manifest.files.items() if not (without and fnmatch(name, without))
            }
            if not unchanged:
                known.unlink(missing_ok=True)  # until all is copied, this machine has neither state
                for path in part.scan(folder):
                    if path.relative_to(folder).as_posix() not in wanted:
                        path.unlink(missing_ok=True)
            missing = {
                name: stored for name, stored in wanted.items() if not _is_here(folder / name, stored, unchanged)
            }
            with ThreadPoolExecutor(AT_ONCE) as pool:
                faults = list(filter(None, pool.map(lambda item: _fetch(store, folder, *item), missing.items())))
            if faults and read_manifest(store, folder, part).version != manifest.version:
                continue  # its writer has replaced them meanwhile
            if manifest.version:
                write_atomic(known, manifest.version)
            if faults:
                raise Damaged("; ".join(faults))
            return


def _no_push(folder: Path, part: Part) -> FileLock:
    """Return a lock in which no process of this machine changes what version a part has."""
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f".lock-{part.name}")


def _is_here(path: Path, stored: StoredFile, any_content: bool) -> bool:
    if any_content or not path.exists():
        return path.exists()
    return path.stat().st_size == stored.size and sha256(path) == stored.sha256


def _fetch(store: Store, folder: Path, name: str, stored: StoredFile) -> str:
    """Copy a file from the store; return what is wrong with it, "" if nothing."""
    source, digest, size = folder / stored.object, hashlib.sha256(), 0
    try:
        with atomic(folder / name) as partial, partial.open("wb") as target:
            with store.filesystem.open_input_stream(store.object_of(source)) as stream:
                while block := stream.read(BLOCK):
                    target.write(block)
                    digest.update(block)
                    size += len(block)
            if (size, digest.hexdigest()) != (stored.size, stored.sha256):
                raise ValueError("does not match its checksum")
    except (FileNotFoundError, ValueError) as error:
        (folder / name).unlink(missing_ok=True)  # it is of another state
        reason = "is missing" if isinstance(error, FileNotFoundError) else str(error)
        return f"{store.url_of(source)}: {reason}"
    return ""


def read_manifest(store: Store, folder: Path, part: Part) -> Manifest:
    """Read the state of a part in the store.

    Raises:
        Damaged: if its manifest cannot be read.
        OSError: if the store cannot be reached.
    """
    try:
        with store.filesystem.open_input_stream(store.object_of(folder / part.manifest)) as stream:
            values = json.loads(stream.read())
        files = {name: StoredFile(**stored) for name, stored in values["files"].items()}
        for name in (*files, *(stored.object for stored in files.values())):
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise ValueError("names a file outside of its folder")
        return Manifest(values["version"], files)
    except FileNotFoundError:
        return Manifest()
    except (ValueError, KeyError, TypeError):
        raise Damaged(f"{store.url_of(folder / part.manifest)}: is damaged") from None


class Pusher:
    """Copies a part of a folder to the store; knows what is there already. For one thread.

    Args:
        folder: local folder; this process is the only writer of the part.
    """

    def __init__(self, store: Store, folder: Path, part: Part):
        self.store, self.folder, self.part = store, folder, part
        self._manifest: Manifest | None = None
        self._marks: dict[str, tuple[int, int, int]] = {}
        """Inode, size and modification time of the files as they are in the store."""

    def push(self) -> None:
        """Copy all files that have changed, delete those that are gone, and make this the part's state.

        Raises:
            OSError: if the store cannot be written; the next call does the rest. Also if another process has written
                the part, or the local files are gone: the store keeps what it has.
        """
        before = read_manifest(self.store, self.folder, self.part)
        if self._manifest and self._manifest.version != before.version:
            raise OSError(f"another process has written {self.store.url_of(self.folder)}")
        names, changed, marks = [], {}, {}
        for path in self.part.scan(self.folder):
            name = path.relative_to(self.folder).as_posix()
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            names.append(name)
            mark = status.st_ino, status.st_size, status.st_mtime_ns
            if self._marks.get(name) != mark or name not in before.files:
                changed[name], marks[name] = path, mark
        if gone := [name for name in KEPT if name in before.files and name not in names]:
            raise OSError(f"{self.folder / gone[0]} is gone from this machine")
        with ThreadPoolExecutor(AT_ONCE) as pool:
            copied = pool.map(lambda name: self._copy(name, changed[name], marks[name][1], before), changed)
            stored = {name: file for name, file in zip(changed, copied, strict=True) if file is not None}
        known = before.files | stored
        files = {name: known[name] for name in names if name in known}
        if files != before.files:
            now = Manifest(uuid.uuid4().hex, files)
            with _no_push(self.folder, self.part):
                self._write(self.part.manifest, [json.dumps(asdict(now)).encode()])
                write_atomic(self.folder / self.part.version, now.version or "")
            self._delete({file.object for file in before.files.values()} - {file.object for file in files.values()})
        else:
            now = before
        self._manifest = now
        self._marks = {name: mark for name, mark in (self._marks | marks).items() if name in files}

    def _copy(self, name: str, path: Path, size: int, before: Manifest) -> StoredFile | None:
        """Copy a file unless the store has its content; return None if it was deleted meanwhile."""
        try:
            source = path.open("rb")
        except FileNotFoundError:
            return None
        with source:  # an open file keeps its content when it is replaced, as all but the growing ones are
            size = size if name in GROWING else os.fstat(source.fileno()).st_size
            digest, old = _sha256(_blocks(source, size)), before.files.get(name)
            if old and (old.size, old.sha256) == (size, digest):
                return old
            source.seek(0)
            stored = StoredFile(f"{name}~{digest[:8]}" if old else name, size, digest)
            self._write(stored.object, _blocks(source, size))
        return stored

    def _write(self, name: str, blocks: Iterable[bytes]) -> None:
        target = self.store.object_of(self.folder / name)
        with self.store.filesystem.open_output_stream(target) as stream:
            for block in blocks:
                stream.write(block)

    def _delete(self, names: Iterable[str]) -> None:
        for name in names:
            try:
                self.store.filesystem.delete_file(self.store.object_of(self.folder / name))
            except OSError as error:  # an object too many harms nobody
                LOG.warning("%s: cannot be deleted (%s)", self.store.url_of(self.folder / name), error)


def _sha256(blocks: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()


def _blocks(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Yield the next `size` bytes of a file in blocks."""
    while size and (block := file.read(min(BLOCK, size))):
        yield block
        size -= len(block)

"""Digests and sizes of a dataset's files, so that its fingerprint is that of its contents, which a copy keeps.

Files are read once. Their digests are cached in one JSON file per dataset, in the folder of the environment variable
SOFLOW_CACHE, by default ~/.cache/soflow. A file is read again if its size or modification time changes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock
from PIL import Image
from rich.console import Console
from rich.progress import track

from soflow.data.base import DataError
from soflow.files import sha256, write_atomic

THREADS = 8
FEW = 1000
"""Largest number of files that are read without a progress bar."""


@dataclass(frozen=True)
class Entry:
    """A file's size in bytes, modification time, content and, of an image, width and height in pixels."""

    size: int
    mtime_ns: int
    sha256: str
    sides: tuple[int, int] | None


def manifest(root: Path, paths: Sequence[Path]) -> list[Entry]:
    """Return the entries of files, all of them in the folder `root`, from the cache or by reading them.

    Of several processes on a machine, one reads the files and the others wait for it.

    Raises:
        DataError: if a file cannot be read.
    """
    cache = _cache_file(root)
    try:
        with suppress(OSError):  # without a writable cache, every process reads the files
            cache.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{cache}.lock") if os.access(cache.parent, os.W_OK) else nullcontext():
            return _entries(root, paths, cache)
    except OSError as error:
        raise DataError(f"{error.filename or root}: cannot be read ({error.strerror or error})") from None


def _entries(root: Path, paths: Sequence[Path], cache: Path) -> list[Entry]:
    known = _load(cache)
    names = [str(path.relative_to(root)) for path in paths]
    stats = [path.stat() for path in paths]
    changed = [
        i
        for i, (name, stat) in enumerate(zip(names, stats, strict=True))
        if name not in known or (known[name].size, known[name].mtime_ns) != (stat.st_size, stat.st_mtime_ns)
    ]
    with ThreadPoolExecutor(THREADS) as readers:
        read: Iterable[Entry] = readers.map(_read, [paths[i] for i in changed], [stats[i] for i in changed])
        if len(changed) > FEW:
            read = track(read, f"reading {root} once", len(changed), console=Console(stderr=True), transient=True)
        known |= {names[i]: entry for i, entry in zip(changed, read, strict=True)}
    if changed:
        with suppress(OSError):
            write_atomic(cache, json.dumps({name: asdict(entry) for name, entry in known.items()}))
    return [known[name] for name in names]


def fingerprint(description: str, root: Path, paths: Sequence[Path]) -> str:
    """Compute a digest of a description, and of the names and contents of files."""
    digest = hashlib.sha256(description.encode())
    for path, entry in zip(paths, manifest(root, paths), strict=True):
        digest.update(f"\n{path.relative_to(root).as_posix()} {entry.sha256}".encode())
    return digest.hexdigest()


def _read(path: Path, stat: os.stat_result) -> Entry:
    sides = None
    with suppress(OSError, ValueError, Image.DecompressionBombError), Image.open(path) as image:
        sides = image.size
    return Entry(stat.st_size, stat.st_mtime_ns, sha256(path), sides)


def _cache_file(root: Path) -> Path:
    folder = Path(os.environ.get("SOFLOW_CACHE") or Path.home() / ".cache" / "soflow")
    return folder / "manifests" / f"{hashlib.sha256(str(root.absolute()).encode()).hexdigest()[:32]}.json"


def _load(cache: Path) -> dict[str, Entry]:
    try:
        return {
            name: Entry(**values | {"sides": values["sides"] and tuple(values["sides"])})
            for name, values in json.loads(cache.read_text()).items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}  # missing or damaged

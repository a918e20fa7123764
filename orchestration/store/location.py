"""Object stores as storage, and the local folders that stand for them.

Every process works in a local folder, as on a shared disk. The folder's name is the store's URL, encoded, so that any
process that is given a path in it knows its store.
"""

from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from soflow.config_base import has_password

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

SCHEME = "=3A=2F=2F"
"""`://`, encoded: percent signs would be decoded by some readers of the URLs that MLflow makes of paths."""
LONGEST_URL = 250
"""Bytes of an encoded URL; file systems allow 255 in a name."""
CREDENTIALS = (
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for s3://, with AWS_ENDPOINT_URL for other servers than Amazon's, and "
    "GOOGLE_APPLICATION_CREDENTIALS for gs://"
)
"""Where credentials belong."""


@dataclass(frozen=True)
class Store:
    """Object store, as one process sees it.

    Attributes:
        url: of the storage, e.g. s3://bucket/prefix.
        folder: local folder that stands for it.
    """

    url: str
    folder: Path

    def url_of(self, path: Path) -> str:
        """Return the URL of what a path in the local folder stands for."""
        base, mark, options = self.url.partition("?")
        return "/".join((base, *path.relative_to(self.folder).parts)) + mark + options

    def object_of(self, path: Path) -> str:
        """Return the name in `filesystem` of what a path in the local folder stands for."""
        return "/".join((_opened(self.url)[1], *path.relative_to(self.folder).parts))

    def here(self, path: Path) -> Path:
        """Return where a path in another machine's local folder of this store is in this one."""
        other = store_of(path)
        return self.folder / path.relative_to(other.folder) if other else path

    @property
    def filesystem(self) -> FileSystem:
        """The store's file system; opened once per process."""
        return _opened(self.url)[0]


@functools.cache
def _opened(url: str) -> tuple[FileSystem, str]:
    """Open a store with pyarrow, or with fsspec for schemes that pyarrow does not know.

    Raises:
        ValueError, OSError, ImportError: if the URL is none of a store, or its package is missing.
    """
    import pyarrow
    from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

    try:
        filesystem, path = FileSystem.from_uri(url)
    except pyarrow.ArrowInvalid:
        import fsspec

        other, path = fsspec.core.url_to_fs(url)
        filesystem = PyFileSystem(FSSpecHandler(other))
    return filesystem, path.rstrip("/")


def is_url(text: str) -> bool:
    """Check whether a text is a URL rather than a path."""
    return re.match(r"\w[\w+.-]*://", text) is not None


def local_folder(url: str) -> Path:
    """Return the local folder of a store, in the cache folder: SOFLOW_CACHE, by default ~/.cache/soflow.

    Raises:
        ValueError: if the URL contains a password or is too long.
    """
    if has_password(url):
        raise ValueError(f"must not contain a password, which would be stored and shown; set {CREDENTIALS}")
    if url.startswith("file://"):
        return Path(unquote(url.removeprefix("file://")))
    name = quote(url.rstrip("/"), safe="").replace("%", "=")
    if len(name) > LONGEST_URL:
        raise ValueError(f"must have at most {LONGEST_URL} bytes as a file name, not {len(name)}")
    return Path(os.environ.get("SOFLOW_CACHE") or Path.home() / ".cache" / "soflow").absolute() / "stores" / name


def store_of(path: Path) -> Store | None:
    """Return the store that a path is in; None for a path on a disk."""
    for folder in (path, *path.parents):
        if SCHEME in folder.name:
            return Store(unquote(folder.name.replace("=", "%")), folder)
    return None


def on_this_machine(path: Path) -> Path:
    """Return where a path, possibly in another machine's local folder of a store, is on this machine."""
    store = store_of(path)
    return Store(store.url, local_folder(store.url)).here(path) if store else path


def url_or_path(path: Path) -> str:
    """Return a path as users know it: the URL of one in a store."""
    store = store_of(path)
    return store.url_of(path) if store else str(path)


def path_of(text: str) -> Path:
    """Return the path of a folder that a user names by its path or, in a store, by its URL."""
    if not is_url(text):
        return Path(text)
    base, mark, options = text.rstrip("/").partition("?")
    parent, _, name = base.rstrip("/").rpartition("/")
    return local_folder(parent + mark + options) / name

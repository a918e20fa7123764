"""An S3-compatible server for tests, in a process of its own, and the environment in which programs find it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress

BUCKET = "bucket"


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """Run a server with an empty bucket; yield the environment variables that lead to it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        _create_bucket(url)
        yield {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret-of-tests",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": url,
        }
    finally:
        server.kill()
        server.wait()


def _create_bucket(url: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        with suppress(OSError):
            urllib.request.urlopen(urllib.request.Request(f"{url}/{BUCKET}", method="PUT"), timeout=5).close()
            return
        assert time.monotonic() < deadline, "the S3 server does not answer"
        time.sleep(0.1)


def objects(folder: str) -> dict[str, int]:
    """Return the sizes of the objects below s3://BUCKET/folder by name, asked with the process's own environment."""
    from pyarrow.fs import FileSelector, FileSystem, FileType

    filesystem, path = FileSystem.from_uri(f"s3://{BUCKET}/{folder}")
    found = filesystem.get_file_info(FileSelector(path, recursive=True, allow_not_found=True))
    return {info.path.removeprefix(f"{path}/"): info.size for info in found if info.type == FileType.File}


def inherit(environment: dict[str, str], setenv) -> None:
    """Set the environment with pytest's `monkeypatch.setenv`."""
    for name, value in (os.environ | environment).items():
        if os.environ.get(name) != value:
            setenv(name, value)

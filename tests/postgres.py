"""A PostgreSQL server for tests, started from the system's package, with a password for its only user."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

USER, PASSWORD = "soflow", "a-database-password"
BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
AVAILABLE = bool(BINARIES) and (os.getuid() != 0 or shutil.which("runuser") is not None)
"""True if this machine has PostgreSQL; as root, it must be started as another user."""


@contextmanager
def postgres(*databases: str) -> Iterator[str]:
    """Run a server with these empty databases; yield its address, "127.0.0.1:PORT"."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    other_user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))  # not pytest's, which other users cannot enter
    (folder / "password").write_text(PASSWORD)
    if other_user:
        shutil.chown(folder, "postgres")
        shutil.chown(folder / "password", "postgres")
    data, command = folder / "data", BINARIES[-1] / "postgres"
    _run(other_user, "initdb", f"-D{data}", f"-U{USER}", f"--pwfile={folder / 'password'}", "-Ascram-sha-256")
    server = subprocess.Popen(
        [*other_user, str(command), f"-D{data}", f"-p{port}", f"-k{folder}", "-c", "fsync=off"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        address = ["-h127.0.0.1", f"-p{port}", f"-U{USER}"]
        deadline = time.monotonic() + 60
        while subprocess.run([str(BINARIES[-1] / "pg_isready"), *address], capture_output=True).returncode:
            assert time.monotonic() < deadline, "PostgreSQL does not start"
            time.sleep(0.1)
        for database in databases:
            _run([], "createdb", *address, database)
        yield f"127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _run(prefix: list[str], program: str, *arguments: str) -> None:
    command = [*prefix, str(BINARIES[-1] / program), *arguments]
    environment = os.environ | {"PGPASSWORD": PASSWORD}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/")
    assert done.returncode == 0, done.stderr

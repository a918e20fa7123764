"""An S3-compatible server, and local folders of runs in it as they are on different machines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.object_store import BUCKET, inherit, s3_server


@pytest.fixture(scope="session")
def server() -> Iterator[dict[str, str]]:
    with s3_server() as environment:
        yield environment


@pytest.fixture
def machine(server, tmp_path, monkeypatch) -> Callable[..., Path]:
    """Make the local folder of a run as it is on a machine of this name; all are of one test's own store."""
    inherit(server, monkeypatch.setenv)

    def folder(name: str, run: str = "run") -> Path:
        path = tmp_path / name / f"s3=3A=2F=2F{BUCKET}=2F{tmp_path.name}" / run
        path.mkdir(parents=True, exist_ok=True)
        return path

    return folder

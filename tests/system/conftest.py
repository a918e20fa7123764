"""Fixtures of the system tests, which start real programs."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import chromium  # noqa: F401 - a fixture
from session import Session


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(tmp_path)

"""Fixtures of tests that record in MLflow."""

from __future__ import annotations

import uuid

import pytest
from PIL import Image

from tests.database import new_database


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    """An empty database, in a folder whose name needs to be quoted."""
    return new_database(tmp_path_factory.mktemp("mlflow ü"))


@pytest.fixture
def experiment():
    return f"experiment {uuid.uuid4().hex}"


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "grid.png"
    Image.new("L", (16, 8), 100).save(path)
    return path

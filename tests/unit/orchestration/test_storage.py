"""Folders of sweeps and runs."""

from pathlib import Path

import pytest

from orchestration.storage import check_storage
from soflow.config_base import ConfigError


@pytest.mark.parametrize("storage", ["s3://bucket/results", "gs://bucket", "file:///results"])
def test_an_object_store_is_refused_in_one_line(storage):
    with pytest.raises(ConfigError, match=r"storage = .*: must be a folder that all nodes share"):
        check_storage(Path(storage))

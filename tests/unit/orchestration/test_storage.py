"""Folders of sweeps and runs on a disk; those in stores are tested in store/."""

from __future__ import annotations

import pytest

from orchestration.storage import check_storage
from soflow.config_base import ConfigError


def test_a_folder_is_made_and_one_that_cannot_be_is_refused_in_one_line(tmp_path):
    check_storage(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"storage = .*/file: must be a writable folder \(File exists\)"):
        check_storage(tmp_path / "file")

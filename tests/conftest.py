"""Settings of all tests, and how pytest-xdist divides them."""

from __future__ import annotations

import os
import tempfile

import pytest
import torch

# Sums, and so the last bits of results, depend on the number of threads.
torch.set_num_threads(1)
# Tests say where their records go.
os.environ.pop("MLFLOW_TRACKING_URI", None)
os.environ["SOFLOW_CACHE"] = tempfile.mkdtemp()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """Run all system tests in one worker process, which shares a cluster between them, and each unit file in one.

    What a file's tests share is made once. System tests come first, as they take as long as all unit tests together.
    """
    from xdist.scheduler import LoadScopeScheduling

    class FilesTogether(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "system" if nodeid.startswith("tests/system/") else nodeid.split("::")[0]

    config.option.loadscopereorder = False  # in the order of collection: system before unit
    return FilesTogether(config, log)

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
CACHE = tempfile.TemporaryDirectory(prefix="soflow-cache-")
os.environ["SOFLOW_CACHE"] = CACHE.name
# A folder of all processes: pytest-xdist starts its own after this, and they inherit it.
if "SOFLOW_TEST_SHARED" not in os.environ:
    SHARED = tempfile.TemporaryDirectory(prefix="soflow-tests-")
    os.environ["SOFLOW_TEST_SHARED"] = SHARED.name

FINISHED_SWEEP = (
    *("test_data.py", "test_report.py", "test_sweep.py", "test_ui.py"),
    *("test_preemption.py", "test_servers.py", "test_checkpoint_sweep.py"),
)
"""System tests that do not use the shared cluster, or hardly; most of them read one finished sweep."""


LONG = ("test_fake_cuda.py",)
"""Unit files that take minutes: they come right after the system tests, as the last file to start runs alone."""


SLOW = (
    *("test_cost.py", "test_utilization.py", "test_gpu.py", "test_fake_cuda.py", "test_compilation.py"),
    *("test_compile_choice.py", "test_distributed.py", "test_sharded_evaluation.py", "test_start_limit.py"),
    *("test_prepared.py", "test_interval.py", "test_app.py", "test_docs_site.py", "test_callback.py"),
    *("test_follow.py", "test_worker.py", "test_snapshots.py", "test_options.py", "test_gaussians.py"),
    *("test_reproduce.py", "test_memory_fit.py", "test_testing.py", "test_fidelity.py", "test_compare.py"),
    *("test_report.py", "test_judge.py", "test_looks.py", "test_runs.py", "test_numerics.py", "test_crossover.py"),
    *("test_statistics.py", "test_sequential.py", "test_pruning.py", "test_points.py", "test_tracker.py"),
    *("test_mlflow_model.py", "test_outages.py"),
)
"""Unit files of seconds per test: compilers, several processes, programs that measure, simulations, recorded
studies and their pages. Not in `make quick`."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name in SLOW:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: "system" not in item.path.parts and item.path.name not in LONG)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Use as many processes as CPUs, and one more with the system tests, which wait for Ray half of their time."""
    return (os.cpu_count() or 1) + ("not slow" not in config.option.markexpr)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """Run each unit file in one worker process, and the system tests in two groups, each in one.

    What a file's tests share is made once, and so are a group's cluster or finished sweep. System tests come first, as
    a group of them takes longer than any unit file.
    """
    from xdist.scheduler import LoadScopeScheduling

    class FilesTogether(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            if not file.startswith("tests/system/"):
                return file
            return "finished sweep" if file.removeprefix("tests/system/") in FINISHED_SWEEP else "cluster"

    config.option.loadscopereorder = False  # in the order of collection: system before unit
    return FilesTogether(config, log)

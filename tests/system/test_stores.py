"""Sweeps and runs in an object store, on machines that share no folder."""

from __future__ import annotations

import os
import signal
import subprocess

import pandas as pd
import pytest
from chaos import FEW_TRIALS, SWEEP
from cluster import Cluster
from session import SMALL, wait_for_line

from tests.object_store import BUCKET, inherit, objects, s3_server


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Let programs, and Ray nodes, find an S3 server; the function makes this another machine, without local files."""

    def become(name: str):
        cache = tmp_path / name
        cache.mkdir()
        monkeypatch.setenv("SOFLOW_CACHE", str(cache))
        return cache

    with s3_server() as environment:
        inherit(environment, monkeypatch.setenv)
        yield become


def private_folders() -> bool:
    """Check whether this process may give others a file system of their own."""
    return subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0


@pytest.mark.soak  # the parts: tests/unit/orchestration/store
@pytest.mark.skipif(not private_folders(), reason="needs root, for nodes without a common folder")
def test_a_sweep_moves_from_machine_to_machine_in_a_store_with_equal_numbers(undisturbed, session, machine):
    """Four nodes without a common folder; one is killed, one joins, and the driver continues on another machine."""
    first, url = machine("first"), f"s3://{BUCKET}/exp"
    with Cluster((0, 1, 1, 1), private=first) as cluster:
        flags = ["--address", cluster.address, "--tracking-uri", session.tracking_uri]
        trials = ["--num-trials", str(FEW_TRIALS)]
        sweep = session.start("sweep_schedule.py", *SWEEP, *trials, "--storage", url, *flags, "--progress", "plain")
        wait_for_line(sweep, "trial 2 running, step 16/")
        worker_node = cluster.processes("ray::RayTrainWorker")[0][0]
        cluster.remove_node(cluster.nodes[worker_node])
        cluster.add_node(1)
        wait_for_line(sweep, "trial 4 running, step 24/")
        os.killpg(sweep.pid, signal.SIGKILL)
        sweep.communicate(timeout=60)
    second = machine("second")
    with Cluster((0, 1, 1, 1), private=second) as cluster:
        flags = ["--address", cluster.address, "--tracking-uri", session.tracking_uri]
        code, output = session.run("sweep_schedule.py", "--resume", f"{url}/sweep", "--storage", url, *flags)
    assert code == 0, output
    assert f"in {url}/sweep" in output
    numbers = ["trial", "state", "step", "fid", "kid", "class_consistency"]
    expected = pd.read_csv(undisturbed / "sweep" / "trials.csv")[numbers]
    found = pd.read_csv(next(second.rglob("trials.csv")))
    pd.testing.assert_frame_equal(found[numbers], expected, check_exact=True)
    assert set(found["folder"]) == {f"{url}/sweep/trials/{number:04d}" for number in range(FEW_TRIALS)}
    assert (second / "stores" / f"s3=3A=2F=2F{BUCKET}=2Fexp" / "sweep" / "report.html").exists()
    assert "sweep/report.html" in objects("exp")
    runs = session.runs()
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert len(runs) == FEW_TRIALS + 1
    for number in range(FEW_TRIALS):
        steps = [step for step, _ in session.history(f"sweep-{number:04d}", "fid")]
        assert steps == [8, 16, 24, 32, 40], number


@pytest.mark.soak
def test_a_run_in_a_store_equals_one_on_a_disk_and_continues_on_another_machine(session, machine, monkeypatch):
    machine("first")
    url = f"s3://{BUCKET}/exp"
    session.succeed("train.py", *SMALL, "--name", "disk")
    run = session.start("train.py", *SMALL, "--name", "store", "--storage", url, "--tracking-uri", session.tracking_uri)
    wait_for_line(run, "step 8: ")
    os.kill(run.pid, signal.SIGTERM)
    output, _ = run.communicate(timeout=120)
    assert run.returncode == 128 + signal.SIGTERM, output
    assert f"resume with: python experiments/train.py --resume {url}/store\n" in output
    second = machine("second")
    flags = ["--resume", f"{url}/store", "--storage", url, "--tracking-uri", session.tracking_uri]
    session.succeed("train.py", *flags)
    assert session.history("store", "fid") == session.history("disk", "fid")
    assert not any("secret-of-tests" in path.read_text(errors="replace") for path in second.rglob("*.yaml"))
    assert {"run.yaml", "checkpoint-00000012.pt", "checkpoint-00000008.pt"} <= objects("exp/store").keys()
    picture = session.storage / "samples.png"
    session.succeed("sample.py", f"{url}/store", "--out", str(picture))
    assert picture.exists()

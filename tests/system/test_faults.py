"""What happens when something is taken away: a worker, a trial's process, the driver, the servers, the storage."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pandas as pd
import pytest
from cluster import Cluster
from session import SMALL, wait_for_line

pytestmark = pytest.mark.slow

ONE_AT_A_TIME = [*SMALL, "--num-trials", "3", "--max-concurrent", "1", "--early-stopping.kind", "none"]
# Half a second per report, so that a fault falls into the trial that it is meant for.
ONE_AT_A_TIME += ["--training.batch-size", "128", "--training.total-steps", "60", "--training.report-every", "20"]
NUMBERS = ["fid", "kid", "class_consistency", "step", "state"]


def test_ctrl_c_stops_cleanly_and_resume_goes_on(session):
    flags = [*SMALL, "--training.total-steps", "40", "--num-trials", "3", "--early-stopping.kind", "none"]
    flags += ["--seeds-per-trial", "2"]
    sweep = session.start("sweep_schedule.py", *flags, "--name", "cut")
    wait_for_line(sweep, "step 8/")
    os.kill(sweep.pid, signal.SIGINT)
    output, _ = sweep.communicate(timeout=60)
    assert sweep.returncode == 130, output
    assert f"--resume cut --storage {session.storage}" in output
    session.assert_nothing_left()
    before = session.runs()
    assert before["cut"].info.status == "KILLED"
    assert {run.info.status for run in before.values()} <= {"KILLED", "FINISHED"}

    code, output = session.run("sweep_schedule.py", "--resume", "cut")
    assert code == 0, output
    assert session.study_states("cut") == ["COMPLETE"] * 3
    runs = session.runs()
    assert len(runs) == 4
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    for number in range(3):
        assert [step for step, _ in session.history(f"cut-{number:04d}", "fid")] == list(range(4, 41, 4))
        metrics = runs[f"cut-{number:04d}"].data.metrics
        of_seeds = [metrics["fid/seed_0"], metrics["fid/seed_1"]]
        assert of_seeds[0] != of_seeds[1]
        assert metrics["final/fid"] == pytest.approx(sum(of_seeds) / 2, rel=1e-12)
        assert metrics["fid/low"] < min(of_seeds)
        assert max(of_seeds) < metrics["fid/high"]
    assert before["cut-0000"].info.run_id == runs["cut-0000"].info.run_id


def test_a_killed_driver_resumes_to_the_same_numbers(session):
    undisturbed = session.start("sweep_schedule.py", *ONE_AT_A_TIME, "--name", "undisturbed")
    assert undisturbed.wait(240) == 0, undisturbed.stdout.read()
    sweep = session.start("sweep_schedule.py", *ONE_AT_A_TIME, "--name", "killed")
    wait_for_line(sweep, "trial 1 running, step 40/")
    os.kill(sweep.pid, signal.SIGKILL)
    (state,) = (session.storage / "killed" / "tune").glob("experiment_state-*.json")
    content = state.read_bytes()
    state.write_bytes(content[: len(content) // 2])
    code, output = session.run("sweep_schedule.py", "--resume", "killed")
    assert code != 0
    assert f"error: {state}: is damaged" in output  # and no new experiment in its place
    state.write_bytes(content)
    for checkpoint in state.parent.glob("*/checkpoint_*"):  # Tune deletes old ones before its snapshot says so
        shutil.rmtree(checkpoint)

    resumed = session.start("sweep_schedule.py", "--resume", "killed")
    wait_for_line(resumed, "trial 1 running")
    code, output = session.run("sweep_schedule.py", "--resume", "killed")
    assert code != 0
    assert "resume = killed: another process is at it" in output
    output, _ = resumed.communicate(timeout=240)
    assert resumed.returncode == 0, output
    assert_same_sweep(session, "undisturbed", "killed")

    # All of Tune's state can be done without: what was trained is read from the study and the trials' folders.
    shutil.rmtree(state.parent)
    checkpoints = {path: path.stat().st_mtime for path in (session.storage / "killed").rglob("checkpoint-*.pt")}
    code, output = session.run("sweep_schedule.py", "--resume", "killed")
    assert code == 0, output
    assert {path: path.stat().st_mtime for path in checkpoints} == checkpoints
    assert_same_sweep(session, "undisturbed", "killed")
    session.assert_nothing_left(within_s=90)  # Ray's agents take their time to notice that a driver is gone


def assert_same_sweep(session, one: str, other: str) -> None:
    """Every trial once and with the same numbers: in Tune's table, in the study and in MLflow, step for step."""
    tables = [pd.read_csv(session.storage / name / "trials.csv")[NUMBERS] for name in (one, other)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    assert session.study_states(other) == session.study_states(one)
    runs = session.runs()
    for number in range(len(tables[0])):
        histories = [session.history(f"{name}-{number:04d}", "fid") for name in (one, other)]
        assert histories[0] == histories[1]
        assert runs[f"{other}-{number:04d}"].info.status == "FINISHED"


def test_a_single_run_is_interrupted_and_resumed(session):
    flags = [*SMALL, "--training.total-steps", "40"]
    code, output = session.run("train.py", *flags, "--name", "whole")
    assert code == 0, output
    run = session.start("train.py", *flags, "--name", "cut")
    wait_for_line(run, "step 8: ")
    os.kill(run.pid, signal.SIGINT)
    output, _ = run.communicate(timeout=60)
    assert run.returncode == 130, output
    assert "go on with: python experiments/train.py --resume" in output
    session.assert_nothing_left()
    code, output = session.run("train.py", "--resume", str(session.storage / "cut"))
    assert code == 0, output
    whole, cut = (session.history(name, "fid") for name in ("whole", "cut"))
    assert whole == cut
    assert session.runs()["cut"].info.status == "FINISHED"


@pytest.fixture
def cluster(monkeypatch):
    """A Ray cluster that somebody else started, with 4 CPUs."""
    with Cluster((4,)) as cluster:
        for name, value in cluster.env.items():
            monkeypatch.setenv(name, value)
        yield cluster


def test_on_a_shared_cluster_nothing_of_ours_is_left(session, cluster):
    sweep = session.start("sweep_schedule.py", *ONE_AT_A_TIME, "--name", "shared", "--address", cluster.address)
    wait_for_line(sweep, "trial 1 running, step 20/")
    cluster.kill("ray::ResourceTrainable")
    rest, _ = sweep.communicate(timeout=240)
    assert sweep.returncode == 0, rest
    # Ray Train starts this one once per cluster, for all jobs, and keeps it; it holds no resources.
    of_ray = "_AutoscalingCoordinatorActor"
    # A second process asks the cluster, so that this one stays free of Ray.
    script = """
import ray, time
ray.init(logging_level="ERROR", log_to_driver=False)
from ray.util.state import list_actors, list_placement_groups
for attempt in range(40):
    groups = [group for group in list_placement_groups() if group.state != "REMOVED"]
    actors = [actor for actor in list_actors() if actor.state != "DEAD" and actor.class_name != %r]
    if not groups and not actors and ray.available_resources().get("CPU") == 4:
        break
    time.sleep(0.5)
print([group.name for group in groups], [actor.class_name for actor in actors], ray.available_resources().get("CPU"))
"""
    command = [sys.executable, "-c", script % of_ray]
    environment = os.environ | {"RAY_ADDRESS": cluster.address}
    asked = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert asked.stdout.strip() == "[] [] 4.0", asked.stdout + asked.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--address", "127.0.0.1:1"], "address = 127.0.0.1:1: no Ray cluster answers there"),
        (["--tracking-uri", "http://127.0.0.1:1"], "tracking_uri = http://127.0.0.1:1: cannot be reached"),
        (["--storage", "/dev/null/here"], "storage = /dev/null/here: must be a folder that can be written"),
        (["--max-concurrent", "500"], "resources = 500 x 1 workers x 1 CPUs: need 500 CPUs"),
        (["--resume", "nothing"], "resume = nothing: no sweep of this name"),
    ],
)
def test_what_cannot_work_is_refused_before_ray_starts(session, flags, message):
    begin = time.monotonic()
    code, output = session.run("sweep_schedule.py", *flags, timeout_s=60)
    assert code == 2
    assert output.startswith(f"error: {message}"), output
    assert len(output.splitlines()) == 1, output
    assert time.monotonic() - begin < 15  # the promise is an answer within 15 s
    assert not session.processes()


def test_an_address_of_something_else_is_refused(session):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        begin = time.monotonic()
        code, output = session.run("train.py", "--address", f"127.0.0.1:{silent.getsockname()[1]}", timeout_s=60)
    assert code == 2
    assert "what answers there is no Ray cluster" in output
    assert len(output.splitlines()) == 1, output
    assert time.monotonic() - begin < 15

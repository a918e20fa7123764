"""The tracker through outages: servers, databases and drivers that are killed."""

from __future__ import annotations

import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from helpers import REPOSITORY

from orchestration.tracking.tracker import Tracker
from orchestration.tracking.uri import TrackingError, check_tracking
from tests.database import new_database
from tests.tracking import assert_sweep, client_of, files, free_port, history, python, record_sweep, runs_of


@pytest.fixture
def server(uri, tmp_path):
    """Functions that start (and await) and kill an MLflow server on the shared database, and its URI."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    processes = []
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # eight processes less

    def start(database=uri):
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--workers", "1", "--backend-store-uri", database]
        command += ["--artifacts-destination", str(tmp_path / "artifacts")]
        with (tmp_path / "server.log").open("a") as log:
            processes.append(
                subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path, env=environment, start_new_session=True)
            )
        deadline = time.monotonic() + 90
        while True:
            try:
                return check_tracking(address, timeout_s=5)
            except TrackingError:
                assert time.monotonic() < deadline, (tmp_path / "server.log").read_text()
                time.sleep(0.2)

    def kill():
        os.killpg(processes[-1].pid, signal.SIGKILL)
        processes.pop().wait()

    yield start, kill, address
    while processes:
        kill()


def test_server_killed_in_the_middle(server, experiment, tmp_path, image, caplog):
    start, kill, uri = server
    start()
    tracker = Tracker(uri, experiment, tmp_path / "spool")
    record_sweep(tracker, image)
    assert tracker.flush(60)
    tracker.start_run("run", "run", {"a": 1}, {})
    for step in range(1, 401):
        if step == 150:
            kill()
        tracker.log_metrics("run", {"loss": 1 / step, "nan": math.nan}, step)
        time.sleep(0.005)
        if step % 100 == 0:
            tracker.log_image("run", image, "grid", step)
        if step == 300:
            threading.Thread(target=start).start()
    tracker.end_run("run", "FINISHED")
    assert tracker.close(120) == 0
    assert "reports cannot be delivered" in caplog.messages[0]
    assert "reports are delivered again" in caplog.messages[-1]

    runs = runs_of(uri, experiment)
    run = runs.pop("run")
    assert run.info.status == "FINISHED"
    assert history(uri, run, "loss") == [(step, 1 / step) for step in range(1, 401)]
    assert [step for step, value in history(uri, run, "nan") if math.isnan(value)] == list(range(1, 401))
    assert len(files(uri, run, "images")) == 2 * 4
    assert len(runs) == 3


def test_a_server_that_comes_back_empty_receives_everything_again(server, experiment, tmp_path, image, caplog):
    start, kill, uri = server
    start()
    tracker = Tracker(uri, experiment, tmp_path / "spool")
    record_sweep(tracker, image)
    assert tracker.flush(60)
    kill()
    start(new_database(tmp_path))
    tracker.start_run("s", "sweep", {}, {})
    tracker.log_metrics("s/0", {"fid": 1 / 400}, 400)
    tracker.end_run("s", "KILLED")
    assert tracker.close(60) == 0
    assert caplog.text.count("is not on the server any more; all records are delivered again") == 1
    runs = runs_of(uri, experiment)
    assert history(uri, runs["s/0"], "fid") == [(step, 1 / step) for step in (100, 200, 300, 400)]
    assert runs["s/0"].data.params == {"objective.name": "soflow", "nfe": "[1, 2]"}
    assert history(uri, runs["s/1"], "fid") == [(step, 1 / step) for step in (100, 200, 300)]
    assert len(files(uri, runs["s/1"], "images")) == 6
    assert runs["s/0"].data.tags["mlflow.parentRunId"] == runs["s"].info.run_id

    # A later process, which has no run ids in memory, notices it as well.
    client = client_of(uri)
    for run in runs.values():
        client.delete_run(run.info.run_id)
    resumed = Tracker(uri, experiment, tmp_path / "spool")
    resumed.log_metrics("s/0", {"fid": 1 / 500}, 500)
    assert resumed.close(60) == 0
    assert history(uri, runs_of(uri, experiment)["s/0"], "fid")[-1] == (500, 1 / 500)
    assert len(history(uri, runs_of(uri, experiment)["s/0"], "fid")) == 5


def test_an_error_of_the_database_is_an_outage(uri, experiment, tmp_path, caplog):
    """MLflow reports one as BAD_REQUEST, like a request that it rejects."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import BAD_REQUEST

    tracker = Tracker(uri, experiment, tmp_path / "spool")
    tracker.start_run("run", "run", {}, {})
    assert tracker.flush(30)
    client = tracker._writer._client
    genuine = client.log_batch, client.set_tag

    def fails(*_, **__):
        raise MlflowException("(builtins.IntegrityError) the disk is full", BAD_REQUEST)

    client.log_batch = client.set_tag = fails
    tracker.log_metrics("run", {"fid": 3.0}, 1)
    assert not tracker.flush(2)
    client.log_batch, client.set_tag = genuine
    assert tracker.close(30) == 0
    assert history(uri, runs_of(uri, experiment)["run"], "fid") == [(1, 3.0)]


RECORD_TRIALS_UNTIL_KILLED = """
import itertools, sys, time
from pathlib import Path
from orchestration.tracking.tracker import Tracker
uri, experiment, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
tracker = Tracker(uri, experiment, folder / "spool")
tracker.start_run("sweep", "sweep", {}, {})
done = folder / "done"
for trial in itertools.count(int(done.read_text()) if done.exists() else 0):
    key = f"sweep/{trial}"
    tracker.start_run(key, key, {"trial": trial}, {"seed": trial}, parent="sweep")
    for step in range(1, 9):
        tracker.log_metrics(key, {"loss": 1 / step, "fid": trial + step}, step)
        if step % 4 == 0:
            tracker.log_image(key, folder / "grid.png", "samples", step)
        time.sleep(0.01)
    if trial % 3 == 1:
        tracker.set_tags(key, {"failure": "made for the test"})
    (folder / f"{trial}.txt").write_text(f"trial {trial}")
    tracker.log_artifact(key, folder / f"{trial}.txt", "out")
    tracker.end_run(key, ("FINISHED", "FAILED", "KILLED")[trial % 3])
    done.with_name("next").write_text(str(trial + 1))
    done.with_name("next").replace(done)
"""


@pytest.mark.parametrize("seed", [1])
def test_everything_is_once_however_often_the_driver_is_killed(uri, experiment, tmp_path, image, seed):
    """SIGKILL at random moments, in the middle of recording, delivering or both; then the rest is delivered."""
    moments = random.Random(seed)
    for least in (1, 6):  # trials recorded before each kill
        command = python(RECORD_TRIALS_UNTIL_KILLED, uri, experiment, tmp_path)
        process = subprocess.Popen(command, cwd=REPOSITORY)
        deadline = time.monotonic() + 120
        while not (tmp_path / "done").exists() or int((tmp_path / "done").read_text()) < least:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 2))
        process.kill()
        process.wait()
    tracker = Tracker(uri, experiment, tmp_path / "spool")
    for key in tracker.open_runs():
        tracker.end_run(key, "KILLED")
    assert tracker.close(120) == 0

    trials = int((tmp_path / "done").read_text())
    assert trials >= 6
    runs = runs_of(uri, experiment)
    assert set(runs) >= {"sweep", *(f"sweep/{trial}" for trial in range(trials))}
    assert len(runs) <= trials + 2  # the trial that was recorded when the last kill came
    assert not [run for run in runs.values() if run.info.status == "RUNNING"]
    for trial in range(trials):
        run = runs[f"sweep/{trial}"]
        assert run.info.status == ("FINISHED", "FAILED", "KILLED")[trial % 3]
        assert run.data.tags["mlflow.parentRunId"] == runs["sweep"].info.run_id
        assert run.data.tags.get("failure") == ("made for the test" if trial % 3 == 1 else None)
        assert run.data.params == {"trial": str(trial)}
        assert history(uri, run, "loss") == [(step, 1 / step) for step in range(1, 9)]
        assert history(uri, run, "fid") == [(step, trial + step) for step in range(1, 9)]
        assert len(files(uri, run, "images")) == 2 * 2
        text = client_of(uri).download_artifacts(run.info.run_id, f"out/{trial}.txt", tmp_path)
        assert Path(text).read_text() == f"trial {trial}"


def test_undelivered_events_are_sent_by_the_next_tracker(uri, experiment, tmp_path, image, caplog):
    tracker = Tracker(f"http://user:secret@127.0.0.1:{free_port()}", experiment, tmp_path / "spool")
    record_sweep(tracker, image)
    assert not tracker.flush(3)
    assert tracker.close(0) == 20
    assert "reports cannot be delivered" in caplog.text
    assert "secret" not in caplog.text
    assert len(caplog.records) == 1

    assert Tracker(uri, experiment, tmp_path / "spool").close(60) == 0
    assert_sweep(uri, experiment)


def test_artifacts_that_cannot_be_stored_hold_up_nothing_else(uri, experiment, tmp_path, image, caplog):
    """As with a server that tells its clients to write into a folder of its own machine."""
    client_of(uri).create_experiment(experiment, artifact_location="/dev/null/artifacts")
    tracker = Tracker(uri, experiment, tmp_path / "spool")
    tracker.start_run("run", "run", {}, {})
    tracker.log_image("run", image, "samples", 1)
    tracker.log_artifact("run", image)
    tracker.log_metrics("run", {"fid": 3.0}, 1)
    tracker.end_run("run", "FINISHED")
    assert tracker.close(30) == 0
    run = runs_of(uri, experiment)["run"]
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"fid": 3.0})
    assert "MLflow's artifacts cannot be written from here (Not a directory: /dev/null" in caplog.text
    assert "start the server with --serve-artifacts" in caplog.text


def test_unwritable_spool_delivers_from_memory(uri, experiment, tmp_path, image, caplog):
    (tmp_path / "file").touch()
    tracker = Tracker(uri, experiment, tmp_path / "file" / "spool")
    record_sweep(tracker, image)
    assert tracker.close(60) == 0
    assert_sweep(uri, experiment)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "kept in memory" in caplog.text

"""The tracker against real MLflow: an SQLite database, and a server that is killed."""

import base64
import http.server
import json
import math
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest
from helpers import REPOSITORY
from PIL import Image

from orchestration.store.program import Delivery
from orchestration.tracking.environment import environment_tags, git_commit
from orchestration.tracking.mlflow_writer import KEY_TAG
from orchestration.tracking.recorded_runs import RecordedRuns
from orchestration.tracking.spool import Spool
from orchestration.tracking.tracker import Tracker
from orchestration.tracking.uri import TrackingError, check_tracking
from tests.database import new_database

FIRST_RUN = """
import sys
from pathlib import Path
from orchestration.tracking.tracker import Tracker
tracker = Tracker(sys.argv[1], "first", Path(sys.argv[2]))
tracker.start_run("first", "first", {}, {})
assert tracker.close(60) == 0
"""


def python(script: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", script, *map(str, arguments)]


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    """The URI of a fresh database and what its creation by a tracker printed."""
    folder = tmp_path_factory.mktemp("mlflow ü")
    uri = f"sqlite:///{folder}/sub/mlflow.db"
    command = python(FIRST_RUN, uri, folder / "spool")
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return uri, result.stdout + result.stderr


@pytest.fixture
def uri(first_run):
    return first_run[0]


@pytest.fixture
def experiment():
    return f"experiment {uuid.uuid4().hex}"


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "grid.png"
    Image.new("L", (16, 8), 100).save(path)
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def client_of(uri):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def runs_of(uri, experiment):
    """The experiment's runs by key; fails if two share one."""
    client = client_of(uri)
    runs = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    by_key = {run.data.tags[KEY_TAG].partition("@")[0]: run for run in runs}
    assert len(by_key) == len(runs)
    return by_key


def history(uri, run, metric):
    return [(row.step, row.value) for row in client_of(uri).get_metric_history(run.info.run_id, metric)]


def files(uri, run, folder=None):
    return sorted(Path(file.path).name for file in client_of(uri).list_artifacts(run.info.run_id, folder))


def record_sweep(tracker, image):
    """A sweep of two trials, with everything that a tracker can record."""
    tracker.start_run("s", "sweep", {}, {"dataset": "digits"})
    for trial in ("s/0", "s/1"):
        tracker.start_run(trial, trial, {"objective.name": "soflow", "nfe": [1, 2]}, {"trial": trial}, parent="s")
    for step in (100, 200, 300):
        for trial in ("s/0", "s/1"):
            tracker.log_metrics(trial, {"fid": 1 / step, "loss/total": step}, step)
            tracker.log_image(trial, image, "samples/one step", step)
    tracker.set_tags("s/0", {"trial": "best", "seed": 3})
    tracker.log_artifact("s", image, "report")
    tracker.end_run("s/0", "FINISHED")
    tracker.end_run("s/1", "FAILED")
    tracker.end_run("s", "KILLED")


def assert_sweep(uri, experiment):
    runs = runs_of(uri, experiment)
    assert {key: run.info.status for key, run in runs.items()} == {"s": "KILLED", "s/0": "FINISHED", "s/1": "FAILED"}
    for trial in (runs["s/0"], runs["s/1"]):
        assert trial.data.tags["mlflow.parentRunId"] == runs["s"].info.run_id
        assert trial.data.params == {"objective.name": "soflow", "nfe": "[1, 2]"}
        assert history(uri, trial, "fid") == [(100, 1 / 100), (200, 1 / 200), (300, 1 / 300)]
        assert history(uri, trial, "loss/total") == [(100, 100), (200, 200), (300, 300)]
        images = [name.split("+") for name in files(uri, trial, "images")]
        pairs = {(name[0], name[2], name[5].removesuffix(".png")) for name in images}  # name, step, random part
        assert {pair[:2] for pair in pairs} == {("samples~one step", str(step)) for step in (100, 200, 300)}
        assert (len(pairs), len(images)) == (3, 6)
        assert trial.data.tags["mlflow.loggedImages"] == "True"
    assert runs["s/0"].info.run_name == "s/0"
    assert (runs["s/0"].data.tags["trial"], runs["s/0"].data.tags["seed"]) == ("best", "3")
    assert runs["s"].data.tags["dataset"] == "digits"
    assert files(uri, runs["s"], "report") == ["grid.png"]


def test_import_is_light():
    slow = "{'mlflow', 'ray', 'torch', 'requests'}"
    script = f"import sys, orchestration.tracking.tracker; print({slow} & set(sys.modules))"
    result = subprocess.run(python(script), cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


def test_first_use_is_silent_and_keeps_artifacts_beside_the_database(first_run):
    uri, printed = first_run
    assert printed == ""
    location = client_of(uri).get_experiment_by_name("first").artifact_location
    assert location == Path(uri.removeprefix("sqlite:///")).with_name("artifacts").as_uri()
    assert not (REPOSITORY / "mlruns").exists()


def test_everything_arrives_once(uri, experiment, tmp_path, image):
    tracker = Tracker(uri, experiment, tmp_path / "spool")
    record_sweep(tracker, image)
    assert tracker.flush(60)
    assert tracker.run_id("s") == runs_of(uri, experiment)["s"].info.run_id
    assert tracker.run_id("other") is None
    assert tracker.close(10) == 0
    assert_sweep(uri, experiment)

    # As if the process had died before it could note that anything was delivered, and amid the upload of an image.
    run_id = runs_of(uri, experiment)["s/0"].info.run_id
    images = Path(uri.removeprefix("sqlite:///")).parent / "artifacts" / run_id / "artifacts" / "images"
    next(images.glob("*+compressed.webp")).unlink()
    (tmp_path / "spool" / "delivered").unlink()
    assert Tracker(uri, experiment, tmp_path / "spool").close(60) == 0
    assert_sweep(uri, experiment)


def test_recording_waits_for_no_delivery(uri, experiment, tmp_path, image, monkeypatch):
    recorded, waits, genuine = threading.Event(), [], Delivery.ready

    def ready(self, events):
        waits.append(recorded.wait(60))
        return genuine(self, events)

    monkeypatch.setattr(Delivery, "ready", ready)
    tracker = Tracker(uri, experiment, tmp_path / "spool")
    record_sweep(tracker, image)
    recorded.set()
    assert tracker.close(60) == 0
    assert waits
    assert all(waits)


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


def test_same_key_is_the_same_run(uri, experiment, tmp_path):
    for name in ("one", "two"):  # the second remembers nothing of the first
        tracker = Tracker(uri, experiment, tmp_path / "spool")
        tracker.start_run("it's", name, {"a": 1}, {"try": name})
        assert tracker.flush(30)
        assert [run.info.status for run in runs_of(uri, experiment).values()] == ["RUNNING"]
        tracker.end_run("it's", "FINISHED")
        assert tracker.close(30) == 0
        for file in ("journal.jsonl", "delivered", "index.json"):
            (tmp_path / "spool" / file).unlink(missing_ok=True)
    run = runs_of(uri, experiment)["it's"]
    assert (run.info.status, run.info.run_name, run.data.tags["try"]) == ("FINISHED", "two", "two")


def test_repeated_steps_are_taken_once(uri, experiment, tmp_path, image):
    for steps in ((1, 2, 3), (2, 3, 4)):  # restarted from the checkpoint of step 1
        tracker = Tracker(uri, experiment, tmp_path / "spool")
        tracker.start_run("run", "run", {}, {})
        for step in steps:
            tracker.log_metrics("run", {"loss": step}, step)
            tracker.log_image("run", image, "grid", step)
        tracker.log_metrics("run", {"final/loss": 4}, step)
        assert tracker.close(30) == 0
    run = runs_of(uri, experiment)["run"]
    assert history(uri, run, "loss") == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert history(uri, run, "final/loss") == [(3, 4), (4, 4)]
    assert len(files(uri, run, "images")) == 2 * 4


def test_refused_events_are_skipped(uri, experiment, tmp_path, image, caplog):
    (tmp_path / "text.png").write_text("no image")
    tracker = Tracker(uri, experiment, tmp_path / "spool")
    tracker.log_metrics("never started", {"loss": 1}, 1)
    tracker.start_run("run", "run", {"a": 1, "b": 2}, {}, parent="never started")
    tracker.start_run("run", "run", {"a": 3, "b": 2, "c": "x" * 10_000}, {"long": "y" * 10_000})
    tracker.log_metrics("run", {"loss": 1, "bad?name": 1, "text": "abc", "nothing": None}, 1)
    tracker.log_image("run", tmp_path / "missing.png", "grid", 1)
    tracker.log_image("run", tmp_path / "text.png", "grid", 2)
    tracker.log_image("run", image, "bad?name", 3)
    tracker.log_artifact("run", tmp_path / "missing.html")
    tracker.log_metrics("run", {"loss": 2}, 2)
    assert tracker.close(30) == 0
    run = runs_of(uri, experiment)["run"]
    assert run.data.params["a"] == "1"
    assert run.data.params["c"].startswith("x" * 1000)
    assert run.data.tags["long"].startswith("y" * 1000)
    assert run.data.metrics == {"loss": 2}
    assert history(uri, run, "loss") == [(1, 1), (2, 2)]
    for refused in (
        "never started",
        "params a of run run",
        "bad?name",
        "text",
        "nothing",
        "missing.png",
        "missing.html",
    ):
        assert refused in caplog.text


def test_values_that_are_not_finite_or_not_plain(uri, experiment, tmp_path):
    import numpy as np
    import torch

    tracker = Tracker(uri, experiment, tmp_path / "spool")
    tracker.start_run("run", "run", {"path": Path("a"), "none": None}, {"number": 1})
    tracker.log_metrics(
        "run", {"nan": math.nan, "inf": math.inf, "numpy": np.float32(0.5), "torch": torch.tensor(2)}, 7
    )
    assert tracker.close(30) == 0
    run = runs_of(uri, experiment)["run"]
    assert run.data.params == {"path": "a", "none": "None"}
    assert math.isnan(run.data.metrics["nan"])
    assert run.data.metrics["inf"] > 1e300
    assert (run.data.metrics["numpy"], run.data.metrics["torch"]) == (0.5, 2)


def test_deleted_experiment_is_restored(uri, experiment, tmp_path):
    client = client_of(uri)
    client.delete_experiment(client.create_experiment(experiment))
    tracker = Tracker(uri, experiment, tmp_path / "spool")
    tracker.start_run("run", "run", {}, {})
    assert tracker.close(30) == 0
    assert set(runs_of(uri, experiment)) == {"run"}


def test_unwritable_spool_delivers_from_memory(uri, experiment, tmp_path, image, caplog):
    (tmp_path / "file").touch()
    tracker = Tracker(uri, experiment, tmp_path / "file" / "spool")
    record_sweep(tracker, image)
    assert tracker.close(60) == 0
    assert_sweep(uri, experiment)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "kept in memory" in caplog.text


def test_spool_on_a_full_disk(tmp_path, caplog):
    spool = Spool(tmp_path)
    spool.append({"number": 0})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "journal.jsonl").stat().st_size + 5, hard))
    try:
        spool.append({"number": 1})
        spool.append({"number": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    spool.append({"number": 3})
    assert [event["number"] for event in spool.peek(10)] == [0, 1, 2, 3]
    assert len(caplog.records) == 1
    spool.drop(2)
    spool.close()
    assert [event["number"] for event in Spool(tmp_path).peek(10)] == [3]  # 1 and 2 were never on disk


def test_spool_survives_damage(tmp_path):
    spool = Spool(tmp_path)
    for number in range(3):
        spool.append({"number": number})
    spool.drop(1)
    spool.close()
    lines = (tmp_path / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "journal.jsonl").write_bytes(lines[0] + b"\0" * 5 + b"\n" + lines[2] + b'{"numb')
    spool = Spool(tmp_path)
    spool.append({"number": 4})
    spool.close()
    (tmp_path / "delivered").write_text("not a number")
    assert Spool(tmp_path).peek(10) == [{"number": 0}, None, {"number": 2}, {"number": 4}]


def test_spool_has_one_owner(tmp_path):
    spool = Spool(tmp_path)
    with pytest.raises(TrackingError, match="another process is delivering"):
        Tracker("sqlite:///unused.db", "e", tmp_path)
    spool.close()
    Spool(tmp_path)


def test_status_must_be_known(tmp_path):
    tracker = Tracker("sqlite:///unused.db", "e", tmp_path)
    with pytest.raises(ValueError, match="status = DONE: must be one of FINISHED, FAILED, KILLED"):
        tracker.end_run("run", "DONE")
    assert tracker.close(0) == 0


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("postgresql://host/db", "must be http"),
        ("postgresql://user:secret@host/db", "must not contain a password.*PGPASSWORD"),
        ("http://user:secret@host:5000", "must not contain a password.*MLFLOW_TRACKING_PASSWORD"),
        ("./mlruns", "must be http"),
        ("sqlite://", "must be http"),
        ("sqlite:///:memory:", "must be http"),
        ("http://127.0.0.1:{free_port}", "cannot be reached.*refused"),
        ("http://", "cannot be reached"),
        ("sqlite:////proc/nowhere/mlflow.db", "cannot be written.*choose a writable folder"),
        ("sqlite:///{file}/mlflow.db", "cannot be written"),
        ("sqlite:///{folder}", "cannot be written"),
        ("sqlite:///{file}", "must be an SQLite database"),
    ],
)
def test_check_tracking_refuses(uri, message, tmp_path):
    (tmp_path / "file").write_text("Some text, longer than a header.")
    uri = uri.format(free_port=free_port(), file=tmp_path / "file", folder=tmp_path)
    with pytest.raises(TrackingError, match=f"^tracking_uri = .*: .*{message}") as caught:
        check_tracking(uri)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_check_tracking_accepts_a_database_to_come(tmp_path):
    check_tracking(f"sqlite:///{tmp_path}/new/mlflow.db")
    assert list((tmp_path / "new").iterdir()) == []


def test_check_tracking_does_not_wait_for_a_silent_server():
    silence = pytest.raises(TrackingError, match=r"no answer within 0\.5 s")
    with socket.create_server(("127.0.0.1", 0)) as silent, silence:
        check_tracking(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.5)


def test_check_tracking_recognises_other_servers():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.raises(TrackingError, match="answers 501 to GET /health, unlike an MLflow server"):
        check_tracking(f"http://127.0.0.1:{server.server_port}/")
    server.shutdown()
    server.server_close()


class WithPassword(http.server.BaseHTTPRequestHandler):
    """A proxy with passwords before an MLflow server, whose health anybody may ask."""

    ALLOWED = ("Basic " + base64.b64encode(b"ann:right").decode(), "Bearer token")

    def do_GET(self):
        self._answer(200, b"OK")

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(200 if self.headers["Authorization"] in self.ALLOWED else 401, b"{}")

    def _answer(self, status: int, content: bytes):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def with_password(monkeypatch, tmp_path):
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), WithPassword)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("environment", "who"),
    [
        ({}, "a request without a password"),
        ({"USERNAME": "ann", "PASSWORD": "wrong"}, "user ann"),
        ({"TOKEN": "wrong"}, "the token"),
        ({"USERNAME": "ann", "PASSWORD": "right"}, None),
        ({"TOKEN": "token"}, None),
    ],
)
def test_a_refused_password_is_found_at_the_start(with_password, monkeypatch, environment, who):
    for name, value in environment.items():
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
    if who is None:
        check_tracking(with_password)
    else:
        with pytest.raises(TrackingError, match=rf"refuses {who} \(401 Unauthorized\); set MLFLOW"):
            check_tracking(with_password)


def test_mlflow_s_file_of_passwords_is_read(with_password, tmp_path):
    (tmp_path / ".mlflow").mkdir()
    text = "[mlflow]\nmlflow_tracking_username = ann\nmlflow_tracking_password = right\n"
    (tmp_path / ".mlflow" / "credentials").write_text(text)
    check_tracking(with_password)


def test_a_proxy_in_the_way_is_named(with_password, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("http_proxy", f"http://me:secret@127.0.0.1:{port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(TrackingError, match=rf"through the proxy http://\*\*\*@127\.0\.0\.1:{port} \(NO_PROXY"):
        check_tracking(with_password)


def test_environment_tags(tmp_path):
    tags = environment_tags()
    assert tags["version.python"].startswith("3.")
    assert all(tags[f"version.{name}"][0].isdigit() for name in ("torch", "ray", "mlflow", "optuna"))
    assert float(tags["hardware.memory_gib"]) > 0
    assert socket.gethostname() not in " ".join(tags.values())


def test_git_commit(tmp_path):
    assert git_commit(tmp_path) == "unknown"
    author = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    (tmp_path / "file").touch()
    for command in (["init", "-q"], ["add", "file"], [*author, "commit", "-qm", "m"], ["tag", "v1"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    commit = git_commit(tmp_path)
    assert len(commit) == 40
    (tmp_path / "file").write_text("changed")
    assert git_commit(tmp_path) == f"{commit}-dirty"


@pytest.fixture
def server(first_run, tmp_path):
    """Functions that start (and await) and kill an MLflow server on the shared database, and its URI."""
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    processes = []
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # eight processes less

    def start(database=first_run[0]):
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
                return check_tracking(uri, timeout_s=5)
            except TrackingError:
                assert time.monotonic() < deadline, (tmp_path / "server.log").read_text()
                time.sleep(0.2)

    def kill():
        os.killpg(processes[-1].pid, signal.SIGKILL)
        processes.pop().wait()

    yield start, kill, uri
    while processes:
        kill()


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
def test_everything_is_once_however_often_the_driver_is_killed(uri, experiment, tmp_path, image, seed):
    """SIGKILL at random moments, in the middle of recording, delivering or both; then the rest is delivered."""
    moments = random.Random(seed)
    for _ in range(3):
        command = python(RECORD_TRIALS_UNTIL_KILLED, uri, experiment, tmp_path)
        process = subprocess.Popen(command, cwd=REPOSITORY)
        time.sleep(moments.uniform(2.5, 6))
        process.kill()
        process.wait()
    tracker = Tracker(uri, experiment, tmp_path / "spool")
    for key in tracker.open_runs():
        tracker.end_run(key, "KILLED")
    assert tracker.close(120) == 0

    trials = int((tmp_path / "done").read_text())
    assert trials > 10
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


def test_a_run_that_goes_on_loses_the_marks_of_its_failure(uri, experiment, tmp_path):
    for state, status in (("failed", "KILLED"), ("finished", "FINISHED")):
        tracker = Tracker(uri, experiment, tmp_path / "spool")
        tracker.start_run("run", "run", {}, {"seed": 1})
        assert tracker.open_runs() == ["run"]
        assert not tracker.has_ended("run")
        assert tracker.flush(30)
        tags = runs_of(uri, experiment)["run"].data.tags
        assert not {"state", "failure"} & tags.keys()
        assert runs_of(uri, experiment)["run"].info.status == "RUNNING"
        tracker.set_tags("run", {"state": state} | ({"failure": "lost"} if state == "failed" else {}))
        tracker.end_run("run", status)
        assert tracker.open_runs() == []
        assert tracker.has_ended("run")
        assert tracker.close(30) == 0
    run = runs_of(uri, experiment)["run"]
    assert run.info.status == "FINISHED"
    assert (run.data.tags["state"], run.data.tags["seed"]) == ("finished", "1")
    assert "failure" not in run.data.tags


def test_a_run_that_the_server_created_after_all_is_deleted(uri, experiment, tmp_path):
    """As if a request timed out here, was repeated, and carried out by the server twice."""
    tracker = Tracker(uri, experiment, tmp_path / "spool")
    tracker.start_run("run", "run", {"a": 1}, {})
    tracker.log_metrics("run", {"loss": 1.0}, 1)
    assert tracker.flush(30)
    ours, client = tracker.run_id("run"), client_of(uri)
    number = client.get_experiment_by_name(experiment).experiment_id
    tag = {KEY_TAG: client.get_run(ours).data.tags[KEY_TAG]}
    client.create_run(number, run_name="run", tags=tag)
    tracker.end_run("run", "FINISHED")
    assert tracker.close(30) == 0
    assert runs_of(uri, experiment)["run"].info.run_id == ours

    client.create_run(number, run_name="run", tags=tag)
    (tmp_path / "spool" / "index.json").unlink(missing_ok=True)
    tracker = Tracker(uri, experiment, tmp_path / "spool")  # which has to find out which of them is ours
    tracker.log_metrics("run", {"loss": 2.0}, 2)
    assert tracker.close(30) == 0
    assert tracker.run_id("run") == ours
    assert history(uri, runs_of(uri, experiment)["run"], "loss") == [(1, 1.0), (2, 2.0)]


def test_equal_names_of_others_are_other_runs(uri, experiment, tmp_path):
    for spool, loss in (("mine", 1.0), ("yours", 2.0)):
        tracker = Tracker(uri, experiment, tmp_path / spool)
        tracker.start_run("run", "run", {}, {})
        tracker.log_metrics("run", {"loss": loss}, 1)
        assert tracker.close(30) == 0
    client = client_of(uri)
    runs = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    assert sorted(run.data.metrics["loss"] for run in runs) == [1.0, 2.0]


def test_an_artifact_is_sent_again_only_if_its_content_changed(uri, experiment, tmp_path):
    (tmp_path / "report" / "sub").mkdir(parents=True)
    (tmp_path / "report" / "sub" / "file.txt").write_text("one")
    (tmp_path / "table.csv").write_text("1,2")
    tracker = Tracker(uri, experiment, tmp_path / "spool")
    tracker.start_run("run", "run", {}, {})

    def record() -> dict[str, tuple[str, int]]:
        tracker.log_artifact("run", tmp_path / "report")
        tracker.log_artifact("run", tmp_path / "table.csv", "tables")
        assert tracker.flush(30)
        folder = Path(uri.removeprefix("sqlite:///")).parent / "artifacts" / tracker.run_id("run") / "artifacts"
        there = [folder / "report" / "sub" / "file.txt", folder / "tables" / "table.csv"]
        return {path.name: (path.read_text(), path.stat().st_mtime_ns) for path in there}

    first = record()
    assert {name: text for name, (text, _) in first.items()} == {"file.txt": "one", "table.csv": "1,2"}
    assert record() == first
    (tmp_path / "report" / "sub" / "file.txt").write_text("two")  # as long as before
    second = record()
    assert second["file.txt"][0] == "two"
    assert second["table.csv"] == first["table.csv"]
    assert tracker.close(30) == 0


def test_opening_a_long_journal_reads_only_what_its_index_does_not_know(tmp_path, monkeypatch):
    monkeypatch.setattr("orchestration.tracking.spool.BYTES_PER_INDEX", 2000)
    recorded = RecordedRuns()
    spool = Spool(tmp_path, recorded)
    for run in range(30):
        event = {"kind": "start", "key": str(run)}
        spool.append(event)
        for step in range(5):
            spool.append({"kind": "metrics", "key": str(run), "step": step, "metrics": {"a": 1, "b": 2}})
        if run % 2:
            spool.append({"kind": "end", "key": str(run)})
    size = (tmp_path / "journal.jsonl").stat().st_size
    position = json.loads((tmp_path / "index.json").read_text())["position"]
    assert size - 2200 < position < size  # as a killed process leaves it
    spool._journal.close()

    for index_is_lost in (False, True):
        if index_is_lost:
            (tmp_path / "index.json").write_text("{")
        again = RecordedRuns()
        Spool(tmp_path, again)._journal.close()
        assert again.state() == recorded.state()
        assert again.new_names("metrics", "29", ["a", "b", "c"], 4) == {"c"}
        assert again.new_names("metrics", "29", ["a"], 5) == {"a"}
        assert list(again.open) == [str(run) for run in range(0, 30, 2)]


@pytest.mark.soak
def test_several_programs_may_make_the_database_at_once(tmp_path):
    """Each makes the tables if there are none."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    script = """
import sys
from pathlib import Path
from orchestration.tracking.tracker import Tracker
tracker = Tracker(sys.argv[1], "shared", Path(sys.argv[2]))
tracker.start_run("run", "run", {}, {})
tracker.end_run("run", "FINISHED")
sys.exit(tracker.close(120))
"""
    started = [
        subprocess.Popen([sys.executable, "-c", script, uri, str(tmp_path / name)]) for name in ("one", "two", "three")
    ]
    assert [process.wait(180) for process in started] == [0, 0, 0]
    client = client_of(uri)
    runs = client.search_runs([client.get_experiment_by_name("shared").experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"] * 3

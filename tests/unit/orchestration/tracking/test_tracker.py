"""The tracker against a real SQLite database of MLflow: everything is recorded once."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from helpers import REPOSITORY

from orchestration.store.program import Delivery
from orchestration.tracking.mlflow_writer import KEY_TAG
from orchestration.tracking.tracker import Tracker
from tests.tracking import assert_sweep, client_of, files, history, python, record_sweep, runs_of

FIRST_RUN = """
import sys
from pathlib import Path
from orchestration.tracking.tracker import Tracker
tracker = Tracker(sys.argv[1], "first", Path(sys.argv[2]))
tracker.start_run("first", "first", {}, {})
assert tracker.close(60) == 0
"""


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    """The URI of a fresh database and what its creation by a tracker printed."""
    folder = tmp_path_factory.mktemp("mlflow ü")
    uri = f"sqlite:///{folder}/sub/mlflow.db"
    command = python(FIRST_RUN, uri, folder / "spool")
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return uri, result.stdout + result.stderr


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


def test_status_must_be_known(tmp_path):
    tracker = Tracker("sqlite:///unused.db", "e", tmp_path)
    with pytest.raises(ValueError, match="status = DONE: must be one of FINISHED, FAILED, KILLED"):
        tracker.end_run("run", "DONE")
    assert tracker.close(0) == 0


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

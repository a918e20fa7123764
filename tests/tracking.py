"""What tests record with a tracker, and what MLflow has of it."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

from orchestration.tracking.mlflow_writer import KEY_TAG


def python(script: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", script, *map(str, arguments)]


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

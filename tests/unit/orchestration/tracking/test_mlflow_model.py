"""What MLflow gets beyond values: a model that samples as the checkpoint does, data sets, notes with links."""

import importlib.metadata
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import CPU, tiny_config, tiny_teacher

from orchestration.tracking.mlflow_model import ImageSampler, register, write_model
from orchestration.tracking.notes import code, link
from orchestration.tracking.tracker import Tracker
from soflow.config_files import to_yaml
from soflow.training import checkpoints
from soflow.training.grids import draw_grid
from soflow.training.trained import load_sampler
from tests.database import new_database

GRID = pd.DataFrame({"label": [i % 10 for i in range(80)]})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run whose weights are random everywhere."""
    folder = tmp_path_factory.mktemp("run")
    shutil.copy(checkpoints.path_of(tiny_teacher(), 1), folder)
    (folder / "config.yaml").write_text(to_yaml(tiny_config("flow_matching")))
    return folder


@pytest.fixture
def uri(tmp_path):
    return new_database(tmp_path)


def record(uri, folder, run):
    """A sweep with one trial, its data and its model."""
    tracker = Tracker(uri, "models", folder)
    tracker.start_run("s", "s", {}, {})
    tracker.start_run("s/0", "s-0000", {}, {}, parent="s")
    tracker.log_dataset("s/0", "digits", "0123456789ab", {"name": "digits"}, {"num_samples": 1797})
    tracker.log_metrics("s/0", {"fid": 2.5, "final/fid": 2.5}, 1)
    tracker.describe("s/0", "of [the sweep](<run:s>), see [the table](<artifact:trials.csv>), not [him](<run:nobody>)")
    tracker.end_run("s/0", "FINISHED")
    register(tracker, "s/0", run, "s-0000")
    assert tracker.close(60) == 0


def test_writing_a_model_does_not_look_through_all_installed_packages(run, tmp_path, monkeypatch):
    def checked(requirement):
        raise AssertionError(requirement)

    monkeypatch.setattr("mlflow.utils.requirements_utils._check_requirement_satisfied", checked)
    write_model(checkpoints.path_of(run, 1), tmp_path / "model")
    requirements = (tmp_path / "model" / "requirements.txt").read_text().splitlines()
    assert f"torch=={importlib.metadata.version('torch')}" in requirements


def test_a_registered_model_samples_as_its_checkpoint_does(uri, tmp_path, run):
    import mlflow
    from mlflow import MlflowClient

    record(uri, tmp_path / "spool", run)
    (tmp_path / "spool" / "delivered").unlink()  # as after a crash: everything is sent once more
    assert Tracker(uri, "models", tmp_path / "spool").close(60) == 0

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("models")
    (model,) = client.search_logged_models([experiment.experiment_id])
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert model.name == "s-0000"
    assert {metric.key: metric.value for metric in model.metrics} == {"final/fid": 2.5}
    assert model.params["objective.name"] == "flow_matching"
    for name in ("s", "s-0000"):
        assert [output.model_id for output in runs[name].outputs.model_outputs] == [model.model_id]
    assert [row.step for row in client.get_metric_history(runs["s-0000"].info.run_id, "final/fid")] == [1]

    mlflow.set_tracking_uri(uri)
    loaded = mlflow.pyfunc.load_model(f"models:/{model.model_id}")
    config, objective, network = load_sampler(checkpoints.path_of(run, 1), CPU)
    for seed, nfe in ((0, 1), (5, 2)):
        wanted = draw_grid(objective, network, config, CPU, nfe, seed=seed).numpy()
        np.testing.assert_array_equal(loaded.predict(GRID, params={"seed": seed, "nfe": nfe}), wanted)
    assert np.std(wanted) > 0
    grid = draw_grid(objective, network, config, CPU, objective.default_nfe[0]).numpy()
    np.testing.assert_array_equal(loaded.predict(GRID), grid)

    (data,) = runs["s-0000"].inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("digits", "0123456789ab")
    place = f"#/experiments/{experiment.experiment_id}/runs"
    assert runs["s-0000"].data.tags["mlflow.note.content"] == (
        f"of [the sweep](<{place}/{runs['s'].info.run_id}>), "
        f"see [the table](<{place}/{runs['s-0000'].info.run_id}/artifacts/trials.csv>), not him"
    )


def test_an_extended_run_gets_a_model_of_its_new_last_step(uri, tmp_path, run):
    from mlflow import MlflowClient

    folder = tmp_path / "run"
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("model-*"))
    record(uri, tmp_path / "spool", folder)
    checkpoints.path_of(folder, 1).rename(checkpoints.path_of(folder, 7))
    tracker = Tracker(uri, "models", tmp_path / "spool")
    tracker.log_metrics("s/0", {"final/fid": 1.5}, 7)
    register(tracker, "s/0", folder, "s-0000")
    assert tracker.close(60) == 0
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("models").experiment_id
    models = client.search_logged_models([experiment], order_by=[{"field_name": "creation_time"}])
    assert sorted(model.metrics[0].value for model in models) == [1.5, 2.5]
    (trial,) = client.search_runs([experiment], "run_name = 's-0000'")
    assert sorted(output.step for output in trial.outputs.model_outputs) == [1, 7]


def test_the_model_holds_no_pickled_code_and_says_what_is_wrong(run):
    sampler = ImageSampler(checkpoints.path_of(run, 1))
    with pytest.raises(ValueError, match="label = 10: must be a class from 0 to 9"):
        sampler.predict(pd.DataFrame({"label": [3, 10]}))
    with pytest.raises(ValueError, match="nfe = 0"):
        sampler.predict(GRID, {"nfe": 0})
    (weights,) = run.glob("model-*/data/sampler.pt")
    assert set(torch.load(weights, weights_only=True)) == {"ema", "config", "num_classes"}
    assert not list(run.glob("model-*/**/*.pkl"))


def test_a_model_that_cannot_be_made_is_told_in_a_line(uri, tmp_path, run, capsys):
    folder = tmp_path / "run"
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("model-*"))
    path = checkpoints.path_of(folder, 1)
    path.write_bytes(path.read_bytes()[:1000])
    tracker = Tracker(uri, "models", tmp_path / "spool")
    tracker.start_run("r", "r", {}, {})
    assert register(tracker, "r", folder, "r") == 0
    assert tracker.close(60) == 0
    told = capsys.readouterr().err
    assert "cannot be registered in MLflow" in told
    assert path.name in told
    assert len(told.splitlines()) == 1


def test_foreign_text_stays_text_in_notes():
    assert code("a `b`\n<script>") == "`a 'b' <script>`"
    assert len(code("x" * 10_000)) < 1100
    assert link("a [b]", "run", "s/0") == "[a b](<run:s/0>)"
    assert link("words", "run", "<script>") == "words"

"""Recording of trials, from Ray Tune's calls."""

from __future__ import annotations

import pytest
from ray.tune.experiment import Trial

from orchestration.sweep import search_space
from orchestration.sweep.callback import MlflowCallback, SweepRecord
from orchestration.sweep.config import SweepConfig
from orchestration.sweep.ticket import TrialTicket
from tests.database import new_database


@pytest.fixture
def callback(tmp_path):
    uri = new_database(tmp_path)
    config = SweepConfig(name="sweep", storage=tmp_path, num_trials=2, tracking_uri=uri, progress="plain")
    folder = tmp_path / "sweep"
    folder.mkdir()
    record = SweepRecord(config, folder, search_space.build(config))
    (folder / "sweep.yaml").write_text("")
    record.start()
    yield MlflowCallback(record, slots=2)
    record.tracker.close(30)


def make_trial(number: int) -> Trial:
    return Trial("soflow", config=TrialTicket(number, {"objective.velocity_mix": 0.5}).to_tune(), stub=True)


def test_a_trial_whose_process_does_not_start_is_recorded_as_failed(callback, tmp_path):
    """As on a node without the dependencies: Tune says that the trial failed, but never that it started."""
    trial = make_trial(0)
    callback.on_trial_error(1, [trial], trial)
    assert callback.progress.counts["failed"] == 1
    assert callback.record.tracker.flush(60)
    from mlflow import MlflowClient

    client = MlflowClient(callback.config.tracking_uri)
    [experiment] = client.search_experiments(filter_string="name = 'soflow'")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    tags = runs["sweep-0000"].data.tags
    assert runs["sweep-0000"].info.status == "FAILED"
    assert tags["failure"] == "its process did not start; a node may lack the dependencies"
    assert [row.number for row in callback.progress.recent] == [0]


def test_a_trial_that_ran_is_lost_with_its_process(callback):
    trial = make_trial(1)
    callback.on_trial_start(1, [trial], trial)
    callback.on_trial_error(1, [trial], trial)
    assert [row.reason for row in callback.progress.recent] == ["its process was lost"]

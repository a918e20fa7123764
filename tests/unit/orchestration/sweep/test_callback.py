"""Recording of trials, from Ray Tune's calls."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from ray.tune.experiment import Trial

from orchestration.sweep import search_space
from orchestration.sweep.callback import MlflowCallback, SweepRecord
from orchestration.sweep.config import SweepConfig
from orchestration.sweep.ranking import write_summary
from orchestration.sweep.ray_search import OptunaSearcher
from orchestration.sweep.study import SweepStudy
from orchestration.sweep.ticket import TrialTicket
from orchestration.terminal.command_line import validate
from tests.database import new_database


def record_of(folder: Path, **fields: Any) -> SweepRecord:
    values = {"name": folder.name, "storage": folder.parent, "progress": "plain"} | fields
    config = validate(SweepConfig, values)
    return SweepRecord(config, folder, search_space.build(config))


@pytest.fixture
def callback(tmp_path):
    folder = tmp_path / "sweep"
    folder.mkdir()
    record = record_of(folder, num_trials=2, tracking_uri=new_database(tmp_path))
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


def test_a_trial_without_a_value_of_a_goal_has_failed_everywhere(callback, capsys):
    """The last FID is NaN: the study calls the trial failed, and so do MLflow, the terminal and the summary."""
    study = SweepStudy(callback.config, callback.folder, callback.record.space)
    searcher, trial = OptunaSearcher(study), make_trial(0)
    searcher.suggest("first")
    callback.on_trial_start(1, [trial], trial)
    last = {"status": "finished", "step": 10, "fid": math.nan, "reason": "", "metrics": {"fid": math.nan}}
    trial.run_metadata.last_result = last
    searcher.on_trial_complete("first", last)
    callback.on_trial_complete(1, [trial], trial)
    reason = "not reported or not finite: fid"
    assert [(row.state, row.reason) for row in callback.progress.recent] == [("failed", reason)]
    write_summary(study)
    assert f"No trial finished, most often because: {reason}." in capsys.readouterr().out
    assert callback.record.tracker.flush(60)
    [run] = MlflowClient(callback.config.tracking_uri).search_runs(["1"], "tags.optuna_number = '0'")
    assert (run.info.status, run.data.tags["state"], run.data.tags["failure"]) == ("FAILED", "failed", reason)


def test_after_a_resume_the_best_trial_has_its_fid_whatever_the_goals(tmp_path):
    fields = {"goals": ("memory/peak_mib", "fid"), "num_trials": 2}
    record = record_of(tmp_path / "sweep", **fields)
    study = SweepStudy(record.config, record.folder, record.space)
    try:
        number = study.next_trial(set()).number
        metrics = {"memory/peak_mib": 41.0, "fid": 8.0}
        study.complete(number, {"step": 10, "fid": 8.0, "metrics": metrics})
        callback = MlflowCallback(record, slots=2)
        callback.count_finished(study.trials(), [], set())
        assert [row.best_fid for row in callback.progress.best] == [8.0]
    finally:
        record.tracker.close(30)


def test_progress_knows_the_steps_of_every_case(tmp_path):
    cases = ("plain", "longer:training.total_steps=900")
    fields = {"training": {"total_steps": 400}, "early_stopping": {"kind": "none"}}
    record = record_of(tmp_path / "comparison", cases=cases, case_seeds=3, **fields)
    try:
        progress = MlflowCallback(record, slots=2).progress
        assert progress.steps == (0, 3 * 400 + 3 * 900)
    finally:
        record.tracker.close(30)


def test_progress_knows_the_steps_of_a_point(tmp_path):
    search = ("training.total_steps=200,800",)
    record = record_of(tmp_path / "search", search=search, num_trials=2, training={"total_steps": 400})
    try:
        callback = MlflowCallback(record, slots=2)
        trial = Trial("soflow", config=TrialTicket(0, {"training.total_steps": 800}).to_tune(), stub=True)
        callback.on_trial_start(1, [trial], trial)
        assert callback.progress.steps == (0, 800 + 400)
    finally:
        record.tracker.close(30)

"""A sweep from the command line to MLflow: its records, its end, its extension, and training its best trial on."""

from __future__ import annotations

import json
import os
import re
import signal

import pandas as pd
import pytest
from session import SMALL, wait_for_line

import orchestration
import soflow
from orchestration.tracking import schema

METRICS = {"fid", "kid", "time/step_ms", "time/train_s", "throughput/images_per_s", "memory/peak_mib"}
TAGS = {"objective", "dataset", "sweep", "trial_id", "optuna_number", "git_commit", "config_hash", "hardware.cpu"}
REPORTED_TAGS = {"fid_feature_network", "fid_feature_weights_sha256", "fid_num_samples", "fid_reference_fingerprint"}
OWN_TAGS = {"purpose": "tests", "paper figure": "4 = b"}
REPORTS = {4: 1, 8: 2, 12: 3}
GRIDS_AT_THE_END = 3  # also at 2 and 4 NFE, and real images


def sweep_runs(session) -> dict[str, object]:
    """MLflow's runs of the sweep `one` and its trials, by name."""
    return {name: run for name, run in session.runs().items() if name.startswith("one")}


def test_a_sweep_is_recorded_whole(finished):
    from mlflow import MlflowClient

    session, output = finished
    states = session.study_states("one")
    runs = sweep_runs(session)
    for run in runs.values():
        assert OWN_TAGS.items() <= run.data.tags.items()
        others = {name for name in run.data.tags if not name.startswith(schema.TAG_PREFIXES)}
        assert others - OWN_TAGS.keys() <= schema.TAGS
    parent = runs.pop("one")
    assert parent.data.tags["mlflow.note.content"].startswith("For the **tests**.\n\n")
    assert sorted(runs) == [f"one-{number:04d}" for number in range(8)]
    assert parent.info.status == "FINISHED"
    table = pd.read_csv(session.storage / "one" / "trials.csv").set_index("trial").sort_index()
    counts = {"COMPLETE": "finished", "PRUNED": "stopped", "FAIL": "failed"}
    assert list(table["state"]) == [counts[state] for state in states]
    assert set(counts) == set(states)  # the sweep had all three ends
    complete = [runs[f"one-{number:04d}"] for number, state in enumerate(states) if state == "COMPLETE"]
    assert parent.data.metrics["best/fid"] == min(run.data.metrics["final/fid"] for run in complete)

    client, warm = MlflowClient(session.tracking_uri), []
    for number, (name, run) in enumerate(sorted(runs.items())):
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert "mlflow.note.content" in run.data.tags
        assert set(run.data.tags) >= TAGS, name
        if states[number] == "FAIL":
            assert run.info.status == "FAILED"
            assert "infinite or NaN at step" in run.data.tags["failure"]
            assert run.data.params["optimizer.learning_rate"] == "1e+30"
            continue
        assert run.info.status == {"COMPLETE": "FINISHED", "PRUNED": "KILLED"}[states[number]]
        assert set(run.data.metrics) >= METRICS, name
        assert ("final/fid" in run.data.metrics) == (states[number] == "COMPLETE")
        assert set(run.data.tags) >= REPORTED_TAGS, name
        step = table.loc[number, "step"]
        assert [at for at, _ in session.history(name, "fid")] == [at for at in REPORTS if at <= step]
        images = [item.path for item in client.list_artifacts(run.info.run_id, "images") if item.path.endswith(".png")]
        assert len(images) == REPORTS[step] + (GRIDS_AT_THE_END if states[number] == "COMPLETE" else 0)
        assert (step < 12) == (states[number] == "PRUNED")
        warm.append("time/handover_s" in run.data.metrics)
    assert "failed: the loss or its gradient became infinite or NaN at step" in output
    # One program started workers once, one twice, for two trials at a time; other trials found warm workers.
    assert warm.count(False) <= 3, warm


def test_the_best_trial_is_a_logged_model_and_its_data_is_recorded(finished):
    from mlflow import MlflowClient

    session, output = finished
    runs, client = sweep_runs(session), MlflowClient(session.tracking_uri)
    parent = runs["one"]
    (best,) = [run for run in runs.values() if run.data.tags.get("best") == "true"]
    assert best.data.metrics["final/fid"] == parent.data.metrics["best/fid"]
    # The saved view that the description links to: the trials, the best first, with what was searched.
    (name,) = re.findall(r"viewStateShareKey=(\w+)", parent.data.tags["mlflow.note.content"])
    experiment = client.get_experiment(parent.info.experiment_id)
    view = json.loads(experiment.tags[f"mlflow.sharedViewState.{name}"])
    assert "params.`objective.r_end`" in view["selectedColumns"]
    order = [f"{view['orderByKey']} {'ASC' if view['orderByAsc'] else 'DESC'}"]
    listed = client.search_runs([parent.info.experiment_id], view["searchFilter"], order_by=order)
    assert listed[0].data.metrics["final/fid"] == best.data.metrics["final/fid"]  # two trials are equal
    models = client.search_logged_models([parent.info.experiment_id])
    (model,) = [model for model in models if model.name.startswith("one")]  # other tests register theirs
    assert (model.name, model.status, model.source_run_id) == (best.info.run_name, "READY", best.info.run_id)
    assert {metric.key: metric.value for metric in model.metrics}["final/fid"] == parent.data.metrics["best/fid"]
    for run in (parent, best):
        (data,) = run.inputs.dataset_inputs
        assert data.dataset.digest == best.data.tags["dataset_fingerprint"]
    table = pd.read_csv(session.storage / "one" / "trials.csv")
    complete = table[table["state"] == "finished"]
    assert list(complete["fid"]) == sorted(complete["fid"])
    assert f"trial {table['trial'][0]}, FID" in output
    assert f"mlflow ui --backend-store-uri {session.tracking_uri}" in output


def test_ctrl_c_also_twice_stops_cleanly_and_resume_continues_to_the_same_numbers(interrupted, finished):
    session, output, before = interrupted.session, interrupted.output, interrupted.runs
    assert interrupted.code == 130, output
    assert f"resume with: python experiments/sweep_schedule.py --resume {session.storage / 'one'}\n" in output
    if "interrupted again; the records in" not in output:  # or the second signal came when all were sent
        assert before["one"].info.status == "KILLED"
        assert {run.info.status for run in before.values()} <= {"KILLED", "FINISHED", "FAILED"}
        assert "KILLED" in {run.info.status for name, run in before.items() if name != "one"}
    runs = session.runs()
    assert before["one-0000"].info.run_id == runs["one-0000"].info.run_id
    same = ("loss/", "fid", "kid", "class_consistency", "gradient/")
    for number, state in enumerate(session.study_states("one")):
        if state == "COMPLETE":  # each trial measured what a training without Ray measures
            run = soflow.load_run(session.storage / "one" / "trials" / f"{number:04d}")
            alone = soflow.train(run.config, session.storage / f"alone-{number}", progress=False).metrics
            names = [name for name in alone if name.startswith(same)]
            assert {name: run.metrics[name] for name in names} == {name: alone[name] for name in names}, number


def best_run(session):
    (best,) = [run for run in sweep_runs(session).values() if run.data.tags.get("best") == "true"]
    return best


def assert_same_numbers(session, name: str, other: str) -> None:
    assert session.runs()[name].info.status == "FINISHED"
    for metric in ("fid", "kid", "class_consistency", "loss/flow_matching", "loss/consistency", "fid_2nfe"):
        assert session.history(name, metric) == session.history(other, metric), metric


def test_the_best_trial_trains_again_to_the_same_numbers(trained):
    """On other workers, in another process: equal to the last digit."""
    session, folder = trained
    assert_same_numbers(session, "again", best_run(session).info.run_name)
    session.succeed("sample.py", str(folder), "--nfe", "2")
    assert (session.storage / "samples.png").stat().st_size > 1000


# Only here: SIGTERM to a program with Ray, and `train.py --resume`. In `make test`, test_interruption.py ends a program
# without Ray by SIGTERM, and sweeps and comparisons resume the training of their trials.
@pytest.mark.soak
def test_a_run_ended_by_sigterm_resumes_to_the_same_numbers(finished):
    session, _ = finished
    best, folder = session.storage / "one" / "best.yaml", session.storage / "terminated"
    run = session.start("train.py", "--config", str(best), "--name", "terminated", "--training.snapshot-every", "2")
    wait_for_line(run, "step 4: ")
    os.kill(run.pid, signal.SIGTERM)
    output, _ = run.communicate(timeout=120)
    assert run.returncode == 128 + signal.SIGTERM, output
    assert f"resume with: python experiments/train.py --resume {folder}\n" in output
    assert session.runs()["terminated"].info.status == "KILLED"
    session.assert_nothing_left()
    session.succeed("train.py", "--resume", str(folder))
    assert_same_numbers(session, "terminated", best_run(session).info.run_name)


def extend(session, changes):
    layer = {"resume": "one", "num_trials": 10, "storage": str(session.storage)}
    orchestration.start_sweep(orchestration.sweep_config(layer | changes))


def test_a_sweep_is_read_from_python_and_guards_its_name_and_numbers(finished):
    session, _ = finished
    written = pd.read_csv(session.storage / "one" / "trials.csv")
    sweep = orchestration.load_sweep("one", session.storage)
    pd.testing.assert_frame_equal(sweep.table(), written.fillna({"reason": ""}))
    assert sweep.best().metrics["fid"] == written["fid"][0]
    here = soflow.train(sweep.best().config, session.storage / "here", progress=False)  # without Ray, the same numbers
    assert here.metrics["fid"] == written["fid"][0]
    assert repr(sweep) == "<sweep one: 8 of 8 trials ended>"
    assert len(sweep.study.trials) >= 8
    with pytest.raises(soflow.ConfigError, match=r"training\.total_steps = 24: cannot change on resume, it is 12"):
        extend(session, {"training.total_steps": 24})
    message = session.fail("sweep_schedule.py", *SMALL, "--num-trials", "4", "--name", "one")
    assert message.startswith("error: name = one: exists in ")


@pytest.mark.soak  # the sweep was extended when it was resumed
def test_a_finished_sweep_is_extended(finished):
    session, _ = finished
    before, states = pd.read_csv(session.storage / "one" / "trials.csv"), session.study_states("one")
    session.succeed("sweep_schedule.py", "--resume", "one", "--num-trials", "10")
    table = pd.read_csv(session.storage / "one" / "trials.csv").sort_values("trial")
    assert list(table["trial"]) == list(range(10))
    assert session.study_states("one")[:8] == states
    same = ["trial", "fid", "step", "state"]
    assert table[same][:8].fillna(0).values.tolist() == before.sort_values("trial")[same].fillna(0).values.tolist()
    assert {f"one-{number:04d}" for number in range(10)} <= set(session.runs())

"""Sweeps from the command line to MLflow: what they record, how failing trials end, that nothing is left behind."""

from __future__ import annotations

import pandas as pd
import pytest
import yaml
from session import SMALL

pytestmark = pytest.mark.slow

METRICS = {"fid", "kid", "final/fid", "time/step_ms", "time/train_s", "throughput/images_per_s", "memory/peak_mib"}
TAGS = {"objective", "dataset", "sweep", "trial_id", "optuna_number", "git_commit", "config_hash", "hardware.cpu"}
TAGS |= {"fid_feature_network", "fid_feature_weights_sha256", "fid_num_samples", "fid_reference_fingerprint", "device"}


def test_a_sweep_is_recorded_whole(session):
    from mlflow import MlflowClient

    code, output = session.run(
        "sweep_schedule.py", *SMALL, "--name", "one", "--num-trials", "4", "--early-stopping.kind", "none"
    )
    assert code == 0, output
    session.assert_nothing_left()
    runs = session.runs()
    parent = runs.pop("one")
    assert sorted(runs) == [f"one-{number:04d}" for number in range(4)]
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["best/fid"] == min(run.data.metrics["final/fid"] for run in runs.values())
    client = MlflowClient(session.tracking_uri)
    for name, run in runs.items():
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert set(run.data.metrics) >= METRICS, name
        assert set(run.data.tags) >= TAGS, name
        assert run.data.params["objective.gap_schedule"] in ("constant", "linear", "cosine", "exponential")
        assert [step for step, _ in session.history(name, "fid")] == [4, 8, 12]
        images = [item.path for item in client.list_artifacts(run.info.run_id, "images") if item.path.endswith(".png")]
        assert len(images) == 3 + 2  # one for each report, and at the end also at 2 and 4 NFE
        if name not in ("one-0000", "one-0001"):  # on workers that had a trial before
            assert run.data.metrics["time/handover_s"] < 10  # not the start of a new group
    assert session.study_states("one") == ["COMPLETE"] * 4
    (best,) = [run for run in runs.values() if run.data.tags.get("best") == "true"]
    assert best.data.metrics["final/fid"] == parent.data.metrics["best/fid"]
    (model,) = client.search_logged_models([parent.info.experiment_id])
    assert (model.name, model.status, model.source_run_id) == (best.info.run_name, "READY", best.info.run_id)
    assert {metric.key: metric.value for metric in model.metrics}["final/fid"] == parent.data.metrics["best/fid"]
    for run in (parent, *runs.values()):
        (data,) = run.inputs.dataset_inputs
        assert data.dataset.digest == best.data.tags["dataset_fingerprint"]
        assert "mlflow.note.content" in run.data.tags
    table = pd.read_csv(session.storage / "one" / "trials.csv")
    assert list(table["fid"]) == sorted(table["fid"])
    assert f"trial {table['trial'][0]}, FID" in output
    assert f"mlflow ui --backend-store-uri {session.tracking_uri}" in output

    best = session.storage / "one" / "best.yaml"
    code, output = session.run("train.py", "--config", str(best), "--name", "again")
    assert code == 0, output
    again = session.runs()["again"].data.metrics
    # The same configuration on fresh workers gives what it gave on workers that had run other trials.
    for name in ("fid", "kid", "class_consistency", "loss/flow_matching", "loss/consistency", "fid_2nfe"):
        assert again[name] == runs[f"one-{table['trial'][0]:04d}"].data.metrics[name], name

    code, output = session.run("sample.py", str(session.storage / "again"), "--nfe", "2")
    assert code == 0, output
    assert (session.storage / "samples.png").stat().st_size > 1000


def test_failing_trials_are_told_as_such_and_the_sweep_goes_on(session):
    search = ["--search", "optimizer.learning_rate=0.003,1e30"]
    code, output = session.run(
        "sweep_schedule.py", *SMALL, "--name", "nan", "--num-trials", "5", "--seed", "1", *search
    )
    assert code == 0, output
    states = session.study_states("nan")
    assert set(states) <= {"COMPLETE", "PRUNED", "FAIL"}
    assert "FAIL" in states
    assert "COMPLETE" in states
    failed = [run for run in session.runs().values() if run.info.status == "FAILED"]
    assert len(failed) == states.count("FAIL")
    for run in failed:
        assert "infinite or NaN at step" in run.data.tags["failure"]
        assert run.data.params["optimizer.learning_rate"] == "1e+30"
    assert "failed: the loss became infinite or NaN at step" in output


def test_stopped_trials_are_pruned(session):
    steps = ["--training.total-steps", "16", "--early-stopping.grace-reports", "1"]
    code, output = session.run("sweep_schedule.py", *SMALL, *steps, "--name", "asha", "--num-trials", "8")
    assert code == 0, output
    states = session.study_states("asha")
    table = pd.read_csv(session.storage / "asha" / "trials.csv")
    assert states.count("PRUNED") == (table["state"] == "stopped").sum() > 0
    assert states.count("COMPLETE") == (table["state"] == "finished").sum() > 0
    assert (table[table["state"] == "stopped"]["step"] < 16).all()

    code, output = session.run("sweep_schedule.py", "--resume", "asha", "--num-trials", "10")
    assert code == 0, output
    extended = pd.read_csv(session.storage / "asha" / "trials.csv").sort_values("trial")
    assert list(extended["trial"]) == list(range(10))
    assert session.study_states("asha")[:8] == states
    old = ["trial", "fid", "step", "state"]
    assert extended[old][:8].values.tolist() == table.sort_values("trial")[old].values.tolist()
    assert set(session.runs()) == {"asha", *(f"asha-{number:04d}" for number in range(10))}


def test_one_seed_gives_one_sweep(session):
    one_at_a_time = [*SMALL, "--num-trials", "3", "--max-concurrent", "1"]
    one_at_a_time += ["--early-stopping.kind", "none", "--seed", "7"]
    for name in ("first", "second"):
        code, output = session.run("sweep_schedule.py", *one_at_a_time, "--name", name)
        assert code == 0, output
    first, second = (pd.read_csv(session.storage / name / "trials.csv") for name in ("first", "second"))
    measured = ["time/train_s", "time/step_ms", "memory/peak_mib", "folder"]
    pd.testing.assert_frame_equal(first.drop(columns=measured), second.drop(columns=measured), check_exact=True)

    # Another sweep under a name that is taken.
    code, output = session.run("sweep_schedule.py", *one_at_a_time, "--num-trials", "4", "--name", "second")
    assert code == 2
    assert output.startswith("error: name = second: is in ")
    assert "with other num_trials; give another --name" in output


def test_another_objective_with_two_workers_a_trial(session):
    flags = ["--objective", "meanflow", "--num-trials", "2", "--max-concurrent", "1", "--resources.num-workers", "2"]
    flags += ["--evaluation.nfe", "1", "4", "--goals", "fid", "time/train_s", "--constraints", "memory/peak_mib<=1e6"]
    code, output = session.run("sweep_schedule.py", *SMALL, *flags, "--name", "two")
    assert code == 0, output
    runs = session.runs()
    assert runs["two-0001"].data.tags["workers"] == "2"
    table = pd.read_csv(session.storage / "two" / "trials.csv")
    fastest = table["time/train_s"].idxmin()
    assert table["feasible"].all()
    assert table["pareto"][0]
    assert table["pareto"][fastest]
    assert {"fid", "fid_4nfe"} <= set(runs["two-0001"].data.metrics)
    best = yaml.safe_load((session.storage / "two" / "best.yaml").read_text())
    assert best["objective"]["name"] == "meanflow"

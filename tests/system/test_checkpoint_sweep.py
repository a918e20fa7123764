"""A sweep over a finished checkpoint: killed and interrupted, it resumes to the numbers of an undisturbed one."""

from __future__ import annotations

import os
import signal

import pandas as pd
import pytest
from session import wait_for_line

import soflow
from orchestration.checkpoint_sweep.results import load_results

POINTS = ["--ema", "trained", "0.1", "--guidance", "1", "2", "--nfe", "1", "2", "--confirm-seeds", "2"]


@pytest.mark.parametrize("ended", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.soak)])
def test_an_ended_sweep_of_a_checkpoint_resumes_to_the_same_numbers(trained, ended):
    session, run = trained
    name = f"points-{ended.name}"
    command = ["sweep_checkpoint.py", str(run), *POINTS, "--name", name]
    sweep = session.start(*command, "--max-concurrent", "1")
    wait_for_line(sweep, ": fid")
    os.kill(sweep.pid, ended)
    if ended == signal.SIGKILL:
        sweep.wait()
    else:
        output, _ = sweep.communicate(timeout=120)
        assert sweep.returncode == 130
        assert "interrupted; the same command resumes" in output

    output = session.succeed(*command, "--max-concurrent", "2")
    assert "8 points of" in output
    assert "best / default [95 % CI]" in output
    folder = session.storage / name
    results = load_results(folder)
    table = pd.read_csv(folder / "points.csv")
    assert len(results) == len(table) == len(set(table["number"]))
    assert len(table[table["seed"] == 0]) == 8

    # Every number is what the same model measures here, without Ray.
    for result in (results[0], results[-1]):
        model = soflow.load_model(run, device="cpu", ema=result.point.ema)
        changes = {path.removeprefix("evaluation."): value for path, value in result.point.changes().items()}
        expected = model.evaluate(session.storage / "reference", precision_recall=True, **changes)
        same = ("fid", "kid", "precision", "recall", "class_consistency")
        assert {name: result.metrics[name] for name in same} == {name: expected[name] for name in same}

    # Each point is one run in MLflow, with its parent's record of what was found.
    runs = session.runs()
    parent = runs[name]
    assert (parent.info.status, parent.data.tags["soflow.kind"]) == ("FINISHED", "checkpoint sweep")
    children = [run for run in runs.values() if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    fids = sorted(child.data.metrics["fid"] for child in children)
    assert fids == pytest.approx(sorted(result.metrics["fid"] for result in results), rel=1e-12)
    assert "Where the metrics disagree" in (folder / "report.html").read_text()

    # The best point is a checkpoint that the other programs take.
    best = min((result for result in results if result.point.seed == 0), key=lambda result: result.metrics["fid"])
    found = soflow.load_model(folder / "best", device="cpu").evaluate(session.storage / "reference")
    assert found["fid"] == best.metrics["fid"]
    session.succeed("sample.py", str(folder / "best"), "--out", str(session.storage / "best.png"))

    message = session.fail(*command, "--num-samples", "32")
    assert f"num_samples = 32: the points of {name} were measured with 64; choose another --name" in message

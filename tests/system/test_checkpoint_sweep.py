"""A sweep over a finished checkpoint: killed and interrupted, it resumes to the numbers of an undisturbed one."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pandas as pd
import pytest
import torch
from session import Session, wait_for_line

import soflow
from orchestration.checkpoint_sweep.config import CheckpointSweepConfig
from orchestration.checkpoint_sweep.results import Result, grid_file, load_results, save_result
from orchestration.checkpoint_sweep.subject import note_config, open_checkpoint
from orchestration.checkpoint_sweep.worker import CheckpointWorker, Measure, Subject

POINTS = ["--ema", "trained", "0.1", "--guidance", "1", "2", "--nfe", "1", "2", "--confirm-seeds", "2"]


def measured_before(session: Session, run: Path, name: str) -> None:
    """Leave a sweep with one measured point, as an interruption does, without a program."""
    flags = {"checkpoint": run, "ema": ["trained", "0.1"], "guidance": [1, 2], "nfe": [1, 2], "confirm_seeds": 2}
    config = CheckpointSweepConfig(**flags, storage=session.storage, name=name)
    checkpoint, folder = open_checkpoint(config), session.storage / name
    folder.mkdir()
    note_config(folder, config, checkpoint)
    subject = Subject(checkpoint.path, {"evaluation.precision_recall": True}, session.storage / "reference")
    point = checkpoint.space.grid()[0]
    answer = CheckpointWorker(subject, torch.device("cpu"), 0, 1).serve(Measure(point, grid_file(folder, point)))
    save_result(Result(0, point, answer.metrics, answer.protocol), folder)


def ended_by(how: signal.Signals, session: Session, command: list[str]) -> None:
    sweep = session.start(*command, "--max-concurrent", "1")
    wait_for_line(sweep, ": fid")
    os.kill(sweep.pid, how)
    if how == signal.SIGKILL:
        sweep.wait()
        return
    output, _ = sweep.communicate(timeout=120)
    assert sweep.returncode == 130
    assert "interrupted; the same command resumes" in output


# Interruptions are in `make soak`: a start of the program takes a minute. Without one, a point was measured before.
@pytest.mark.parametrize(
    "ended", [None, *(pytest.param(how, marks=pytest.mark.soak) for how in (signal.SIGKILL, signal.SIGINT))]
)
def test_an_ended_sweep_of_a_checkpoint_resumes_to_the_same_numbers(trained, ended):
    session, run = trained
    name = "points" if ended is None else f"points-{ended.name}"
    command = ["sweep_checkpoint.py", str(run), *POINTS, "--name", name]
    if ended is None:
        measured_before(session, run, name)
    else:
        ended_by(ended, session, command)

    output = session.succeed(*command, "--max-concurrent", "2")
    before = "1" if ended is None else "[1-7]"
    assert re.search(rf"^8 points of .*, {before} of them measured before$", output, re.MULTILINE), output
    assert "best / default [95 % CI]" in output
    folder = session.storage / name
    results = load_results(folder)
    table = pd.read_csv(folder / "points.csv")
    assert len(results) == len(table) == len(set(table["number"]))
    assert len(table[table["seed"] == 0]) == 8

    # Every number is what the same model measures here, without Ray.
    for result in (results[0], results[1], results[-1]):
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

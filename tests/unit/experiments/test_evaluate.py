"""Measuring a checkpoint again: the figures of its run, and others."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from helpers import CPU, tiny_config

from experiments import evaluate
from soflow.data import open_source
from soflow.evaluation.fidelity import Evaluator
from soflow.training.run import TrainingRun


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run: its folder and last report."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny_config(training={"total_steps": 4, "report_every": 2}, evaluation={"num_samples": 64, "nfe": (1, 2)})
    source = open_source(config.dataset)
    training = TrainingRun(config, source, folder, CPU, Evaluator(source, config, CPU, folder / "reference"))
    while not training.finished:
        report = training.advance()
    return folder, report


def measure(monkeypatch, capsys, folder, *arguments) -> dict:
    out = folder / "measured.json"
    program = ["evaluate.py", folder, "--storage", folder, "--out", out, *arguments]
    monkeypatch.setattr(sys, "argv", [str(argument) for argument in program])
    assert evaluate.main() == 0
    assert f"written to {out}" in capsys.readouterr().out
    return json.loads(out.read_text())


@pytest.mark.skipif(torch.cuda.is_available(), reason="the fixture trains on the CPU")
def test_the_figures_of_the_run_come_out_again(run, monkeypatch, capsys):
    folder, report = run
    measured = measure(monkeypatch, capsys, folder)
    assert measured["metrics"] == {name: report.metrics[name] for name in measured["metrics"]}
    assert {"fid", "fid_2nfe", "kid", "class_consistency", "fid_floor"} <= set(measured["metrics"])
    facts = {f"fid_{name}": str(value) for name, value in measured["protocol"].items() if name not in ("nfe", "seed")}
    assert facts.items() <= report.facts.items()


def test_json_goes_to_stdout_alone(run, monkeypatch, capsys):
    folder, _ = run
    out = folder / "measured.json"
    program = ["evaluate.py", folder, "--storage", folder, "--nfe", "1", "--format", "json", "--out", out]
    monkeypatch.setattr(sys, "argv", [str(argument) for argument in program])
    assert evaluate.main() == 0
    assert (content := json.loads(capsys.readouterr().out)) == json.loads(out.read_text())
    sampling = {"ema": "trained", "guidance": 1.0, "guidance_interval": [0.0, 1.0], "temperature": 1.0, "times": []}
    assert content["sampling"] == sampling | {"samplers": {"1": "compose"}}


def test_other_settings_replace_those_of_the_run(run, monkeypatch, capsys):
    folder, report = run
    flags = ["--num-samples", "100", "--nfe", "4", "--precision-recall", "--labels", "data", "--seed", "3", "--best"]
    measured = measure(monkeypatch, capsys, folder, *flags)
    assert measured["protocol"]["num_samples"] == 100
    assert (measured["protocol"]["nfe"], measured["protocol"]["labels"], measured["protocol"]["seed"]) == (
        [4],
        "data",
        3,
    )
    assert {"fid", "precision", "recall"} <= set(measured["metrics"])
    assert measured["metrics"]["fid"] != report.metrics["fid"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--feature-network", "fashion-cnn"], "evaluation.feature_network = fashion-cnn: takes images of shape"),
        (["--feature-network", "vgg"], "evaluation.feature_network = vgg: must be one of"),
        (["--sampler", "heun", "--nfe", "3"], "evaluation: nfe = [3] must be even or 1"),
        (["--reference", "none.npz"], "none.npz"),
        (["--also-reference", "none.npz"], "needs also_protocol"),
        (["--also-protocol", "adm"], "protocol = adm: needs reference"),
        (["--ema", "0.1"], "has no snapshots up to step 4"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(run, monkeypatch, capsys, flags, message):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", str(run[0]), *flags])
    with pytest.raises(SystemExit) as ended:
        evaluate.main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error

"""Reproducing a published FID, on a small stand-in checkpoint in the SoFlow authors' layout."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers import REPOSITORY

from experiments import reproduce
from soflow.config import override, parse, to_dict
from soflow.config_files import read_yaml, to_yaml
from soflow.evaluation.feature_networks import Classifier, widths_for
from soflow.evaluation.reference_files import write_npz
from soflow.files import sha256
from soflow.interop.authors_checkpoint import export_state
from soflow.training.build import build_network, build_optimizer

NAME = "soflow-cifar10"
SHAPE = (3, 32, 32)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder with a preset of a small U-Net, its checkpoint as the authors save it, features and references."""
    folder = tmp_path_factory.mktemp("inputs")
    torch.manual_seed(0)
    published = read_yaml(REPOSITORY / "experiments" / "presets" / f"{NAME}.yaml")
    config = parse(override(published, {"network.name": "U-Net-XS"}))
    (folder / f"{NAME}.yaml").write_text(to_yaml(config))
    network = build_network(config, 10)
    with torch.no_grad():
        for weights in network.parameters():
            weights += 0.05 * torch.randn(weights.shape)
    optimizer = build_optimizer(config, network).state_dict()
    state = {"network": network.state_dict(), "ema": network.state_dict(), "optimizer": optimizer, "step": 7}
    torch.save(export_state(state, network, config), folder / "authors.pt")
    own = {"ema": network.state_dict(), "config": to_dict(config), "num_classes": 10, "step": 7}
    torch.save(own, folder / "checkpoint-00000007.pt")

    made = {"image_shape": SHAPE, "num_classes": 10, "data_sha256": ""}
    content = safetensors.torch.save(Classifier(SHAPE, widths_for(SHAPE), 10).state_dict(), {"made": json.dumps(made)})
    features = folder / "features.safetensors"
    features.write_bytes(content)
    for name, shift in (("one", 0.0), ("two", 1.0)):
        rows = np.random.default_rng(1).normal(size=(200, 64)) + shift
        statistics = {"mu": rows.mean(0), "sigma": np.cov(rows, rowvar=False)}
        write_npz(folder / f"{name}.npz", statistics, {"feature_network": features.name})
    return folder


@pytest.fixture
def run(inputs, tmp_path, monkeypatch, capsys):
    """Runs the program; returns its exit code, output and errors."""
    monkeypatch.setattr(reproduce, "PRESETS", inputs)  # a network of a test's size

    def start(*arguments, checkpoint="authors.pt"):
        program = ["reproduce.py", NAME, "--checkpoint", inputs / checkpoint, "--storage", tmp_path]
        program += ["--feature-network", inputs / "features.safetensors", "--num-samples", "48", "--num-groups", "4"]
        monkeypatch.setattr(sys, "argv", [str(argument) for argument in (*program, *arguments)])
        try:
            code = reproduce.main()
        except SystemExit as ended:
            code = ended.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return start


def rows_of(output: str) -> list[list[str]]:
    rows = [line.strip("| ").split(" | ") for line in output.splitlines() if line.startswith("| ")]
    return rows[1:]  # without the heading


def test_a_table_compares_with_the_published_figures(inputs, run, tmp_path):
    hashes = [sha256(inputs / f"{name}.npz")[:12] for name in ("one", "two")]
    protocols = ["--protocols", "torch-fidelity", "adm", "--references", inputs / "one.npz", inputs / "two.npz"]
    code, output, _ = run(*protocols, "--reference-sha256", *hashes)
    assert code == 0
    rows = rows_of(output)
    assert [row[:2] for row in rows] == [["1", "torch-fidelity"], ["1", "adm"], ["2", "torch-fidelity"], ["2", "adm"]]
    assert [row[4] for row in rows] == ["2.86", "2.86", "2.28", "2.28"]
    for row in rows:
        assert float(row[5]) == pytest.approx(float(row[2]) - float(row[4]), abs=0.011)  # two digits each
        assert float(row[3]) > 0
    table = (tmp_path / f"{NAME}-reproduced" / "table.md").read_text()
    assert rows_of(table) == rows


def test_an_interrupted_reproduction_resumes_to_the_same_table(inputs, run, tmp_path, monkeypatch):
    arguments = ["--references", inputs / "one.npz", "--nfe", "1"]
    expected = rows_of(run(*arguments, "--name", "whole")[1])

    measured, original = [], reproduce._features

    def interrupted(*given):
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(given)
        return original(*given)

    monkeypatch.setattr(reproduce, "_features", interrupted)  # Ctrl-C between two groups
    code, output, _ = run(*arguments)
    assert (code, output.strip()) == (130, "interrupted; the same command resumes")
    measured.clear()
    (tmp_path / f"{NAME}-reproduced" / "moments" / "1nfe-torch-fidelity-000.safetensors").write_bytes(b"torn")
    monkeypatch.setattr(reproduce, "_features", lambda *given: measured.append(given) or original(*given))
    code, output, _ = run(*arguments)
    # All but the sampling error: with fewer images than features, that of FID's matrix root is as large.
    assert [row[:3] + row[4:] for row in rows_of(output)] == [row[:3] + row[4:] for row in expected]
    assert len(measured) == 3  # two that were missing, and a damaged one


def test_a_checkpoint_of_this_project_gives_the_same_figures(inputs, run):
    arguments = ["--references", inputs / "one.npz", "--nfe", "1"]
    (theirs,) = rows_of(run(*arguments)[1])
    (own,) = rows_of(run(*arguments, "--name", "own", checkpoint="checkpoint-00000007.pt")[1])
    assert own[:3] == theirs[:3]


FAULTS = [
    (["--references", "one.npz", "two.npz"], "references: 2 files for 1 protocols, torch-fidelity; give one for each"),
    (["--references", "one.npz", "--protocols", "jax"], "protocol = jax: needs reference_sha256"),
    (["--references", "two.npz", "--reference-sha256", "00000000"], "is another file than evaluation.reference_sha256"),
    (["--references", "none.npz"], "none.npz: no such file"),
    (["--references", "one.npz", "--feature-network", "inception", "--feature-weights", "one.npz"], "one.npz"),
]


@pytest.mark.parametrize(("arguments", "message"), FAULTS, ids=[message[:20] for _, message in FAULTS])
def test_bad_inputs_are_one_line(inputs, run, arguments, message):
    given = [inputs / argument if argument.endswith(".npz") else argument for argument in arguments]
    code, _, error = run(*given)
    assert code == 2
    assert message in error
    assert error.count("\n") == 1


def test_another_folder_is_asked_for_if_settings_differ(inputs, run):
    run("--references", inputs / "one.npz", "--nfe", "1")
    code, _, error = run("--references", inputs / "one.npz", "--nfe", "1", "--seed", "3")
    assert code == 2
    assert "seed = 3: is 0 in" in error


def test_other_references_use_the_same_images(inputs, run, monkeypatch):
    (first,) = rows_of(run("--references", inputs / "one.npz", "--nfe", "1")[1])
    monkeypatch.setattr(reproduce, "_features", lambda *arguments: pytest.fail("images are generated again"))
    (second,) = rows_of(run("--references", inputs / "two.npz", "--nfe", "1")[1])
    assert first[:2] == second[:2]
    assert first[2] != second[2]


def test_a_checkpoint_of_another_network_is_refused_with_the_first_key(inputs, run, tmp_path):
    stored = torch.load(inputs / "authors.pt", weights_only=True)
    stored["ema_model"]["network.extra.weight"] = torch.zeros(2)
    torch.save(stored, inputs / "foreign.pt")
    code, _, error = run("--references", inputs / "one.npz", checkpoint="foreign.pt")
    assert code == 2
    assert "network.extra.weight, (2,), is no parameter of U-Net-XS" in error

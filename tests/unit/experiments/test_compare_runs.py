"""Two runs compared: settings, metrics, the protocol of FID, and their samples side by side."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
from PIL import Image

import soflow
from experiments import compare_runs

LAYERS = {"training.total_steps": 2, "training.batch_size": 8, "evaluation.num_samples": 16}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    changes = {"first": {}, "second": {"objective.r_end": 0.01}, "third": {"evaluation.num_samples": 17}}
    for name, change in changes.items():
        soflow.train(soflow.load_config(LAYERS | change), root / name, progress=False)
    return {name: str(root / name) for name in changes}


def output(monkeypatch, capsys, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["compare_runs.py", *arguments])
    assert compare_runs.main() == 0
    return capsys.readouterr().out


def test_settings_and_metrics_that_differ_are_shown(folders, monkeypatch, capsys):
    text = output(monkeypatch, capsys, folders["first"], folders["second"])
    settings, _, metrics = text.partition("metrics")
    assert [word for word in settings.split() if word.startswith("objective.")] == ["objective.r_end"]
    assert "0.002" in settings
    assert "0.01" in settings
    assert "(×" in metrics
    assert "protocol" not in text


def test_different_protocols_are_named(folders, monkeypatch, capsys):
    text = output(monkeypatch, capsys, folders["first"], folders["third"])
    assert "fid_num_samples" in text
    assert text.endswith("The FIDs follow different protocols and cannot be compared.\n")


def test_conditions_that_differ_are_named(folders, monkeypatch, capsys, tmp_path):
    other = tmp_path / "first"
    shutil.copytree(folders["first"], other)
    for path in (other / "reports").glob("*.json"):
        path.write_text(path.read_text().replace('"device": "', '"device": "other '))
    text = output(monkeypatch, capsys, folders["first"], str(other))
    assert "other" in text.partition("conditions")[2]
    assert "Times and memory were measured under different conditions." in text
    assert other.parent.name in "".join(text.split())  # runs of the same name are shown with their folders


def test_a_run_in_a_folder_called_trials_is_no_trial(folders, monkeypatch, capsys, tmp_path):
    shutil.copytree(folders["first"], tmp_path / "trials" / "mine")
    assert "mine" in output(monkeypatch, capsys, folders["second"], str(tmp_path / "trials" / "mine"))


def test_json_has_the_same(folders, monkeypatch, capsys):
    found = json.loads(output(monkeypatch, capsys, *folders.values(), "--format", "json", "--all-metrics"))
    assert found["runs"] == list(folders.values())
    assert found["settings"]["objective.r_end"] == [0.002, 0.01, 0.002]
    fids = [soflow.load_run(folder).metrics["fid"] for folder in folders.values()]
    assert found["metrics"]["fid"] == fids
    assert "gradient/norm" in found["metrics"]


def test_samples_are_side_by_side(folders, monkeypatch, capsys, tmp_path):
    output(monkeypatch, capsys, folders["first"], folders["second"], "--out", str(tmp_path / "both.png"))
    picture = Image.open(tmp_path / "both.png")
    grids = [soflow.load_run(folders[name]).grid() for name in ("first", "second")]
    assert picture.size == (2 * grids[0].width + compare_runs.GAP, grids[0].height)
    assert picture.crop((0, 0, *grids[0].size)).tobytes() == grids[0].tobytes()
    assert picture.crop((picture.width - grids[1].width, 0, *picture.size)).tobytes() == grids[1].tobytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["one"], "error: runs = ['one']: must be two folders or more"),
        (["nowhere", "elsewhere"], "error: folder = nowhere: contains no run"),
        (["a", "b", "--out", "both.jpg"], "error: out = both.jpg: must be the name of a .png file"),
    ],
)
def test_mistakes_are_one_line(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["compare_runs.py", *arguments])
    with pytest.raises(SystemExit) as end:
        compare_runs.main()
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1

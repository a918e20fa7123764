"""The worker of a checkpoint sweep, in this process: its numbers, images and failures, and the report of its points."""

from __future__ import annotations

import math
import re

import pytest
import torch
from helpers import CPU
from PIL import Image

import soflow
from dashboards.checkpoint.page import checkpoint_page
from orchestration.checkpoint_sweep.best import save_best
from orchestration.checkpoint_sweep.config import CheckpointSweepConfig, Point
from orchestration.checkpoint_sweep.results import Result, at_seed, grid_file, save_result
from orchestration.checkpoint_sweep.run import _Sweep
from orchestration.checkpoint_sweep.subject import note_config, open_checkpoint
from orchestration.checkpoint_sweep.worker import CheckpointWorker, Measure, Subject
from orchestration.terminal.command_line import validate
from orchestration.tracking.tracker import Tracker
from soflow.config_base import ConfigError
from soflow.config_files import read_yaml
from tests.database import new_database

LAYERS = (
    {"training.total_steps": 32, "training.batch_size": 8, "training.report_every": 32, "training.snapshot_every": 4},
    {"evaluation.num_samples": 32, "evaluation.batch_size": 16, "evaluation.nfe": [1, 2]},
)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> soflow.Run:
    return soflow.train(soflow.load_config(*LAYERS), tmp_path_factory.mktemp("runs") / "run", progress=False)


@pytest.fixture(scope="module")
def worker(run):
    """Measures as the run does."""
    subject = Subject(run.folder / "checkpoint-00000032.pt", {}, run.folder.parent / "reference")
    return CheckpointWorker(subject, CPU, 0, 1)


def measure(worker: CheckpointWorker, folder, point: Point) -> dict[str, float]:
    answer = worker.serve(Measure(point, grid_file(folder, point)))
    assert answer.protocol["num_samples"] == 32
    with Image.open(grid_file(folder, point)) as image:
        assert image.size == (342, 274)
    return answer.metrics


def test_the_defaults_have_the_numbers_of_the_training(run, worker, tmp_path):
    one, two = (measure(worker, tmp_path, Point(nfe=nfe, sampler="renoise")) for nfe in (1, 2))
    for name in ("fid", "kid", "class_consistency"):
        assert one[name] == run.metrics[name]
        assert two[name] == run.metrics[f"{name}_2nfe"]
    assert (one["evaluations"], two["evaluations"]) == (1, 2)


def test_every_choice_changes_the_images_and_none_remains(run, worker, tmp_path):
    plain = measure(worker, tmp_path, Point())["fid"]
    others = [Point(ema="0.2"), Point(guidance=2.0), Point(temperature=0.8), Point(seed=1)]
    found = [measure(worker, tmp_path, point) for point in others]
    assert len({plain, *(metrics["fid"] for metrics in found)}) == 5
    assert [metrics["evaluations"] for metrics in found] == [1, 2, 1, 1]
    assert measure(worker, tmp_path, Point())["fid"] == plain
    half = Point(nfe=2, sampler="renoise", guidance=2.0, guidance_interval=(0.6, 1.0))
    assert measure(worker, tmp_path, half)["evaluations"] == 3


def test_an_average_is_the_model_s(run, worker, tmp_path):
    model = soflow.load_model(run.folder, device="cpu", ema="0.15")
    assert measure(worker, tmp_path, Point(ema="0.15"))["fid"] == model.evaluate(tmp_path, nfe=(1,))["fid"]


def test_a_failure_is_an_answer(worker, tmp_path):
    request = Measure(Point(ema="0.01"), grid_file(tmp_path, Point()))
    with pytest.raises(ConfigError) as caught:
        worker.serve(request)
    assert worker.failure(request, caught.value).failure.startswith("ConfigError: ema = 0.01: cannot be made from 8")


def config_of(run, **values) -> CheckpointSweepConfig:
    return validate(CheckpointSweepConfig, {"checkpoint": str(run.folder), "confirm_seeds": 2} | values)


def test_a_report_shows_what_was_gained_and_where_metrics_disagree(run, worker, tmp_path):
    config = config_of(run, ema=["trained", 0.1, 0.2], guidance=[1, 2], nfe=[1, 2])
    checkpoint = open_checkpoint(config)
    folder = tmp_path / "sweep"
    folder.mkdir()
    note_config(folder, config, checkpoint)
    grid = checkpoint.space.grid()
    for number, point in enumerate([*grid, *(at_seed(point, seed) for point in grid for seed in (1, 2))]):
        answer = worker.serve(Measure(point, grid_file(folder, point)))
        more = {"precision": (7 * number % 5) / 10}
        save_result(Result(number, point, answer.metrics | more, answer.protocol), folder)
    page = checkpoint_page(folder)
    assert "12 points of" in page
    assert len(re.findall(r"At \d network evaluations? per image, ", page)) >= 1
    assert "Where the metrics disagree" in page
    assert page.count("data:image/webp") >= 4
    for panel in ("contours", "evaluations", "lengths"):
        assert f'id="{panel}"' in page
    assert "Not drawn" not in page
    # The same folder takes more points, but no other measurement.
    note_config(folder, config_of(run, ema=["trained", 0.05], guidance=[1]), checkpoint)
    other = config_of(run, num_samples=64)
    with pytest.raises(ConfigError, match=r"evaluation.num_samples = 64: the points of sweep were measured with 32"):
        note_config(folder, other, open_checkpoint(other))


@pytest.mark.parametrize(("fid", "status"), [(math.nan, "FAILED"), (math.inf, "FAILED"), (1.5, "FINISHED")])
def test_a_sweep_without_any_finite_goal_has_failed(run, tmp_path, fid, status):
    config = config_of(run)
    save_result(Result(0, Point(), {"fid": fid, "evaluations": 1.0}, {}), tmp_path)
    assert _Sweep(config, open_checkpoint(config), tmp_path).status == status


def test_a_foreign_folder_is_not_written_to(run, tmp_path):
    (tmp_path / "thesis.tex").touch()
    config = config_of(run)
    with pytest.raises(ConfigError, match=f"name = {tmp_path.name}: is taken in"):
        note_config(tmp_path, config, open_checkpoint(config))


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> soflow.Run:
    """A run without labels and snapshots."""
    layers = (*LAYERS, {"dataset.conditional": False, "training.snapshot_every": None, "training.total_steps": 2})
    return soflow.train(soflow.load_config(*layers), tmp_path_factory.mktemp("runs") / "plain", progress=False)


def test_what_a_checkpoint_cannot_do_is_refused_before_the_start(run, plain):
    assert open_checkpoint(config_of(plain)).space.ema == ("trained",)
    faults = [
        (plain, {"ema": ["0.1"]}, r"plain: has no snapshots up to step 2, .*--training\.snapshot-every 1"),
        (plain, {"guidance": [2]}, r"evaluation\.guidance = 2: must be 1 with dataset\.conditional = False"),
        (run, {"ema": ["0.01"]}, r"ema = 0\.01: cannot be made from 8 snapshots .* error would be \d+%"),
        (run, {"goals": ["recall"], "precision_recall": False}, "goals = recall: needs precision_recall"),
        (run, {"goals": ["cmmd"]}, "goals = cmmd: needs feature_network = clip"),
        (run, {"goals": ["class_consistency"], "feature_network": "dinov2"}, "needs a feature_network that classifies"),
        (run, {"feature_network": "nowhere"}, r"evaluation\.feature_network = nowhere: "),
    ]
    for subject, values, message in faults:
        with pytest.raises(ConfigError, match=message) as caught:
            open_checkpoint(config_of(subject, **values))
        assert "\n" not in str(caught.value)


def test_a_foreign_file_is_refused(run, tmp_path):
    for state in ({"model": {}, "ema_model": {}}, {"0.1": {}}):
        torch.save(state, tmp_path / "foreign.pt")
        with pytest.raises(soflow.CheckpointError, match=r"foreign\.pt: is no checkpoint of a run"):
            open_checkpoint(validate(CheckpointSweepConfig, {"checkpoint": str(tmp_path / "foreign.pt")}))


def test_lengths_that_few_snapshots_cannot_give_are_left_out(tmp_path, capsys):
    config = soflow.load_config(*LAYERS, {"training.snapshot_every": 8})
    few = soflow.train(config, tmp_path / "few", progress=False)
    assert open_checkpoint(config_of(few)).space.ema == ("trained", "0.05", "0.1", "0.15")
    assert "averages of the lengths 0.2, 0.25 are left out" in capsys.readouterr().out


def test_the_defaults_are_those_of_the_training(tmp_path):
    evaluated = {"evaluation.guidance": 1.5, "evaluation.sampler": "compose", "evaluation.temperature": 0.9}
    run = soflow.train(soflow.load_config(*LAYERS, evaluated), tmp_path / "run", progress=False)
    config = config_of(run, nfe=[1, 2], sampler=["renoise", "compose"], guidance=[1], ema=["trained"])
    usual = open_checkpoint(config).space.defaults
    assert [(point.sampler, point.guidance, point.temperature) for point in usual] == [("compose", 1.5, 0.9)] * 2
    worker = CheckpointWorker(Subject(run.folder / "checkpoint-00000032.pt", {}, tmp_path / "cache"), CPU, 0, 1)
    for point, name in zip(usual, ("fid", "fid_2nfe"), strict=True):
        assert measure(worker, tmp_path, point)["fid"] == run.metrics[name]


def test_the_best_point_is_a_checkpoint_of_its_own(run, worker, tmp_path):
    """Guided, of a run with the diagnostic that excludes guidance."""
    diagnosed = {"evaluation.diagnostics": ["inference_guidance"]}
    other = soflow.train(soflow.load_config(*LAYERS, diagnosed), tmp_path / "run", progress=False)
    checkpoint, point = open_checkpoint(config_of(other)), Point(ema="0.1", guidance=2.0)
    tracker = Tracker(new_database(tmp_path), "soflow", tmp_path / "sweep" / "spool")
    tracker.start_run("sweep", "sweep", {}, {})
    save_best(tracker, tmp_path / "sweep", checkpoint, point)
    assert tracker.close(60) == 0
    model = soflow.load_model(tmp_path / "sweep" / "best", device="cpu")
    assert model.evaluate(tmp_path, nfe=(1,))["fid"] == measure(worker, tmp_path, point)["fid"]
    assert read_yaml(tmp_path / "sweep" / "best" / "point.yaml")["ema"] == "0.1"

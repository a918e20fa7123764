"""The public interface: a run in a folder, its tables, its model; the same numbers as the programs'."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from filelock import FileLock
from helpers import REPOSITORY
from PIL import Image

import soflow
from experiments import evaluate, sample
from soflow.files import LOCK_FILE
from soflow.training import reports

LAYERS = (
    {"training.total_steps": 6, "training.batch_size": 8, "training.report_every": 3},
    {"evaluation.num_samples": 32, "evaluation.batch_size": 16},
)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> soflow.Run:
    return soflow.train(soflow.load_config(*LAYERS), tmp_path_factory.mktemp("runs") / "first", progress=False)


def test_a_configuration_is_made_of_layers(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("objective: {name: meanflow, guidance_kappa: 0.5}\ntraining: {total_steps: 7}\n")
    config = soflow.load_config(file, {"training.batch_size": 8})
    assert (config.objective.guidance_kappa, config.training.total_steps, config.training.batch_size) == (0.5, 7, 8)
    other = soflow.load_config(file, {"objective": {"name": "soflow"}})  # with none of MeanFlow's values
    assert other.objective == soflow.RunConfig().objective
    with pytest.raises(soflow.ConfigError, match=r"training\.total_step: unknown key; did you mean total_steps\?"):
        soflow.load_config({"training.total_step": 1})


def test_a_run_has_its_reports_as_a_table(run):
    table = run.table()
    assert list(table.index) == [3, 6]
    assert table.index.name == "step"
    assert table["fid"][6] == run.metrics["fid"] == run.reports[-1].metrics["fid"]
    assert {"loss/flow_matching", "time/step_ms", "memory/peak_mib"} <= set(table)
    assert repr(run) == "<run first: step 6 of 6>"


def test_curves_have_a_row_per_logged_step(tmp_path):
    config = soflow.load_config(*LAYERS, {"training.log_every": 2})
    curve = soflow.train(config, tmp_path / "run", progress=False).curve()
    assert list(curve.index) == [2, 4, 6]
    assert curve["train/loss/flow_matching"].notna().all()


def test_a_finished_run_is_returned_an_unfinished_one_is_resumed(run, tmp_path):
    """Half a run extended to a whole one has the weights of a whole one (constant r, so that more steps may follow)."""
    constant = {"objective.gap_schedule": "constant"}
    whole = soflow.train(soflow.load_config(*LAYERS, constant), tmp_path / "whole", progress=False)
    half = soflow.load_config(*LAYERS, constant, {"training.total_steps": 3})
    soflow.train(half, tmp_path / "half", progress=False)
    extended = soflow.train(soflow.load_config(*LAYERS, constant), tmp_path / "half", progress=False)
    for one, other in zip(whole.model().network.parameters(), extended.model().network.parameters(), strict=True):
        assert torch.equal(one, other)
    files = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*") if path.is_file()}
    again = soflow.train(run.config, run.folder, progress=False)
    assert again.metrics == run.metrics
    assert files == {path: path.stat().st_mtime_ns for path in run.folder.rglob("*") if path.is_file()}


def test_another_configuration_is_refused(run):
    with pytest.raises(soflow.ConfigError, match=r"folder = .*first: contains a run with seed = 0, not 1; choose"):
        soflow.train(soflow.load_config(*LAYERS, {"seed": 1}), run.folder, progress=False)


def test_more_steps_of_a_schedule_are_refused_with_the_reason(run):
    longer = soflow.load_config(*LAYERS, {"training.total_steps": 9})
    with pytest.raises(soflow.ConfigError, match=r"training\.total_steps = 6, not 9 \(r\(k, K\) depends on it\)"):
        soflow.train(longer, run.folder, progress=False)


def test_a_run_that_never_reported_begins_anew(tmp_path):
    reports.begin(soflow.load_config(*LAYERS), tmp_path / "run")
    with pytest.raises(soflow.ConfigError, match="has no report yet"):
        soflow.load_run(tmp_path / "run").grid()
    with pytest.raises(soflow.CheckpointError, match="contains no checkpoint"):
        soflow.load_run(tmp_path / "run").model()
    other = soflow.load_config(*LAYERS, {"seed": 3})
    assert soflow.train(other, tmp_path / "run", progress=False).config.seed == 3


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    with FileLock(tmp_path / LOCK_FILE), pytest.raises(soflow.ConfigError, match="another process trains in it"):
        soflow.train(soflow.load_config(*LAYERS), tmp_path, progress=False)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(soflow.ConfigError, match=r"contains no run, there is no config\.yaml in it"):
        soflow.load_run(tmp_path)


def test_a_damaged_report_is_skipped(run, tmp_path):
    (tmp_path / reports.FOLDER).mkdir()
    for report in run.reports:
        reports.save_report(replace(report, grids={}), tmp_path)
    assert [report.step for report in reports.load_reports(tmp_path)] == [3, 6]
    (tmp_path / reports.FOLDER / "step-00000003.json").write_text("{")
    assert [report.step for report in reports.load_reports(tmp_path)] == [6]


@pytest.mark.parametrize("nfe", [1, 4])
def test_the_size_of_batches_changes_no_sample(run, nfe):
    whole, parts = run.model(), run.model()
    sizes = []
    parts.network.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    parts.config = parts.config.model_copy(
        update={"evaluation": parts.config.evaluation.model_copy(update={"batch_size": 7})}
    )
    difference = whole.sample(16, nfe, labels=[3, 5]).int() - parts.sample(16, nfe, labels=[3, 5]).int()
    assert set(sizes) == {7, 2}
    assert difference.abs().max() <= 1  # sums in another order, before rounding to whole numbers


def test_samples_are_those_of_the_evaluation(run):
    model = run.model()
    images = model.sample(20)
    assert images.shape == (20, 1, 8, 8)
    assert images.dtype == torch.uint8
    assert torch.equal(images, torch.cat([batch.images for batch in model.samples(20)]))
    assert not torch.equal(images, model.sample(20, seed=1))
    assert torch.equal(model.sample(4, labels=[7]), model.sample(4, labels=[7, 7]))
    assert not torch.equal(model.sample(4, labels=[7]), model.sample(4, labels=[8]))
    assert torch.equal(model.sample(3, labels=torch.tensor([1, 2])), model.sample(3, labels=(1, 2, 1)))

    for labels, wrong in (([3, 10], 10), (range(20), 19), ([-1], -1)):
        with pytest.raises(soflow.ConfigError, match=f"labels = {wrong}: must be from 0 to 9"):
            model.grid(labels=labels)
    with pytest.raises(soflow.ConfigError, match="nfe = 0: must be 1 or more"):
        model.grid(nfe=0)


def test_a_model_without_labels_takes_none(tmp_path):
    config = soflow.load_config(*LAYERS, {"dataset.conditional": False})
    model = soflow.train(config, tmp_path / "run", progress=False).model()
    assert model.sample(3).shape == (3, 1, 8, 8)
    with pytest.raises(soflow.ConfigError, match="labels: must be left out, the model was trained without"):
        model.sample(3, labels=[1])


def test_measuring_again_gives_the_report_s_numbers(run):
    measured = run.model().evaluate(cache=run.folder.parent / "reference")
    assert measured == {name: run.metrics[name] for name in measured}
    assert {"fid", "kid", "fid_2nfe", "fid_floor"} <= set(measured)
    fewer = run.model().evaluate(cache=run.folder.parent / "reference", num_samples=16, nfe=(1,))
    assert fewer["fid"] != measured["fid"]
    assert "fid_2nfe" not in fewer
    again = run.model().evaluate(cache=run.folder.parent / "reference", seed=run.config.seed)
    other = run.model().evaluate(cache=run.folder.parent / "reference", seed=5)
    assert again["fid"] == measured["fid"] != other["fid"]


def test_programs_give_the_same(run, tmp_path, capsys):
    out = tmp_path / "measured.json"
    options = {"checkpoint": run.folder, "storage": run.folder.parent, "out": out}
    metrics = evaluate.evaluate(evaluate.EvaluateOptions(**options))
    assert metrics == run.model().evaluate(cache=run.folder.parent / "reference")
    assert json.loads(out.read_text())["protocol"]["nfe"] == [1, 2]
    assert "1 NFE (compose): fid " in capsys.readouterr().out
    file = tmp_path / "samples.npz"
    sample.write(sample.SampleOptions(checkpoint=run.folder, npz=file, num_samples=20))
    written = np.load(file)["arr_0"]
    assert np.array_equal(written, run.model().sample(20).permute(0, 2, 3, 1).expand(-1, -1, -1, written.shape[-1]))


def test_samples_have_the_evaluations_of_the_run_s_fid(tmp_path):
    """Flow matching is evaluated with 50 evaluations first: one of its steps makes a blurred image."""
    config = soflow.load_config(*LAYERS, {"objective.name": "flow_matching"})
    run = soflow.train(config, tmp_path / "run", progress=False)
    told = sample.write(sample.SampleOptions(checkpoint=run.folder, out=tmp_path / "grid.png"))
    assert "with 50 evaluation(s) each" in told
    assert Image.open(tmp_path / "grid.png").tobytes() == run.grid().tobytes()


def test_a_sampler_of_two_evaluations_per_step_takes_an_even_number(run):
    for call in (run.model().sample, run.model().grid):
        with pytest.raises(soflow.ConfigError, match="nfe = 3: must be even with sampler = heun"):
            call(3, 3, sampler="heun") if call.__name__ == "sample" else call(3, sampler="heun")


def test_grids_are_pictures(run):
    picture = run.grid()
    assert picture.size == run.model().grid().size
    assert picture.tobytes() == run.model().grid().tobytes()
    assert run.grid("real").size == picture.size
    with pytest.raises(soflow.ConfigError, match="grid = none: must be one of samples, "):
        run.grid("none")
    two = run.model().grid(nfe=2, labels=[1, 2], rows=3)
    assert two.size[1] > two.size[0]


def test_a_model_says_what_it_is(run):
    weights = sum(parameter.numel() for parameter in run.model().network.parameters())
    assert repr(run.model(best=True)) == f"<soflow model of digits, DiT-XXS/4, {weights:,} weights>"


def test_importing_the_package_imports_nothing_slow():
    code = "import sys, soflow; assert not {'torch', 'pydantic', 'pandas'} & set(sys.modules); soflow.RunConfig"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


def test_public_names_exist():
    assert sorted(soflow.__all__) == soflow.__all__
    for name in soflow.__all__:
        assert getattr(soflow, name).__doc__
    with pytest.raises(AttributeError, match="module soflow has no attribute nothing"):
        _ = soflow.nothing
    assert set(soflow.__all__) <= set(dir(soflow))

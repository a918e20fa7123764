"""Objectives, networks, datasets, diagnostics and schedules from outside the package, and errors in them."""

from __future__ import annotations

import math
import pickle
import sys

import numpy as np
import pytest
import torch
from helpers import CPU, REPOSITORY, objective_config
from scipy.linalg import sqrtm

from soflow import diagnostics, networks, plugins
from soflow.config import parse, to_dict
from soflow.config_base import ConfigError
from soflow.data import open_source
from soflow.evaluation.fidelity import Batch, Evaluator
from soflow.objectives.registry import OBJECTIVES
from soflow.plugins import PluginError, Registry, load, loaded_roots
from soflow.schedules import gap_ratio
from soflow.training import reports
from soflow.training.build import build_network, build_objective
from soflow.training.trainer import Trainer

EXAMPLES = REPOSITORY / "docs" / "examples"
LAB = {
    "dataset": {"name": "my_lab:Stripes"},
    "network": {"name": "my_lab:TinyNetwork"},
    "objective": {"name": "my_lab:AnnealedSoFlow", "gap_schedule": "my_lab:square_root", "first_fraction": 0.8},
    "evaluation": {"diagnostics": ["my_lab:contrast"]},
    "training": {"total_steps": 4, "batch_size": 10},
}


@pytest.fixture(autouse=True)
def lab(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


def test_a_run_of_plug_ins_trains():
    config = parse(LAB)
    trainer = Trainer(config, open_source(config.dataset), CPU)
    metrics = trainer.advance(4)
    assert type(trainer.network).__name__ == "TinyNetwork"
    assert math.isfinite(metrics["loss/consistency"])


def test_the_configuration_survives_files_and_processes():
    config = parse(LAB)
    assert parse(to_dict(config)) == config == pickle.loads(pickle.dumps(config))
    assert to_dict(config)["objective"]["first_fraction"] == 0.8


def test_the_plug_in_objective_changes_what_it_says():
    """λ is 0.8 at the first step and 0.3, the default, at the last: 8 and 3 of 10 samples."""
    objective = build_objective(parse(LAB), 2)
    for progress, expected in ((0.0, 8), (0.5, 5), (1.0, 3)):
        draws = objective.draw(torch.zeros(10, 1, 8, 8), progress, torch.Generator().manual_seed(0))
        assert draws.num_flow_matching == expected


def test_a_plug_in_schedule_is_used():
    assert gap_ratio("my_lab:square_root", 0.25, 0.1, 0.02) == pytest.approx(0.06, abs=1e-15)


def test_a_schedule_outside_its_range_is_refused(monkeypatch):
    load("my_lab:square_root")
    monkeypatch.setattr(sys.modules["my_lab"], "negative", lambda *arguments: -0.5, raising=False)
    with pytest.raises(
        ValueError, match=r"gap_schedule = my_lab:negative: r is -0\.5 at k/K = 0\.25, outside \(0, 1\]"
    ):
        gap_ratio("my_lab:negative", 0.25, 0.1, 0.02)


def test_a_plug_in_diagnostic_is_named_by_its_function():
    config = parse(LAB)
    subject = diagnostics.base.Subject(
        objective=build_objective(config, 2),
        network=build_network(config, 2),
        data=torch.zeros(6, 1, 8, 8),
        labels=torch.zeros(6, dtype=torch.int64),
        seed=0,
        fid=lambda *arguments: 0.0,
    )
    (name,) = diagnostics.diagnose(("my_lab:contrast",), subject)
    assert name == "contrast/rms"


FEATURES = """
from pathlib import Path
import torch
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

class Pixels(FeatureExtractorBase):
    layer, num_features, logits, num_logits = "pixels", 64, "brightness", 2
    image_shape, weights = (1, 8, 8), Path(__file__)

    def __init__(self, name, features_list, **options):
        super().__init__(name, features_list)

    def forward(self, images):
        pixels = images.flatten(1).float()
        layers = {"pixels": pixels, "brightness": torch.stack([pixels.mean(1), 255 - pixels.mean(1)], 1)}
        return tuple(layers[name] for name in self.features_list)

    @staticmethod
    def get_provided_features_list():
        return "pixels", "brightness"

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "pixels"

    @staticmethod
    def can_be_compiled():
        return False
"""


def test_a_plug_in_feature_network_measures(tmp_path, monkeypatch):
    """FID of pixels is the Fréchet distance of their Gaussians, computed here with scipy."""
    (tmp_path / "pixel_lab.py").write_text(FEATURES)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = parse({"evaluation": {"feature_network": "pixel_lab:Pixels"}})
    source = open_source(config.dataset)
    evaluator = Evaluator(source, config, CPU, tmp_path / "reference")
    images = torch.randint(256, (300, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    measured = evaluator.evaluate([Batch(torch.arange(300), images)])
    real, made = (x.reshape(len(x), -1).astype(float) for x in (source.images, images.numpy()))
    (mu, sigma), (other_mu, other_sigma) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (real, made))
    root = np.trace(sqrtm(sigma @ other_sigma).real)
    expected = ((mu - other_mu) ** 2).sum() + np.trace(sigma + other_sigma) - 2 * root
    assert measured["fid"] == pytest.approx(expected, rel=1e-4)  # features are float32
    assert evaluator.protocol()["feature_network"] == "pixel_lab:Pixels"
    with pytest.raises(ConfigError, match="takes images of shape"):
        parse({"dataset": {"name": "fashion_mnist"}, "evaluation": {"feature_network": "pixel_lab:Pixels"}})


def test_a_network_gets_the_arguments_that_it_has(monkeypatch):
    load("my_lab:TinyNetwork")
    module = sys.modules["my_lab"]
    seen = {}

    def build(image_size, channels, num_classes, dropout):
        seen.update(image_size=image_size, channels=channels, num_classes=num_classes, dropout=dropout)
        return torch.nn.Identity()

    build.side_multiple = 4
    monkeypatch.setattr(module, "build", build, raising=False)
    config = parse({"network": {"name": "my_lab:build", "dropout": 0.25}})
    networks.build(config.network, (1, 8, 8), 10)
    assert seen == {"image_size": 8, "channels": 1, "num_classes": 10, "dropout": 0.25}
    with pytest.raises(ConfigError, match=r"gradient_checkpointing = True: must be false, my_lab:build has no"):
        parse({"network": {"name": "my_lab:build", "gradient_checkpointing": True}})
    build.side_multiple = 3
    plugins_known(monkeypatch)
    with pytest.raises(ConfigError, match="3 must divide the side 8"):
        parse({"network": {"name": "my_lab:build"}})


def plugins_known(monkeypatch) -> None:
    """Forget the networks that were looked up."""
    monkeypatch.setattr(networks.NETWORKS, "_plugins", {})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"network": {"name": "nowhere.module:Net"}}, "network.name = nowhere.module:Net: there is no module nowhere;"),
        ({"network": {"name": "my_lab:TinyNetwrk"}}, "my_lab has no TinyNetwrk; did you mean TinyNetwork?"),
        ({"network": {"name": "my_lab:square_root"}}, "its parameters lack channels, image_size, num_classes"),
        (
            {"dataset": {"name": "my_lab:TinyNetwork"}},
            "needs whole numbers as class attributes channels and num_classes",
        ),
        ({"objective": {"name": "my_lab:Stripes"}}, "objective.name = my_lab:Stripes: needs a nested class Config"),
        ({"evaluation": {"diagnostics": ["my_lab:no"]}}, "evaluation.diagnostics = ['my_lab:no']: my_lab has no no"),
        (
            {"objective": {"name": "my_lab:AnnealedSoFlow", "first": 1}},
            "objective.first: unknown key; known keys here are",
        ),
        (
            {"objective": {"name": "my_lab:AnnealedSoFlow", "first_fraction": 2}},
            "objective.first_fraction = 2: must be",
        ),
    ],
)
def test_a_wrong_plug_in_is_one_line(values, message):
    with pytest.raises(ConfigError) as error:
        parse(values)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_images_of_two_channels_need_a_feature_network_that_takes_them(tmp_path, monkeypatch):
    (tmp_path / "complex_lab.py").write_text("class Fields:\n    channels, num_classes, image_size = 2, 3, 8\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"images of 1 or 3 channels, not of 2 as in dataset.name = complex_lab"):
        parse({"dataset": {"name": "complex_lab:Fields"}})


def test_a_colon_in_a_key_is_no_reference():
    for values in ({"objective:name": "meanflow"}, {"training:total_steps": 5}):
        with pytest.raises(ConfigError, match=f"{next(iter(values))}: unknown key"):
            parse(values)


def test_equal_names_of_diagnostics_are_refused(tmp_path, monkeypatch):
    (tmp_path / "second_lab.py").write_text("def contrast(subject):\n    return {}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="must have different names"):
        parse({"evaluation": {"diagnostics": ["my_lab:contrast", "second_lab:contrast"]}})


def test_a_module_that_fails_says_why(tmp_path, monkeypatch):
    (tmp_path / "broken_lab.py").write_text("import not_installed_anywhere\n")
    (tmp_path / "broken_lab_2.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(PluginError, match=r"importing broken_lab failed .*not_installed_anywhere"):
        load("broken_lab:Net")
    with pytest.raises(PluginError, match=r"importing broken_lab_2 failed \(ZeroDivisionError: division by zero\)"):
        load("broken_lab_2:Net")


def test_modules_of_the_working_directory_are_found(tmp_path, monkeypatch):
    (tmp_path / "lab_in_the_folder.py").write_text("value = 3\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    assert load("lab_in_the_folder:value") == 3
    assert tmp_path / "lab_in_the_folder.py" in loaded_roots()


def test_packages_are_shipped_whole(tmp_path, monkeypatch):
    package = tmp_path / "lab_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "inner.py").write_text("value = 4\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load("lab_package.inner:value") == 4
    assert package in loaded_roots()


def test_a_run_keeps_a_copy_of_its_plug_ins(tmp_path, monkeypatch):
    package = tmp_path / "kept_lab"
    (package / "data").mkdir(parents=True)
    for name in ("__init__.py", "inner.py", "weights.bin", "data/big.bin"):
        (package / name).write_text("def schedule(progress, r_init, r_end):\n    return r_end\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(plugins, "_roots", {})
    load("my_lab:contrast")  # not used by the run
    schedule = "kept_lab.inner:schedule"
    reports.begin(parse({"objective": {"gap_schedule": schedule}}), tmp_path / "run")
    code = tmp_path / "run" / "code"
    assert {str(path.relative_to(code)) for path in code.rglob("*") if path.is_file()} == {
        "kept_lab/__init__.py",
        "kept_lab/inner.py",
    }
    reports.begin(parse(LAB), tmp_path / "other")
    assert (tmp_path / "other" / "code" / "my_lab.py").read_text() == (EXAMPLES / "my_lab.py").read_text()


def test_own_modules_are_not_shipped(monkeypatch):
    monkeypatch.setattr(plugins, "_roots", {})
    load("soflow.networks.dit:DiT")
    load("torch.nn:Linear")  # installed
    assert loaded_roots() == []


def test_entry_points_are_short_names(tmp_path, monkeypatch):
    information = tmp_path / "my_lab-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: my_lab\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[soflow.objectives]\nannealed = my_lab:AnnealedSoFlow\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = Registry("objectives", OBJECTIVES.included, OBJECTIVES._make_entry)
    assert registry["annealed"].implementation == "my_lab:AnnealedSoFlow"
    assert set(registry) == {*OBJECTIVES.included, "annealed"}
    assert "annealed" not in OBJECTIVES.included
    assert "unknown" not in registry


def test_included_names_import_nothing(monkeypatch):
    monkeypatch.setattr(plugins, "load", lambda reference: pytest.fail(f"imported {reference}"))
    assert "soflow" in OBJECTIVES
    assert objective_config("soflow").name == "soflow"

"""Presets: one per published result, with the published settings; and each of them trains."""

from __future__ import annotations

import importlib.util
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import CPU, REPOSITORY

from orchestration.config import TrainConfig
from orchestration.terminal.command_line import read_command_line
from soflow.config import RunConfig, flatten, override, parse, to_dict
from soflow.config_files import read_yaml
from soflow.cost.predict import predict
from soflow.training.trainer import Trainer

PRESETS = {path.stem: path for path in sorted((REPOSITORY / "experiments/presets").glob("*.yaml"))}

# Network, steps and the FID that the preset's first lines must quote, from the papers' tables.
PUBLISHED = {
    "soflow-imagenet256-b4-no-guidance": ("DiT-B/4", 400_000, "58.56 / 58.22"),
    "soflow-imagenet256-b4": ("DiT-B/4", 400_000, "11.59 / 8.22"),
    "soflow-imagenet256-b2": ("DiT-B/2", 1_200_000, "4.85 / 4.24"),
    "soflow-imagenet256-m2": ("DiT-M/2", 1_200_000, "3.73 / 3.42"),
    "soflow-imagenet256-l2": ("DiT-L/2", 1_200_000, "3.20 / 2.90"),
    "soflow-imagenet256-xl2": ("DiT-XL/2", 1_200_000, "2.96 / 2.66"),
    "soflow-cifar10": ("U-Net", 800_000, "2.86 / 2.28"),
    "meanflow-imagenet256-b4-no-guidance": ("DiT-B/4", 400_000, "61.06"),
    "meanflow-imagenet256-b4": ("DiT-B/4", 400_000, "15.53"),
    "meanflow-imagenet256-b4-pytorch": ("DiT-B/4", 400_000, "15.43"),
    "meanflow-imagenet256-b2": ("DiT-B/2", 1_200_000, "6.17"),
    "meanflow-imagenet256-m2": ("DiT-M/2", 1_200_000, "5.01"),
    "meanflow-imagenet256-l2": ("DiT-L/2", 1_200_000, "3.84"),
    "meanflow-imagenet256-xl2": ("DiT-XL/2", 1_200_000, "3.43"),
    "esc-imagenet256-b2": ("DiT-B/2", 600_000, "5.78"),
    "esc-imagenet256-xl2": ("DiT-XL/2", 1_200_000, "2.85"),
    "meanflow-cifar10-v0": ("U-Net", 800_000, "2.92"),
    "meanflow-cifar10-v1": ("U-Net", 800_000, "2.80"),
}
SOFLOW_LATENTS = {
    "objective.interpolant": "linear",
    "objective.parameterization": "euler",
    "objective.flow_matching_fraction": 0.75,
    "objective.weight_power": 1.0,
    "objective.weight_eps": 0.01,
    "objective.time_mean": [-0.2, -1.0, 0.2],
    "objective.time_std": [1.0, 0.8, 0.8],
    "objective.gap_schedule": "exponential",
    "objective.r_init": 0.1,
    "objective.r_end": 0.002,
    "optimizer.name": "adamw",
    "optimizer.learning_rate": 1e-4,
    "optimizer.betas": [0.9, 0.99],
    "training.batch_size": 256,
    "training.ema_decay": 0.9999,
    "training.ema_every": 1,
}
SOFLOW_CIFAR = SOFLOW_LATENTS | {
    "network.dropout": 0.3,
    "objective.flow_matching_fraction": 0.0,
    "objective.weight_power": 0.75,
    "objective.weight_eps": 0.001,
    "objective.time_mean": [-0.9, -4.0, -0.9],
    "objective.time_std": [1.6, 1.6, 1.6],
    "objective.guidance_strength": 1.0,
    "objective.label_drop": 0.0,
    "objective.r_init": 1.0,
    "objective.r_end": 0.0003125,
    "optimizer.name": "radam",
    "optimizer.betas": [0.9, 0.999],
    "training.batch_size": 1024,
    "training.ema_decay": 0.9999**16,
    "training.ema_every": 16,
    "training.ema_dtype": "float64",
}
MEANFLOW_LATENTS = {
    "objective.flow_matching_fraction": 0.75,
    "objective.weight_power": 1.0,
    "objective.weight_eps": 0.01,
    "objective.time_mean": [-0.4, -0.4],
    "objective.time_std": [1.0, 1.0],
    "objective.label_drop": 0.1,
    "optimizer.name": "adamw",
    "optimizer.learning_rate": 1e-4,
    "optimizer.betas": [0.9, 0.95],
    "training.batch_size": 256,
    "training.ema_decay": 0.9999,
    "training.ema_every": 1,
}
MEANFLOW_CIFAR = {
    "network.dropout": 0.2,
    "objective.flow_matching_fraction": 0.25,  # the authors' ratio of 0.75 is that of r != t
    "objective.weight_power": 0.75,
    "objective.weight_eps": 0.001,
    "objective.guidance_omega": 1.0,
    "objective.guidance_kappa": 0.0,
    "optimizer.name": "adamw",
    "optimizer.learning_rate": 6e-4,
    "optimizer.betas": [0.9, 0.999],
    "optimizer.warmup_steps": 10_000,
    "training.batch_size": 1024,
    "training.ema_decay": 0.9999**16,
    "training.ema_every": 16,
    "training.ema_dtype": "float64",
}
# Guidance: strength, mix, label drop, decay time of SoFlow; omega, kappa, interval of MeanFlow.
GUIDANCE = {
    "soflow-imagenet256-b4-no-guidance": (1.0, 1.0, 0.0, 1.0),
    **{f"soflow-imagenet256-{size}": (3.0, 0.25, 0.1, 0.8) for size in ("b4", "b2", "m2", "l2", "xl2")},
    "meanflow-imagenet256-b4-no-guidance": (1.0, 0.0, [0.0, 1.0]),
    "meanflow-imagenet256-b4": (1.0, 0.5, [0.0, 1.0]),
    "meanflow-imagenet256-b4-pytorch": (3.0, 0.0, [0.0, 1.0]),
    "meanflow-imagenet256-b2": (1.0, 0.5, [0.0, 1.0]),
    "meanflow-imagenet256-m2": (1.0, 0.5, [0.0, 1.0]),
    "meanflow-imagenet256-l2": (0.2, 0.92, [0.0, 0.8]),
    "meanflow-imagenet256-xl2": (0.2, 0.92, [0.0, 0.75]),
    "esc-imagenet256-b2": (1.0, 0.5, [0.0, 1.0]),
    "esc-imagenet256-xl2": (0.2, 0.92, [0.0, 0.75]),
}
METHODS = {"soflow": "SoFlow", "meanflow": "MeanFlow", "esc": "ESC"}
GUIDANCE_FIELDS = {
    "soflow": ("guidance_strength", "velocity_mix", "label_drop", "guidance_decay_time"),
    "meanflow": ("guidance_omega", "guidance_kappa", "guidance_interval"),
    "esc": ("guidance_omega", "guidance_kappa", "guidance_interval"),
}
COMMON = {
    "optimizer.weight_decay": 0.0,
    "training.quotient_precision": "fp32",
    "network.gradient_checkpointing": False,
    "evaluation.num_samples": 50_000,
    "evaluation.nfe": [1, 2],
    "evaluation.feature_network": "inception",
}


def config_of(name: str) -> RunConfig:
    return parse(read_yaml(PRESETS[name]))


def test_every_published_result_has_a_preset_and_every_preset_one():
    assert set(PRESETS) == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_quotes_its_result(name):
    network, steps, fid = PUBLISHED[name]
    config, text = config_of(name), PRESETS[name].read_text()
    assert text.startswith(f"# {METHODS[config.objective.name]}, ")
    title, published = text.splitlines()[:2]
    assert re.search(rf"evaluations?: {re.escape(fid)}\b", published)
    assert (config.network.name, config.training.total_steps) == (network, steps)
    assert (network if "imagenet" in name else f"{steps:,} steps of batch 1024") in title
    assert config.objective.name == name.split("-")[0]
    if "imagenet" in name:
        # 1,281,167 images; the papers round to whole 100,000 steps.
        epochs, batch = map(int, re.search(r"(\d+) epochs of batch (\d+)", title).groups())
        assert config.training.batch_size == batch
        assert steps == pytest.approx(epochs * 1_281_167 / batch, rel=0.01)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_the_published_settings(name):
    expected = {
        ("soflow", "latents"): SOFLOW_LATENTS,
        ("soflow", "cifar10"): SOFLOW_CIFAR,
        ("meanflow", "latents"): MEANFLOW_LATENTS,
        ("meanflow", "cifar10"): MEANFLOW_CIFAR,
        ("esc", "latents"): {path: value for path, value in MEANFLOW_LATENTS.items() if path != "training.batch_size"},
    }
    config = config_of(name)
    found = flatten(to_dict(config))
    for path, value in (COMMON | expected[config.objective.name, config.dataset.name]).items():
        assert found[path] == (pytest.approx(value, rel=1e-15) if isinstance(value, float) else value), path
    if config.objective.name == "soflow" or "cifar" not in name:
        assert config.optimizer.warmup_steps == 0
    dataset = config.dataset
    if "cifar" in name:
        assert (dataset.name, dataset.conditional, dataset.augmentation) == ("cifar10", False, 0.12)
    else:
        assert (dataset.name, dataset.conditional, dataset.sample_shape) == ("latents", True, (4, 32, 32))


@pytest.mark.parametrize("name", GUIDANCE)
def test_a_preset_has_the_published_guidance(name):
    config = to_dict(config_of(name))
    fields = GUIDANCE_FIELDS[config["objective"]["name"]]
    assert tuple(config["objective"][field] for field in fields) == GUIDANCE[name]


@pytest.mark.parametrize(("size", "fraction", "images"), [("b2", 0.5, 64), ("xl2", 0.2, 32)])
def test_esc_s_batches_have_eight_classes_and_its_long_intervals_end_after_20_000_steps(size, fraction, images):
    config = config_of(f"esc-imagenet256-{size}")
    assert (config.objective.marginal_fraction, config.objective.images_per_class) == (fraction, images)
    assert config.training.batch_size == 8 * images
    assert config.objective.anneal_end * config.training.total_steps == pytest.approx(20_000, rel=1e-12)
    assert config.training.precision == "bf16"


def test_meanflow_s_times_on_cifar():
    found = {name: config_of(f"meanflow-cifar10-{name}").objective for name in ("v0", "v1")}
    assert (found["v0"].time_mean, found["v0"].time_std) == ((-2.0, -2.0), (2.0, 2.0))
    assert (found["v1"].time_mean, found["v1"].time_std) == ((-0.6, -4.0), (1.6, 1.6))


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_command_line_takes_a_preset(name):
    """With only the data's place added, as users do."""
    config = read_command_line(TrainConfig, "", ["--config", str(PRESETS[name]), "--dataset.root", "somewhere"])
    assert config.dataset.root == Path("somewhere").absolute()  # workers look from elsewhere
    assert config.run == parse(override(read_yaml(PRESETS[name]), {"dataset.root": "somewhere"}))


def test_the_averages_of_16_steps_decay_as_published():
    for name in PUBLISHED:
        training = config_of(name).training
        assert training.ema_decay ** (1 / training.ema_every) == pytest.approx(0.9999, rel=1e-12)


# Training.


class Synthetic:
    """Noise shaped as the preset's data: uint8 images, or float32 means and standard deviations of latents."""

    fingerprint = "0"

    def __init__(self, config: RunConfig):
        random, (channels, height, width) = np.random.default_rng(0), config.dataset.sample_shape
        if config.dataset.latent:
            mean = random.normal(size=(16, channels, height, width)) * 5
            self.samples = np.concatenate([mean, np.full_like(mean, 0.1)], 1).astype(np.float32)
        else:
            self.samples = random.integers(0, 256, (16, channels, height, width), np.uint8)
        self.num_classes = 1000 if config.dataset.latent else 10

    def __len__(self) -> int:
        return len(self.samples)

    def batch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.samples[indices], indices.astype(np.int64) % self.num_classes


MANY_PARAMETERS = 200_000_000


def train(name: str) -> None:
    """Take 20 steps of a preset, 2 with a large network, in which only batch and data differ from it."""
    torch.set_num_threads(2)
    config = parse(override(read_yaml(PRESETS[name]), {"training.batch_size": 2, "dataset.loading_processes": 0}))
    trainer = Trainer(config, Synthetic(config), CPU)
    size = sum(parameter.numel() for parameter in trainer.network.parameters())
    steps = 2 if size > MANY_PARAMETERS else 20
    *_, last = trainer.network.parameters()
    before = last.detach().clone()
    metrics = trainer.advance(steps)
    losses = {key: value for key, value in metrics.items() if key.startswith("loss/")}
    assert losses
    assert all(map(math.isfinite, losses.values())), losses
    assert not torch.equal(last, before)
    print(
        f"{name}: {size / 1e6:.0f} M parameters, {steps} steps of {metrics['time/step_ms'] / 1e3:.1f} s, "
        f"{metrics['memory/peak_mib'] / 1024:.1f} GiB, {losses}"
    )


LARGEST = ("soflow-imagenet256-xl2", "soflow-cifar10")
"""Presets with the most parameters of each kind of data."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in LARGEST else pytest.mark.soak) for name in PUBLISHED],
)
def test_a_dry_step_of_every_preset_fits_its_hardware(name):
    """The whole step at its published batch on tensors without content; 8 accelerators of 80 GB trained them."""
    config = parse(read_yaml(PRESETS[name]))
    share = config.training.batch_size // 8
    prediction = predict(parse(override(to_dict(config), {"training.batch_size": share})))
    assert prediction.peak_bytes < 80e9
    assert prediction.flops > 6 * prediction.parameters * share  # forward and backward of one token, at the least
    # With the classes of the data that the preset trains on.
    row = next(
        line
        for line in (REPOSITORY / "docs/networks.md").read_text().splitlines()
        if f"| {config.network.name} |" in line
    )
    assert f" {prediction.parameters:,} " in row


@pytest.mark.soak
@pytest.mark.parametrize("name", ["meanflow-imagenet256-b4", "soflow-cifar10"])
def test_presets_train(name):
    """Each in a process of its own, which gives back its memory."""
    command = [sys.executable, "-c", f"from tests.unit.experiments.test_presets import train; train({name!r})"]
    environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY}/tests"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    print(done.stdout)


# The page of parameter counts.


def test_the_page_of_networks_is_what_its_program_says():
    spec = importlib.util.spec_from_file_location("parameters", REPOSITORY / "benchmarks/parameters.py")
    parameters = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(parameters)
    page = (REPOSITORY / "docs/networks.md").read_text()
    assert page == parameters.page(), "write it again: python benchmarks/parameters.py > docs/networks.md"
    for name, millions in parameters.PUBLISHED.items():
        count = int(re.search(rf"^\| {name} \|.*\| ([\d,]+) \| {millions} M \|$", page, re.M)[1].replace(",", ""))
        assert count // 1_000_000 == millions

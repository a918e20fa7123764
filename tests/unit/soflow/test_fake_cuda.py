"""What runs on one device only: every step's forward pass, sampling and evaluation on a CUDA device without content.

A tensor or a generator left on the CPU makes its case fail. The backward pass, what is read from the device, and the
functions of `torch.cuda` need hardware; `make gpu` runs them (docs/gpu.md).
"""

from __future__ import annotations

import itertools
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import get_args

import numpy as np
import pytest
import torch
from helpers import CPU, NUM_CLASSES, tiny_config
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from soflow import codecs
from soflow.codecs.latents import Latents, load_vae, moments
from soflow.config import RunConfig, parse
from soflow.cost.synthetic import synthetic_source
from soflow.data import open_source
from soflow.data.in_memory import InMemorySource
from soflow.diagnostics import base, fid_by_nfe, flow_distance, true_distance
from soflow.diagnostics.registry import DIAGNOSTICS
from soflow.evaluation.fidelity import Batch, Evaluator
from soflow.evaluation.generated import generate
from soflow.evaluation.moments import Workers
from soflow.evaluation.registry import FEATURE_NETWORKS
from soflow.networks import registry
from soflow.networks.registry import NetworkSpec
from soflow.objectives.base import Draws, Losses, Objective
from soflow.objectives.config import MeanFlowFields
from soflow.objectives.distillation import Distillation
from soflow.objectives.registry import OBJECTIVES
from soflow.objectives.soflow import SoFlow
from soflow.randomness import generator
from soflow.training.build import build_network, build_objective
from soflow.training.grids import draw_grid, real_grid
from soflow.training.run import TrainingRun
from soflow.training.teacher import load_teacher
from soflow.training.trainer import Trainer
from tests.fake_cuda import CUDA, FakeCuda, fake_cuda

NETWORKS = {
    "DiT": NetworkSpec("soflow.networks.dit:DiT", 4, {"patch": 4, "width": 16, "depth": 1, "heads": 2}),
    "small U-Net": NetworkSpec(
        "soflow.networks.unet:UNet",
        2,
        {"width": 32, "multipliers": (1, 1), "blocks": 1, "attention_sides": (8,)},
        dropout=True,
        augmentation=True,
    ),
}
"""The registry's two kinds of networks with fewer layers, as every operation takes its time here."""
PRECISIONS = ("fp32", "bf16")
pytestmark = [
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator is found"),
    pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor"),  # by torch, in a copy of a module
]

SAMPLERS = ("renoise", "compose", "heun")
JVP_FORMS = get_args(MeanFlowFields.model_fields["jvp"].annotation)


def forms() -> dict[str, tuple[str, dict]]:
    """Every objective, with every form of the Jacobian-vector product if it has one."""
    found = {}
    for name, spec in OBJECTIVES.items():
        for jvp in JVP_FORMS if "jvp" in spec.config.model_fields else ("",):
            found[f"{name}, {jvp}" if jvp else name] = (name, {"jvp": jvp} if jvp else {})
    return found


FORMS = forms()
CROSSED = {
    f"{form}, {network}, {precision}": (form, {"network": {"name": network}, "training": {"precision": precision}})
    for form, network, precision in itertools.product(FORMS, NETWORKS, PRECISIONS)
}
STEPS = CROSSED | {
    "annealing": ("alpha_flow, subset", {}),
    "micro-batches": ("soflow", {}),
    "without labels": ("soflow", {"dataset": {"conditional": False}}),
    "latents": ("soflow", {"dataset": {"name": "latents", "image_size": 64}}),
    **{
        f"gradient checkpointing, {name}": ("soflow", {"network": {"name": name, "gradient_checkpointing": True}})
        for name in NETWORKS
    },
}
"""Optimizer steps up to the backward pass: form of the objective, and sections of the configuration."""
BASIC = ("soflow, ", "meanflow, with_gradient, ")
"""The two ways through a network: a forward pass, and one that is differentiated along a tangent."""


def marks_of(name: str) -> list[pytest.MarkDecorator]:
    """Networks and precisions differ in their layers alone: two forms try them, the others are for `make soak`."""
    if name.endswith(", DiT, fp32") or name in ("annealing", "micro-batches", "latents"):
        return []
    basic = name.startswith(BASIC) and not name.endswith("U-Net, bf16")
    return [pytest.mark.slow] if basic or name not in CROSSED else [pytest.mark.soak]


FEATURES = [name for name in FEATURE_NETWORKS if FEATURE_NETWORKS[name].dataset]  # whose weights are included
AUGMENTATIONS = ("upright", "edm")
LAST_STEP = tiny_config().training.total_steps - 1
PATHS = (
    len(STEPS)
    + len(SAMPLERS) * len(OBJECTIVES)
    + len(DIAGNOSTICS)
    + len(FEATURES)
    + len(AUGMENTATIONS)
    + len(("sample grids", "update of the weights", "autoencoder"))
)
"""Number of code paths that run here, as docs/gpu.md states it."""


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    for name, spec in NETWORKS.items():
        monkeypatch.setitem(registry.NETWORKS.included, name, spec)


@pytest.fixture(autouse=True)
def teacher_from_the_host(monkeypatch):
    """torch does not read a file's tensors into a device that has no content."""

    def attach_teacher(objective: Objective, config: RunConfig, device: torch.device) -> None:
        if isinstance(objective, Distillation):
            with unset_fake_temporarily():
                objective.teacher = load_teacher(config, objective.num_classes, CPU)
            objective.teacher.network.to(device)

    monkeypatch.setattr("soflow.training.trainer.attach_teacher", attach_teacher)


def trainer_of(form: str, sections: dict, micro_batches: int = 1) -> Trainer:
    name, settings = FORMS[form]
    config = tiny_config(name, **{"objective": settings, "training": {}, **sections})
    return Trainer(config, synthetic_source(config.dataset), CUDA, micro_batches=micro_batches)


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks_of(name)) for name in STEPS])
def test_a_step_runs_on_one_device(name):
    """And its loss waits for no value of the device, so that the host can run ahead."""
    form, sections = STEPS[name]
    with fake_cuda(number=0.01) as mode:  # an error that the check of a finite difference accepts
        trainer = trainer_of(form, sections, micro_batches=2 if name == "micro-batches" else 1)
        mode.read_back.clear()
        # α-Flow has a finite difference in the middle of a training, and a Jacobian-vector product at its end.
        trainer.step = trainer.config.training.total_steps // 2 if name == "annealing" else LAST_STEP
        data, labels = trainer.inputs.batch(trainer.step)
        for number, draws in enumerate(trainer.inputs.draws(trainer.step, (data, labels))):
            rows = slice(number, None, trainer.micro_batches)
            loss, terms = trainer.module(data[rows], labels[rows], draws)
        assert {value.device for value in (loss, *terms.values())} == {CUDA}
        assert not mode.read_back


def test_fused_attention_is_used_in_the_product_alone(monkeypatch):
    """With torch's formula in place of the package's kernel, which needs hardware."""
    calls = []

    class JVPAttn:
        @staticmethod
        def fwd_dual(q: Tensor, k: Tensor, v: Tensor, sm_scale: float) -> Tensor:
            calls.append((q.shape[1:], sm_scale))
            return (q @ k.mT * sm_scale).softmax(-1) @ v

    for name in ("jvp_flash_attention", "jvp_flash_attention.jvp_attention"):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    module.JVPAttn = JVPAttn
    size = {"patch": 1, "width": 16, "depth": 1, "heads": 2}
    monkeypatch.setitem(registry.NETWORKS.included, "64 tokens", NetworkSpec("soflow.networks.dit:DiT", 1, size))
    with fake_cuda(number=5e-4):  # an error that the check accepts
        trainer = trainer_of(
            "meanflow, subset", {"objective": {"jvp_attention": "flash"}, "network": {"name": "64 tokens"}}
        )
        checked = len(calls)
        loss, _ = trainer.module(*trainer.inputs.batch(trainer.step), trainer.inputs.draws(trainer.step)[0])
    assert loss.device == CUDA
    # Once at the start and once in the loss, in the only block; heads of 8 features are padded to 16.
    assert (checked, calls) == (1, [((2, 64, 16), 8**-0.5)] * 2)


@pytest.mark.parametrize("augmentations", AUGMENTATIONS)
def test_augmentation_runs_on_one_device(augmentations):
    dataset = {"augmentation": 0.5, "augmentations": augmentations}
    with fake_cuda():
        trainer = trainer_of("soflow", {"dataset": dataset, "network": {"name": "small U-Net"}})
        data, labels = trainer.inputs.batch(trainer.step)
        loss, _ = trainer.module(data, labels, trainer.inputs.draws(trainer.step, (data, labels))[0])
        assert {data.device, labels.device, loss.device} == {CUDA}


def test_weights_are_updated_on_one_device():
    with fake_cuda():
        trainer = trainer_of("soflow", {"training": {"ema_dtype": "float64"}})
        for weights in trainer.network.parameters():
            weights.grad = torch.zeros_like(weights)
        trainer.optimizer.step()
        trainer.ema.update_parameters(trainer.network)
        assert {value.device for value in trainer.persistent_tensors() if value.dim()} == {CUDA}


# Sampling and evaluation.


# A sampler calls any objective's solution and velocity: one objective tries all samplers, one sampler all objectives.
@pytest.mark.parametrize(
    ("sampler", "name"),
    [
        pytest.param(sampler, name, marks=[] if name == "soflow" or sampler == "renoise" else pytest.mark.soak)
        for sampler, name in itertools.product(SAMPLERS, OBJECTIVES)
    ],
)
def test_sampling_runs_on_one_device(sampler, name):
    config = tiny_config(name, network={"name": "DiT"}, evaluation={"batch_size": 16})
    objective, codec = build_objective(config, NUM_CLASSES), codecs.build(config.dataset, CUDA)
    with fake_cuda():
        network = build_network(config, NUM_CLASSES).to(CUDA).eval()
        parts = (config, 2, sampler, Workers(CUDA), [1] * NUM_CLASSES)
        (batch,) = generate(objective, network, codec, *parts)
    assert {batch.places.device, batch.images.device, batch.labels.device} == {CUDA}
    assert (batch.images.shape, batch.images.dtype) == ((16, 1, 8, 8), torch.uint8)


def test_sample_grids_are_drawn_on_one_device():
    with fake_cuda():
        trainer = trainer_of("soflow", {"network": {"name": "DiT"}})
        drawn = draw_grid(trainer.objective, trainer.averaged_network(), trainer.config, CUDA, 2, codec=trainer.codec)
        real = real_grid(trainer.source, trainer.codec, CUDA)
    assert (drawn.device, real.device) == (CUDA, CUDA)


@pytest.mark.parametrize("features", FEATURES)
def test_feature_statistics_are_computed_on_one_device(features, tmp_path):
    """With a reference from data; the features that reach the host are random, and so are the metrics."""
    source = {"digits-cnn": "digits", "fashion-cnn": "fashion_mnist"}[features]
    config = parse({"dataset": {"name": source}, "evaluation": {"precision_recall": True, "inception_score": True}})
    images = synthetic_source(config.dataset)
    with fake_cuda(number=64.0):  # also of the images counted
        evaluator = Evaluator(images, config, CUDA, tmp_path)
        stored, labels = (torch.from_numpy(values).to(CUDA) for values in images.batch(np.arange(64)))
        found = evaluator.evaluate([Batch(torch.arange(64, device=CUDA), stored, labels)])
    assert {"fid", "kid", "precision", "recall", "inception_score"} <= set(found)


@pytest.mark.parametrize("name", DIAGNOSTICS)
def test_diagnostics_run_on_one_device(name, tmp_path, monkeypatch):
    # Fewer steps of the same kind.
    monkeypatch.setattr(base, "PAIRS", {name: base.PAIRS[name] for name in ("t0.50_s0.25", "t1.00_s0.00")})
    monkeypatch.setattr(flow_distance, "REFERENCE_NFE", 4)
    monkeypatch.setattr(true_distance, "STEPS", 4)
    monkeypatch.setattr(fid_by_nfe, "NFE", (1, 2))
    config = tiny_config(
        "soflow",
        dataset={"name": "gaussians"},
        network={"name": "DiT"},
        objective={"guidance_strength": 1},
        evaluation={"diagnostics": [name], "batch_size": 16},  # one batch
    )
    source = open_source(config.dataset)
    small = InMemorySource(source.images[:64], source.labels[:64], source.num_classes)
    small.components = source.components
    with fake_cuda():
        run = TrainingRun(config, small, tmp_path / "run", CUDA, Evaluator(small, config, CUDA, tmp_path))
        found = run.diagnose(run.trainer.averaged_network())
    assert found
    assert all(figure.startswith(f"diagnostics/{name}/") for figure in found)


@pytest.mark.slow
def test_the_autoencoder_runs_on_one_device(tmp_path):
    from diffusers import AutoencoderKL

    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    AutoencoderKL(**blocks, block_out_channels=(8,) * 4, norm_num_groups=4).save_pretrained(tmp_path)
    autoencoder = load_vae(str(tmp_path), CPU)
    with fake_cuda():
        images = torch.zeros(20, 3, 32, 32, dtype=torch.uint8, device=CUDA)
        stored = moments(autoencoder.to(CUDA), images)
        codec = Latents(str(tmp_path), CUDA)
        codec.__dict__["_autoencoder"] = autoencoder  # read from the file on the host
        decoded = codec.images(stored)
    assert (stored.device, decoded.device, decoded.shape) == (CUDA, CUDA, images.shape)


# The device is not too forgiving.


class OnTheHost(SoFlow):
    """SoFlow with one tensor that was forgotten on the host."""

    def losses(self, network: nn.Module, data: Tensor, labels: Tensor, draws: Draws) -> Losses:
        losses = super().losses(network, data, labels, draws)
        return Losses(losses.loss * torch.ones(len(data)), losses.terms)


class DrawnOnTheHost(SoFlow):
    """SoFlow with noise for the device from a generator of the host."""

    def losses(self, network: nn.Module, data: Tensor, labels: Tensor, draws: Draws) -> Losses:
        torch.randn(len(data), generator=generator("cpu", 0, "forgotten"), device=data.device)
        return super().losses(network, data, labels, draws)


class ReadsTheLoss(SoFlow):
    """SoFlow that waits for the device in every step."""

    def losses(self, network: nn.Module, data: Tensor, labels: Tensor, draws: Draws) -> Losses:
        losses = super().losses(network, data, labels, draws)
        assert losses.loss.sum().item() is not None
        return losses


def step_of(kind: type[SoFlow]) -> FakeCuda:
    with fake_cuda() as mode:
        trainer = trainer_of("soflow", {"network": {"name": "DiT"}})
        objective = kind(trainer.config.objective, NUM_CLASSES, True)
        trainer.module.objective = objective
        trainer.module(*trainer.inputs.batch(trainer.step), trainer.inputs.draws(trainer.step)[0])
    return mode


@pytest.mark.parametrize("kind", [OnTheHost, DrawnOnTheHost])
def test_a_mix_of_devices_is_refused(kind):
    step_of(SoFlow)
    with pytest.raises(RuntimeError, match=r"(?i)(expected|propagation) .*(cuda|device)"):
        step_of(kind)


def test_waiting_for_the_device_is_noticed():
    assert not step_of(SoFlow).read_back
    assert step_of(ReadsTheLoss).read_back == ["aten._local_scalar_dense.default"]

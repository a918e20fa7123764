"""Does CUDA compute what the CPU computes? Losses, gradients and samples of every objective, in float64 and float32."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import get_args

import torch
from torch import Tensor, nn

from benchmarks.gpu.results import Figure
from benchmarks.numerics import in_float64
from soflow.config import RunConfig, parse
from soflow.objectives.base import Draws, Objective, normal, normals
from soflow.objectives.config import MeanFlowFields
from soflow.objectives.distillation import Distillation, Teacher
from soflow.objectives.registry import OBJECTIVES
from soflow.randomness import generator
from soflow.sampling import sample
from soflow.training.build import build_network, build_objective
from soflow.training.loss_module import LossModule

CPU = torch.device("cpu")
NUM_CLASSES = 10
BATCH = 16
NETWORKS = ("DiT-XXS/4", "U-Net-XS")
NFE = 2
DISTURBANCE = 0.05
"""Standard deviation of the change of the weights: those of a new network are zero in places, and so are gradients."""
ANNEALING = "alpha_flow, annealing"
"""α-Flow in the middle of a training, with a finite difference; at the end it has MeanFlow's product."""
UNITS = {torch.float64: 2.0**-53, torch.float32: 2.0**-24}
"""Unit roundoff."""
FACTOR = 8
REASON = (
    "unit: the error of float32 on the CPU, against float64 there, times the ratio of the unit roundoffs; both devices "
    f"round equally often, but sum in another order, and {FACTOR} units allow for the chance in a few results"
)


@dataclass(frozen=True)
class Case:
    """Objective, network and batch, in float32 on the CPU."""

    config: RunConfig
    network: nn.Module
    data: Tensor
    labels: Tensor
    draws: Draws

    def results(self, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        """Compute the loss, its gradient by all weights and two-step samples; return them in float64 on the CPU."""
        network = copy.deepcopy(self.network).to(device, dtype)
        objective = objective_for(self.config, network)
        draws = (in_float64(self.draws) if dtype == torch.float64 else self.draws).to(device)
        data, labels = self.data.to(device, dtype), self.labels.to(device)
        loss, _ = LossModule(network, objective)(data, labels, replace(draws, batch=(data, labels)))
        with objective.forward.backward(device):
            loss.backward()
        fresh = (noise.to(device, dtype) for noise in normals(tuple(data.shape), generator("cpu", 0, "fresh")))
        samples = sample(objective, network, draws.noise, labels, NFE, objective.default_sampler, fresh)
        found = {"loss": loss, "gradient": gradient_of(network), "samples": samples}
        return {name: value.detach().to(CPU, torch.float64) for name, value in found.items()}


def gradient_of(network: nn.Module) -> Tensor:
    """Return the gradient by all weights that have one, as one vector."""
    return torch.cat([weights.grad.flatten() for weights in network.parameters() if weights.grad is not None])


def agreement(device: torch.device, networks: Iterable[str] = NETWORKS) -> list[Figure]:
    """Compare a device with the CPU, for every objective with every form of its Jacobian-vector product.

    A figure is the largest error over networks and results, in units of the expected error (see REASON).
    """
    figures = []
    for form, fields in forms().items():
        cases = [case_of(fields, network, 0.5 if form == ANNEALING else 1.0) for network in networks]
        found = [errors(case, device) for case in cases]
        for dtype in UNITS:
            worst = largest(case_errors[dtype] for case_errors in found)
            figures.append(Figure(f"{form}, {str(dtype).removeprefix('torch.')}", worst, FACTOR))
    return figures


def forms() -> dict[str, dict[str, str]]:
    """Return the fields of every objective, with every form of its Jacobian-vector product, and of ANNEALING."""
    jvps = get_args(MeanFlowFields.model_fields["jvp"].annotation)
    found: dict[str, dict[str, str]] = {}
    for name, spec in OBJECTIVES.items():
        if "jvp" in spec.config.model_fields:
            found |= {f"{name}, {jvp}": {"name": name, "jvp": jvp} for jvp in jvps}
        else:
            found[name] = {"name": name}
    return found | {ANNEALING: {"name": "alpha_flow"}}


def errors(case: Case, device: torch.device) -> dict[torch.dtype, float]:
    """Compute the largest error of a device's results by dtype, in units of the expected ones."""
    exact, rounded = case.results(CPU, torch.float64), case.results(CPU, torch.float32)
    expected = {name: relative(rounded[name], exact[name]) / UNITS[torch.float32] for name in exact}
    return {
        dtype: largest(relative(value, exact[name]) / (unit * max(expected[name], 1)) for name, value in found.items())
        for dtype, unit in UNITS.items()
        for found in [case.results(device, dtype)]
    }


def relative(value: Tensor, exact: Tensor) -> float:
    """Compute the relative error in the Euclidean norm."""
    return ((value - exact).norm() / exact.norm()).item()


def case_of(fields: dict[str, str], network: str, progress: float = 1.0) -> Case:
    """Make a case with random weights, data and labels on 8x8 images, at a share `progress` of the training."""
    config = parse({"network": {"name": network}, "objective": fields})
    random = generator("cpu", 0, "agreement")
    weights = build_network(config, NUM_CLASSES).requires_grad_()
    disturb(weights, random)
    data = torch.rand(BATCH, *config.dataset.sample_shape, generator=random) * 2 - 1
    labels = torch.randint(NUM_CLASSES, (BATCH,), generator=random)
    draws = objective_for(config, weights).draw(normal(tuple(data.shape), random), progress, random)
    return Case(config, weights, data, labels, draws)


def disturb(network: nn.Module, random: torch.Generator) -> None:
    """Add random numbers to all weights."""
    with torch.no_grad():
        for weights in network.parameters():
            weights.add_(normal(tuple(weights.shape), random).to(weights), alpha=DISTURBANCE)


def objective_for(config: RunConfig, network: nn.Module) -> Objective:
    """Build the objective; a distillation's teacher is the network with half its weights, on the network's device."""
    objective = build_objective(config, NUM_CLASSES)
    if isinstance(objective, Distillation):
        taught = copy.deepcopy(network).requires_grad_(False)
        for weights in taught.parameters():
            weights.mul_(0.5)
        flow = build_objective(parse({"objective": {"name": "flow_matching"}}), NUM_CLASSES)
        objective.teacher = Teacher(flow, taught)
    return objective


def largest(values: Iterable[float]) -> float:
    """Return the maximum, NaN if one value is NaN."""
    return torch.tensor(list(values), dtype=torch.float64).max().item()

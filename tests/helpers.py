"""What several test files share: the golden numbers, tiny networks, tiny configurations."""

from __future__ import annotations

import functools
import json
import math
import tempfile
import weakref
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from soflow import autodiff
from soflow.config import RunConfig, parse, to_dict
from soflow.networks.dit import DiT
from soflow.objectives import meanflow
from soflow.objectives.base import Draws, Objective, normal
from soflow.objectives.distillation import Teacher
from soflow.objectives.registry import OBJECTIVES
from soflow.training import checkpoints, compilation
from soflow.training.build import build_network, build_objective

REPOSITORY = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden"
CPU = torch.device("cpu")
NUM_CLASSES = 10


def golden(name: str) -> dict[str, Tensor]:
    """The tensors of one golden file."""
    return load_file(GOLDEN / f"{name}.safetensors")


def hyper_parameters(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / "cases.json").read_text())[f"{name}.safetensors"]


def golden_schedules() -> dict[str, list[dict[str, Any]]]:
    return json.loads((GOLDEN / "schedules.json").read_text())


def golden_dit(dtype: torch.dtype = torch.float64) -> DiT:
    """The golden network: 8x8 images of 4 channels, 10 classes, every parameter random."""
    network = DiT(image_size=8, channels=4, num_classes=NUM_CLASSES, patch=2, width=32, depth=2, heads=4)
    stored = golden("dit_tiny")
    network.load_state_dict({name: value for name, value in stored.items() if not name.startswith("io.")})
    return network.to(dtype)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """max |actual − expected| / max |expected|."""
    assert actual.shape == expected.shape
    return ((actual.double() - expected.double()).abs().max() / expected.double().abs().max()).item()


class SmoothNetwork(nn.Module):
    """A small, smooth F(x, t, s, y) with random weights for images [B, 1, 2, 2]; nothing in it is zero."""

    def __init__(self, num_classes: int = NUM_CLASSES, width: int = 16, dtype: torch.dtype = torch.float64):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.table = nn.Embedding(num_classes + 1, width, dtype=dtype)
            self.first = nn.Linear(6, width, dtype=dtype)
            self.second = nn.Linear(width, 4, dtype=dtype)

    def forward(self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor) -> Tensor:
        features = torch.cat([x.flatten(1), t[:, None], s[:, None]], 1)
        return self.second(torch.tanh(self.first(features) + self.table(labels))).view_as(x)


def count_calls(network: nn.Module) -> list[int]:
    """A list that grows by one batch size per call of the network."""
    calls: list[int] = []
    network.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    return calls


def gradients(network: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """d loss / d parameter by parameter name."""
    names, parameters = zip(*network.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters, retain_graph=True), strict=True))


def given_draws(
    noise: Tensor, t: Tensor, l: Tensor, s: Tensor, drop: Tensor | None = None, num_flow_matching: int = 0
) -> Draws:
    """Draws with these numbers and equal weights."""
    batch = len(noise)
    drop = torch.zeros(batch, dtype=torch.bool) if drop is None else drop
    return Draws(noise, t, l, s, drop, torch.full((batch,), 1 / batch, dtype=noise.dtype), num_flow_matching)


def draw(objective: Objective, shape: tuple[int, ...], progress: float, generator: torch.Generator) -> Draws:
    """An objective's draws for a batch of this shape, noise included."""
    return objective.draw(normal(shape, generator), progress, generator)


def velocity_and_derivative(objective, network, x_t, v_g, labels, draws) -> tuple[Tensor, Tensor]:
    """u with gradient and du/dt of MeanFlow-type objectives, for labels as the network sees them."""
    if objective.in_one_call(draws):
        tangent = objective.tangent(network, x_t, v_g, labels, draws)
        u, du_dt = objective.total_derivative(network, x_t, tangent, draws.t, draws.s, labels)
        return u, du_dt.detach()
    u = objective.average_velocity(network, x_t, labels, draws)
    return u, objective.derivative(network, x_t, v_g, u.detach(), labels, draws)


def random_batch(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Data [B, ...] in [−1, 1] and labels [B]."""
    generator = torch.Generator().manual_seed(seed)
    data = torch.rand(shape, generator=generator, dtype=dtype) * 2 - 1
    return data, torch.randint(NUM_CLASSES, (shape[0],), generator=generator)


def tiny_config(objective_name: str = "soflow", /, **sections: dict[str, Any]) -> RunConfig:
    """A run on digits that takes milliseconds a step: a patch covers a quarter of the image, four tokens."""
    teacher = {"teacher": tiny_teacher()} if objective_name == "distillation" else {}
    values: dict[str, Any] = {
        "network": {"name": "tests.networks:one_block"},
        "objective": {"name": objective_name} | teacher,
        "training": {"total_steps": 6, "batch_size": 8, "report_every": 3, "ema_decay": 0.9},
        "evaluation": {"num_samples": 16, "batch_size": 8},
    }
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section if isinstance(section, dict) else section
    return parse(values)


@functools.cache
def tiny_teacher(network: str = "tests.networks:one_block") -> Path:
    """The folder of a flow-matching run with random weights everywhere, there as long as this process."""
    config = tiny_config("flow_matching", network={"name": network})
    network = build_network(config, NUM_CLASSES)
    random = torch.Generator().manual_seed(2)
    for parameter in network.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=random, dtype=torch.float32)
    folder = tempfile.TemporaryDirectory()
    weakref.finalize(tiny_teacher, folder.cleanup)
    state = {"ema": network.state_dict(), "config": to_dict(config), "num_classes": NUM_CLASSES}
    return checkpoints.save(state, Path(folder.name), 1).parent


def tiny_objective(name: str, /, **sections: dict[str, Any]) -> Objective:
    """A tiny run's objective for images [B, 1, 2, 2], taught by another SmoothNetwork where it needs a teacher."""
    objective = build_objective(tiny_config(name, **sections), NUM_CLASSES)
    if name == "distillation":
        objective.teacher = Teacher(tiny_objective("flow_matching"), SmoothNetwork(width=8))
    return objective


def compile_with(monkeypatch, backend: str) -> None:
    """Let torch compile with this backend, everything anew; aot_eager does without C++, which takes a minute."""
    torch._dynamo.reset()
    compilation._process_compilations.cache_clear()  # the reset has removed its callbacks
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    fresh = functools.cache(autodiff.compiled_total_derivative.__wrapped__)
    monkeypatch.setattr(meanflow, "compiled_total_derivative", fresh)


def objective_config(name: str, **fields: Any):
    return OBJECTIVES[name].config(**fields)


def slope(xs: list[float], ys: list[float]) -> float:
    """Least-squares slope of log y over log x."""
    x, y = ([math.log(value) for value in values] for values in (xs, ys))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)

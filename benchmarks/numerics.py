"""How exact is the gradient of SoFlow's consistency loss in float32, TensorFloat-32 and bfloat16?

The loss contains the finite difference q = [f_θ(x_t, t, s) − f_θ⁻(x_l, l, s)] / (t − l), in which the rounding errors
of the two solutions are amplified by (t − s)/(t − l) = 1/r. Two ways to compute q are compared:

- naive: subtract the two solutions as written, divide by t − l;
- ours: SoFlow.solution_finite_difference, in which the terms in x that cancel are removed.

Measured: ‖g − g₆₄‖ / ‖g₆₄‖ over all parameters. g is the gradient of a batch's consistency loss, g₆₄ the gradient from
float64 copies of the same weights, data, noise and times. Networks are trained on digits for some steps, one per seed,
with the default shares of flow matching and consistency. The table shows the median over seeds with minimum and
maximum. "Unit/r" is the amplified unit roundoff of the network's matrix products, which predicts the order of
magnitude.

A training in bfloat16 computes q from values in float32, and the gradient in bfloat16: the last rows.

bfloat16 is torch's autocast, as in training. CPUs do not have TensorFloat-32, so it is emulated: in the forward pass
the operands of linear layers, convolutions and attention's products with queries, keys and values are rounded to its 10
mantissa bits. Sums stay in float32, as do the softmax's weights and the gradients arriving in the backward pass, which
real hardware rounds too. CUDA devices use their TensorFloat-32.

    python benchmarks/numerics.py --out table.md
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from soflow.config import parse
from soflow.data import open_source
from soflow.interpolants import per_sample
from soflow.objectives.base import Draws, normal
from soflow.objectives.config import SoFlowConfig
from soflow.objectives.soflow import SoFlow
from soflow.precision import Precision
from soflow.randomness import generator
from soflow.training.trainer import Trainer

RATIOS = (0.1, 0.01, 0.002)
ROUNDING_UNITS = {"fp32": 2.0**-24, "tf32": 2.0**-11, "bf16": 2.0**-8}
PARAMETERIZATIONS = ("euler", "trigonometric")
BATCH, NUM_CLASSES = 128, 10


class NaiveSoFlow(SoFlow):
    """SoFlow with the finite difference as written."""

    def solution_finite_difference(
        self, output_t: Tensor, output_l: Tensor, x_t: Tensor, v_mix: Tensor, t: Tensor, l: Tensor, s: Tensor
    ) -> Tensor:
        x_l = x_t + per_sample(l - t, x_t) * v_mix
        p = self.parameterization
        return (p.solution(x_t, output_t, t, s) - p.solution(x_l, output_l, l, s)) / per_sample(t - l, x_t)


FINITE_DIFFERENCES = {"naive": NaiveSoFlow, "ours": SoFlow}


class EmulatedTensorFloat32(TorchFunctionMode):
    """Mode that rounds the operands of matrix products to 10 mantissa bits; gradients pass unchanged."""

    PRODUCTS = (F.linear, F.conv2d, F.scaled_dot_product_attention)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in self.PRODUCTS:
            num_operands = 3 if function is F.scaled_dot_product_attention else 2  # the bias is added, not multiplied
            args = (*map(round_to_10_bits, args[:num_operands]), *args[num_operands:])
        return function(*args, **(kwargs or {}))


def round_to_10_bits(x: Tensor) -> Tensor:
    """Round float32 x to 10 mantissa bits, ties to even."""
    bits = x.detach().contiguous().view(torch.int32)
    dropped = 23 - 10
    even = (bits >> dropped) & 1
    rounded = ((bits + 2 ** (dropped - 1) - 1 + even) >> dropped) << dropped
    return x + (rounded.view(torch.float32) - x.detach())  # the difference is exact, and so is the sum


@dataclass(frozen=True)
class Case:
    """Network and a batch for its consistency loss."""

    network: nn.Module
    parameterization: str
    data: Tensor
    labels: Tensor
    seed: int

    def error(self, objective: type[SoFlow], precision: str, ratio: float) -> float:
        """Compute ‖g − g₆₄‖ / ‖g₆₄‖ at gap ratio r."""
        draws = self.draws(ratio)
        return gradient_error(self.config(ratio), objective, precision, self.network, self.data, self.labels, draws)

    def error_of_mixed(self, ratio: float) -> float:
        """Compute the error if only the values that q subtracts are in fp32, and the gradient is in bf16."""
        objective = SoFlow(self.config(ratio), NUM_CLASSES, True, Precision("bf16"), Precision("fp32"))
        draws = self.draws(ratio)
        mixed = gradient(objective, self.network, self.data, self.labels, draws)
        exact = exact_gradient(self.config(ratio), self.network, self.data, self.labels, in_float64(draws))
        return distance(mixed, exact)

    def config(self, ratio: float) -> SoFlowConfig:
        """Configure the consistency loss alone, without guidance, at a constant gap ratio."""
        return SoFlowConfig(
            parameterization=self.parameterization,
            flow_matching_fraction=0,
            gap_schedule="constant",
            r_init=ratio,
            r_end=ratio,
            guidance_strength=1,
        )

    def draws(self, ratio: float) -> Draws:
        """Draw noise and times; noise, t and s depend on the seed only, l also on the gap ratio."""
        objective = SoFlow(self.config(ratio), NUM_CLASSES, conditional=True)
        noise = normal(tuple(self.data.shape), generator(self.data.device, self.seed, "numerics", "noise"))
        return objective.draw(noise, 1.0, generator("cpu", self.seed, "numerics")).to(self.data.device)


def gradient_error(
    config: SoFlowConfig,
    objective: type[SoFlow],
    precision: str,
    network: nn.Module,
    data: Tensor,
    labels: Tensor,
    draws: Draws,
) -> float:
    """Compute ‖g − g₆₄‖ / ‖g₆₄‖ of the configured loss, for a float32 network, data and draws.

    Args:
        objective: one of FINITE_DIFFERENCES, which computes g; g₆₄ is always computed by SoFlow.
        precision: one of ROUNDING_UNITS.
    """
    rounded = rounded_gradient(config, objective, precision, network, data, labels, draws)
    return distance(rounded, exact_gradient(config, network, data, labels, in_float64(draws)))


def distance(rounded: Tensor, exact: Tensor) -> float:
    """Compute the relative error in the Euclidean norm."""
    return ((rounded - exact).norm() / exact.norm()).item()


def rounded_gradient(
    config: SoFlowConfig,
    objective: type[SoFlow],
    precision: str,
    network: nn.Module,
    data: Tensor,
    labels: Tensor,
    draws: Draws,
) -> Tensor:
    """Compute the gradient of the loss with all network calls in a precision, emulated if the device lacks it."""
    calls = Precision(precision)
    emulated = precision == "tf32" and data.device.type == "cpu"
    with EmulatedTensorFloat32() if emulated else nullcontext():
        return gradient(objective(config, NUM_CLASSES, True, calls, calls), network, data, labels, draws)


def exact_gradient(config: SoFlowConfig, network: nn.Module, data: Tensor, labels: Tensor, draws: Draws) -> Tensor:
    """Compute the gradient of the loss in float64, for draws in float64."""
    network = copy.deepcopy(network).double()
    return gradient(SoFlow(config, NUM_CLASSES, True), network, data.double(), labels, draws)


def in_float64(draws: Draws) -> Draws:
    """Convert draws to float64."""
    return replace(draws, **{name: getattr(draws, name).double() for name in ("noise", "t", "l", "s", "weight")})


def gradient(objective: SoFlow, network: nn.Module, data: Tensor, labels: Tensor, draws: Draws) -> Tensor:
    """Compute the gradient of the batch's loss by all parameters, as one float64 vector."""
    loss = (draws.weight * objective.losses(network, data, labels, draws).loss).sum()
    with objective.forward.backward(data.device):
        gradients = torch.autograd.grad(loss, list(network.parameters()))
    return torch.cat([grad.double().flatten() for grad in gradients])


def trained(parameterization: str, seed: int, steps: int, device: torch.device) -> Case:
    """Train a network on digits for some steps; return it with its next batch."""
    config = parse(
        {
            "seed": seed,
            "network": {"name": "DiT-XXS/2"},
            "objective": {"parameterization": parameterization},
            "training": {"total_steps": steps, "batch_size": BATCH},
        }
    )
    source = open_source(config.dataset)
    trainer = Trainer(config, source, device)
    trainer.advance(steps)
    stored, labels = (torch.from_numpy(array).to(device) for array in source.batch(trainer.inputs.order.indices(steps)))
    return Case(trainer.network.eval(), parameterization, trainer.codec.encode(stored), labels, seed)


def table(cases: list[Case]) -> list[str]:
    """Make a Markdown table: a row per parameterization, precision and ratio, a column per way to compute q."""
    lines = [
        f"| parameterization | precision | r | {' | '.join(FINITE_DIFFERENCES)} | unit / r |",
        "|---|---|---|" + "---|" * len(FINITE_DIFFERENCES) + "---|",
    ]
    for parameterization, (precision, unit), ratio in itertools.product(
        PARAMETERIZATIONS, ROUNDING_UNITS.items(), RATIOS
    ):
        selected = [case for case in cases if case.parameterization == parameterization]
        errors = [
            spread([case.error(objective, precision, ratio) for case in selected])
            for objective in FINITE_DIFFERENCES.values()
        ]
        lines.append(f"| {parameterization} | {precision} | {ratio:g} | {' | '.join(errors)} | {unit / ratio:.1e} |")
    for parameterization, ratio in itertools.product(PARAMETERIZATIONS, RATIOS):
        error = spread([case.error_of_mixed(ratio) for case in cases if case.parameterization == parameterization])
        unit = f"{ROUNDING_UNITS['bf16']:.1e} (unit)"
        lines.append(f"| {parameterization} | values in fp32, gradient in bf16 | {ratio:g} | | {error} | {unit} |")
    return lines


def spread(values: list[float]) -> str:
    """Format median, minimum and maximum."""
    return f"{statistics.median(values):.1e} [{min(values):.1e}, {max(values):.1e}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="networks per parameterization (default 5)")
    parser.add_argument("--steps", type=int, default=300, help="training steps of each (default 300)")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="default cpu")
    parser.add_argument("--out", type=Path, help="Markdown file to write the table to")
    options = parser.parse_args()
    pairs = itertools.product(PARAMETERIZATIONS, range(options.seeds))
    cases = [trained(parameterization, seed, options.steps, options.device) for parameterization, seed in pairs]
    lines = table(cases)
    print("\n".join(lines))
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

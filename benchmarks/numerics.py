"""How exact is the gradient of SoFlow's consistency loss in float32, TensorFloat-32 and bfloat16?

The loss is made of the quotient q = [f_θ(x_t, t, s) − f_θ⁻(x_l, l, s)] / (t − l), in which rounding of the two
solutions is amplified by (t − s)/(t − l) = 1/r. Two ways to compute q are compared:

- naive: subtract the two solutions as they stand, divide by t − l;
- ours: SoFlow.solution_finite_difference, from which the terms in x that cancel are removed.

Measured: ‖g − g₆₄‖ / ‖g₆₄‖ over all parameters, g being the gradient of a batch's consistency loss and g₆₄ the same
from float64 copies of the same weights, data, noise and times. Networks are trained on digits for some steps, one per
seed, with flow matching and consistency as by default; the table gives the median over seeds and, in brackets, the
smallest and the largest. "Unit/r" is the amplified rounding unit of the network's matrix products, a prediction of the
order of magnitude.

bfloat16 is torch's autocast, the way training would use it. On a CPU there is no TensorFloat-32, so it is emulated: in
the forward pass the operands of linear layers, convolutions and attention's products with queries, keys and values are
rounded to its 10 mantissa bits; sums stay float32, as do the softmax's weights and the gradients that arrive in the
backward pass, which the real thing rounds too. On a CUDA device it is the real one.

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
    """SoFlow with the quotient as it is written."""

    def solution_finite_difference(
        self, output_t: Tensor, output_l: Tensor, x_t: Tensor, v_mix: Tensor, t: Tensor, l: Tensor, s: Tensor
    ) -> Tensor:
        x_l = x_t + per_sample(l - t, x_t) * v_mix
        p = self.parameterization
        return (p.solution(x_t, output_t, t, s) - p.solution(x_l, output_l, l, s)) / per_sample(t - l, x_t)


QUOTIENTS = {"naive": NaiveSoFlow, "ours": SoFlow}


class EmulatedTensorFloat32(TorchFunctionMode):
    """Rounds the operands of matrix products to 10 mantissa bits; gradients pass the rounding unchanged."""

    PRODUCTS = (F.linear, F.conv2d, F.scaled_dot_product_attention)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in self.PRODUCTS:
            num_operands = 3 if function is F.scaled_dot_product_attention else 2  # the bias is added, not multiplied
            args = (*map(round_to_10_bits, args[:num_operands]), *args[num_operands:])
        return function(*args, **(kwargs or {}))


def round_to_10_bits(x: Tensor) -> Tensor:
    """x float32 rounded to the nearest number with 10 mantissa bits, ties to even."""
    bits = x.detach().contiguous().view(torch.int32)
    dropped = 23 - 10
    even = (bits >> dropped) & 1
    rounded = ((bits + 2 ** (dropped - 1) - 1 + even) >> dropped) << dropped
    return x + (rounded.view(torch.float32) - x.detach())  # the difference is exact, and so is the sum


@dataclass(frozen=True)
class Case:
    """A network and a batch for its consistency loss."""

    network: nn.Module
    parameterization: str
    data: Tensor
    labels: Tensor
    seed: int

    def error(self, quotient: type[SoFlow], precision: str, ratio: float) -> float:
        """‖g − g₆₄‖ / ‖g₆₄‖ at gap ratio r."""
        draws = self.draws(ratio)
        return gradient_error(self.config(ratio), quotient, precision, self.network, self.data, self.labels, draws)

    def config(self, ratio: float) -> SoFlowConfig:
        """The consistency loss alone, unguided, at a constant gap ratio."""
        return SoFlowConfig(
            parameterization=self.parameterization,
            flow_matching_fraction=0,
            gap_schedule="constant",
            r_init=ratio,
            r_end=ratio,
            guidance_strength=1,
        )

    def draws(self, ratio: float) -> Draws:
        """Noise, t and s depend on the seed alone, l on the gap ratio too."""
        objective = SoFlow(self.config(ratio), NUM_CLASSES, conditional=True)
        noise = normal(tuple(self.data.shape), generator(self.data.device, self.seed, "numerics", "noise"))
        return objective.draw(noise, 1.0, generator("cpu", self.seed, "numerics")).to(self.data.device)


def gradient_error(
    config: SoFlowConfig,
    quotient: type[SoFlow],
    precision: str,
    network: nn.Module,
    data: Tensor,
    labels: Tensor,
    draws: Draws,
) -> float:
    """‖g − g₆₄‖ / ‖g₆₄‖ of the loss that `config` describes, for a float32 network, data and draws.

    Args:
        quotient: one of QUOTIENTS, how g is computed; g₆₄ is always computed in our way.
        precision: one of ROUNDING_UNITS.
    """
    found = rounded_gradient(config, quotient, precision, network, data, labels, draws)
    return distance(found, exact_gradient(config, network, data, labels, in_float64(draws)))


def distance(found: Tensor, exact: Tensor) -> float:
    return ((found - exact).norm() / exact.norm()).item()


def rounded_gradient(
    config: SoFlowConfig,
    quotient: type[SoFlow],
    precision: str,
    network: nn.Module,
    data: Tensor,
    labels: Tensor,
    draws: Draws,
) -> Tensor:
    """Of the loss with all calls in a precision, emulated where the device does not have it."""
    calls = Precision(precision)
    emulated = precision == "tf32" and data.device.type == "cpu"
    with EmulatedTensorFloat32() if emulated else nullcontext():
        return gradient(quotient(config, NUM_CLASSES, True, calls, calls), network, data, labels, draws)


def exact_gradient(config: SoFlowConfig, network: nn.Module, data: Tensor, labels: Tensor, draws: Draws) -> Tensor:
    """The same in float64, as the draws are."""
    network = copy.deepcopy(network).double()
    return gradient(SoFlow(config, NUM_CLASSES, True), network, data.double(), labels, draws)


def in_float64(draws: Draws) -> Draws:
    return replace(draws, **{name: getattr(draws, name).double() for name in ("noise", "t", "l", "s", "weight")})


def gradient(objective: SoFlow, network: nn.Module, data: Tensor, labels: Tensor, draws: Draws) -> Tensor:
    """Of the batch's loss, all parameters in one row, as float64."""
    loss = (draws.weight * objective.losses(network, data, labels, draws).loss).sum()
    return torch.cat([part.double().flatten() for part in torch.autograd.grad(loss, list(network.parameters()))])


def trained(parameterization: str, seed: int, steps: int, device: torch.device) -> Case:
    """A network after some steps on digits, and a batch that is its next one."""
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
    stored, labels = (torch.from_numpy(part).to(device) for part in source.batch(trainer.order.indices(steps)))
    return Case(trainer.network.eval(), parameterization, trainer.codec.encode(stored), labels, seed)


def table(cases: list[Case]) -> list[str]:
    """Markdown: a row for every parameterisation, precision and ratio, a column for every way to compute q."""
    lines = [
        f"| parameterisation | precision | r | {' | '.join(QUOTIENTS)} | unit / r |",
        "|---|---|---|" + "---|" * len(QUOTIENTS) + "---|",
    ]
    for parameterization, (precision, unit), ratio in itertools.product(
        PARAMETERIZATIONS, ROUNDING_UNITS.items(), RATIOS
    ):
        own = [case for case in cases if case.parameterization == parameterization]
        errors = [spread([case.error(way, precision, ratio) for case in own]) for way in QUOTIENTS.values()]
        lines.append(f"| {parameterization} | {precision} | {ratio:g} | {' | '.join(errors)} | {unit / ratio:.1e} |")
    return lines


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.1e} [{min(values):.1e}, {max(values):.1e}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="networks per parameterisation (default 5)")
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

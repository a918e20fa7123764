"""How long does du/dt take by each of its computations, and how exact is it?

Measures, in turn and round after round, the eager Jacobian-vector product, the compiled one, and the central finite
difference of two network calls, eager and compiled; as a scale also one eager forward pass. Errors are relative to the
eager product in float64, on weights that differ from the initial ones, which are zero.

$ python benchmarks/derivatives.py
$ python benchmarks/derivatives.py --network DiT-XS/2 --batch 32
"""

from __future__ import annotations

import argparse
import functools
import os
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from soflow import networks
from soflow.autodiff import compiled_total_derivative, difference_quotient, total_derivative
from soflow.config_base import PrecisionName
from soflow.networks.config import NetworkConfig
from soflow.precision import EPSILON, Precision
from soflow.statistics import median_coverage, median_interval
from soflow.training.compilation import disturbed

CLASSES, SHAPE = 10, (4, 16, 16)


def inputs(batch: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Draw x, v [B, ...], t, s and labels [B]."""
    random = torch.Generator().manual_seed(0)
    x, v = torch.randn(2, batch, *SHAPE, generator=random, dtype=torch.float64).to(dtype)
    t = 0.1 + 0.8 * torch.rand(batch, generator=random, dtype=torch.float64).to(dtype)
    return x, v, t, t / 2, torch.arange(batch) % CLASSES


def methods(network: nn.Module, compiled: nn.Module, precision: Precision) -> dict[str, Callable[..., Tensor]]:
    """Return each computation of du/dt, as a function of the inputs."""
    h = EPSILON["fp32"] ** (1 / 3)  # training's default: a finite difference computes in float32

    def product(function: Callable, x: Tensor, v: Tensor, t: Tensor, s: Tensor, labels: Tensor) -> Tensor:
        with precision.context(x.device):
            return function(network, x.clone(), v.clone(), t.clone(), s.clone(), labels)[1]

    def difference(network: nn.Module, x: Tensor, v: Tensor, t: Tensor, s: Tensor, labels: Tensor) -> Tensor:
        forward = functools.partial(Precision("fp32"), network, s=s, labels=labels)
        return difference_quotient(forward, x, v, (t - h, t, t + h))

    return {
        "product": functools.partial(product, total_derivative),
        "product, compiled": functools.partial(product, compiled_total_derivative()),
        "finite difference": functools.partial(difference, network),
        "finite difference, compiled": functools.partial(difference, compiled),
        "forward pass": lambda x, v, t, s, labels: precision(network, x, t, s, labels),
    }


@torch.no_grad()
def compare(network: nn.Module, batch: int, precision: PrecisionName, rounds: int) -> None:
    """Print seconds of the first call, milliseconds, speed over the eager product and error of each computation."""
    values = inputs(batch, torch.float32)
    exact = total_derivative(network.double(), *inputs(batch, torch.float64))[1]
    network.float()
    first, errors, times = {}, {}, {}
    kinds = methods(network, torch.compile(network), Precision(precision))
    for name, method in kinds.items():
        began = time.perf_counter()
        result = method(*values)
        first[name] = time.perf_counter() - began
        errors[name], times[name] = ((result - exact).norm() / exact.norm()).item(), []
    for _ in range(rounds):
        for name, method in kinds.items():
            began = time.perf_counter()
            method(*values)
            method(*values)
            times[name].append((time.perf_counter() - began) / 2)
    for name in kinds:
        ratios = [eager / this for eager, this in zip(times["product"], times[name], strict=True)]
        low, high = median_interval(ratios)
        error = "" if name == "forward pass" else f", relative error {errors[name]:.2g}"
        print(
            f"{precision} {name}: {1e3 * statistics.median(times[name]):.1f} ms, {statistics.median(ratios):.2f} "
            f"({low:.2f}–{high:.2f}) times as fast as the eager product{error}; first call {first[name]:.1f} s"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="DiT-S/2", help="default DiT-S/2, on 4 × 16 × 16: 64 tokens")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"{platform.processor() or platform.machine()}, {options.threads} threads, torch {torch.__version__}; "
        f"{options.network}, batch {options.batch}; intervals cover the median with "
        f"{100 * median_coverage(options.rounds):.1f} %"
    )
    network = networks.build(NetworkConfig(name=options.network), SHAPE, CLASSES)
    with disturbed(network):
        for precision in ("fp32", "bf16"):
            compare(network, options.batch, precision, options.rounds)


if __name__ == "__main__":
    main()

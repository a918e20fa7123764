"""How long does du/dt take by each of its computations, and how exact is it?

Measures, in turn and round after round, the Jacobian-vector product by torch.func.jvp, the same with
soflow.autodiff.ConstantWeights, and the central finite difference of two network calls, each eager and compiled; as a
scale also one forward pass. Errors are relative to the eager product in float64, on weights that differ from the
initial ones, which are zero.

$ python benchmarks/derivatives.py
$ python benchmarks/derivatives.py --network DiT-XS/2 --batch 32
$ python benchmarks/derivatives.py --network DiT-B/2 --batch 128 --side 32 --device cuda
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
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from soflow import networks
from soflow.autodiff import compiled_total_derivative, difference_quotient, total_derivative
from soflow.config_base import PrecisionName
from soflow.networks.config import NetworkConfig
from soflow.precision import EPSILON, Precision
from soflow.statistics import median_coverage, median_interval
from soflow.training.compilation import disturbed

CLASSES, CHANNELS = 10, 4
TORCH, OURS, FORWARD = "torch.func.jvp", "with constant weights", "forward pass"


def inputs(batch: int, side: int, device: torch.device) -> tuple[Tensor, ...]:
    """Draw x, v [B, ...], t, s and labels [B] in float64."""
    random = torch.Generator().manual_seed(0)
    x, v = torch.randn(2, batch, CHANNELS, side, side, generator=random, dtype=torch.float64).to(device)
    t = 0.1 + 0.8 * torch.rand(batch, generator=random, dtype=torch.float64).to(device)
    return x, v, t, t / 2, torch.arange(batch, device=device) % CLASSES


def by_torch(network: nn.Module, x: Tensor, v: Tensor, t: Tensor, s: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Compute u and du/dt with torch.func.jvp alone."""
    with sdpa_kernel(SDPBackend.MATH):
        return jvp(lambda x, t: network(x, t, s, labels), (x, t), (v, torch.ones_like(t)))[:2]


def methods(network: nn.Module, compiled: nn.Module, precision: Precision) -> dict[str, Callable[..., Tensor]]:
    """Return each computation of du/dt, as a function of the inputs."""
    h = EPSILON["fp32"] ** (1 / 3)  # training's default: a finite difference computes in float32

    def product(function: Callable, x: Tensor, v: Tensor, t: Tensor, s: Tensor, labels: Tensor) -> Tensor:
        with precision.context(x.device):
            return function(network, x.clone(), v.clone(), t.clone(), s.clone(), labels)[1]

    def difference(network: nn.Module, x: Tensor, v: Tensor, t: Tensor, s: Tensor, labels: Tensor) -> Tensor:
        forward = functools.partial(Precision("fp32"), network, s=s, labels=labels)
        return difference_quotient(forward, x, v, (t - h, t, t + h))

    def forward(network: nn.Module, x: Tensor, v: Tensor, t: Tensor, s: Tensor, labels: Tensor) -> Tensor:
        return precision(network, x, t, s, labels)

    return {
        TORCH: functools.partial(product, by_torch),
        OURS: functools.partial(product, total_derivative),
        "finite difference": functools.partial(difference, network),
        FORWARD: functools.partial(forward, network),
        f"{TORCH}, compiled": functools.partial(product, torch.compile(by_torch, dynamic=False)),
        f"{OURS}, compiled": functools.partial(product, compiled_total_derivative()),
        "finite difference, compiled": functools.partial(difference, compiled),
        f"{FORWARD}, compiled": functools.partial(forward, compiled),
    }


@torch.no_grad()
def compare(network: nn.Module, values: tuple[Tensor, ...], precision: PrecisionName, rounds: int) -> None:
    """Print seconds of the first call, milliseconds, speed over torch.func.jvp and error of each computation."""
    exact = total_derivative(network.double(), *values)[1]
    network.float()
    x, v, t, s, labels = values
    single = (x.float(), v.float(), t.float(), s.float(), labels)
    first, errors, times = {}, {}, {}
    kinds = methods(network, torch.compile(network), Precision(precision))
    for name, method in kinds.items():
        first[name] = seconds_of(functools.partial(method, *single), x.device)
        errors[name], times[name] = ((method(*single) - exact).norm() / exact.norm()).item(), []
    for _ in range(rounds):
        for name, method in kinds.items():
            times[name].append(seconds_of(functools.partial(method, *single), x.device, repeats=2))
    for name in kinds:
        ratios = [torch_s / this for torch_s, this in zip(times[TORCH], times[name], strict=True)]
        low, high = median_interval(ratios)
        error = "" if FORWARD in name else f", relative error {errors[name]:.2g}"
        print(
            f"{precision} {name}: {1e3 * statistics.median(times[name]):.1f} ms, {statistics.median(ratios):.2f} "
            f"({low:.2f}–{high:.2f}) times as fast as {TORCH}{error}; first call {first[name]:.1f} s"
        )


def seconds_of(function: Callable[[], object], device: torch.device, repeats: int = 1) -> float:
    """Measure the mean seconds of a call, until the device has finished."""
    synchronize(device)
    began = time.perf_counter()
    for _ in range(repeats):
        function()
    synchronize(device)
    return (time.perf_counter() - began) / repeats


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="DiT-S/2", help="default DiT-S/2")
    parser.add_argument("--side", type=int, default=16, help="side of the latents of 4 channels, default 16: 64 tokens")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    machine = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    )
    print(
        f"{machine}, {options.threads} threads, torch {torch.__version__}; {options.network}, {CHANNELS} × "
        f"{options.side} × {options.side}, batch {options.batch}; intervals cover the median with "
        f"{100 * median_coverage(options.rounds):.1f} %"
    )
    shape = (CHANNELS, options.side, options.side)
    network = networks.build(NetworkConfig(name=options.network), shape, CLASSES).to(device)
    with disturbed(network):
        for precision in ("fp32", "bf16"):
            compare(network, inputs(options.batch, options.side, device), precision, options.rounds)


if __name__ == "__main__":
    main()

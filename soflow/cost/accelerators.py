"""Peak performance of accelerators: data-sheet values, and a measurement of the current device."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from soflow.precision import Precision


@dataclass(frozen=True)
class Accelerator:
    """Memory size and peak rates of a device."""

    memory_bytes: float
    bytes_per_s: float
    """Peak memory bandwidth."""
    flops_per_s: dict[str, float]
    """Peak FLOP/s of dense matrix products by precision (soflow.precision)."""


def _published(memory_gb: float, terabytes_per_s: float, fp32: float, tf32: float, bf16: float) -> Accelerator:
    """Build an accelerator from data-sheet values in GB, TB/s and dense TFLOP/s."""
    flops = {"fp32": fp32 * 1e12, "tf32": tf32 * 1e12, "bf16": bf16 * 1e12}
    return Accelerator(memory_gb * 1e9, terabytes_per_s * 1e12, flops)


ACCELERATORS = {
    "A100-40GB": _published(40, 1.555, 19.5, 156, 312),
    "A100-80GB": _published(80, 2.039, 19.5, 156, 312),
    "H100": _published(80, 3.35, 67, 494.7, 989.4),
    "H200": _published(141, 4.8, 67, 494.7, 989.4),
    "L40S": _published(48, 0.864, 91.6, 183, 362),
    "RTX-4090": _published(24, 1.008, 82.6, 82.6, 165.2),
}
"""NVIDIA's data-sheet values without sparsity, for the SXM variant if several exist."""


LARGEST, ENOUGH_S = 2048, 0.02
"""Maximum rows of the timed matrix products, and duration in seconds from which larger ones are skipped. Larger ones
would reach no higher rate, and would take minutes on a CPU without bf16 instructions."""


def measured(device: torch.device, memory_bytes: float) -> Accelerator:
    """Measure the current device: rates of a large matrix product and a large addition, each the fastest of nine.

    The fastest repetition approximates the peak even while other programs run.
    """
    flops = {}
    for name in ("fp32", "tf32", "bf16"):
        with Precision(name).context(device), torch.no_grad():
            flops[name] = _product_rate(device)
    long = torch.randn(2**25, device=device)
    return Accelerator(memory_bytes, 2 * long.nbytes / _fastest_s(lambda: long.add_(1), device), flops)


def _product_rate(device: torch.device) -> float:
    rows = 256
    while True:
        a, b = torch.randn(2, rows, rows, device=device).unbind()
        seconds = _fastest_s(functools.partial(torch.matmul, a, b), device)
        if rows == LARGEST or seconds > ENOUGH_S:
            return 2 * rows**3 / seconds
        rows *= 2


def _fastest_s(run: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(10):
        begin = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begin)
    return min(times[1:])

"""Peak performance of accelerators: data-sheet values, and a measurement of the current device."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from soflow.config_base import PrecisionName
from soflow.precision import Precision


@dataclass(frozen=True)
class Accelerator:
    """Memory size and peak rates of a device."""

    memory_bytes: float
    bytes_per_s: float
    """Peak memory bandwidth."""
    flops_per_s: dict[str, float]
    """Peak FLOP/s of dense matrix products by precision (soflow.precision)."""


def _data_sheet(memory_gb: float, terabytes_per_s: float, fp32: float, tf32: float, bf16: float) -> Accelerator:
    """Build an accelerator from data-sheet values in GB, TB/s and dense TFLOP/s."""
    flops = {"fp32": fp32 * 1e12, "tf32": tf32 * 1e12, "bf16": bf16 * 1e12}
    return Accelerator(memory_gb * 1e9, terabytes_per_s * 1e12, flops)


ACCELERATORS = {
    "A100-40GB": _data_sheet(40, 1.555, 19.5, 156, 312),
    "A100-80GB": _data_sheet(80, 2.039, 19.5, 156, 312),
    "H100": _data_sheet(80, 3.35, 67, 494.7, 989.4),
    "H200": _data_sheet(141, 4.8, 67, 494.7, 989.4),
    "L40S": _data_sheet(48, 0.864, 91.6, 183, 362),
    "RTX-4090": _data_sheet(24, 1.008, 82.6, 82.6, 165.2),
}
"""NVIDIA's data-sheet values without sparsity, for the SXM variant if several exist."""


SLOWER = {"MIG", "PCIe", "NVL", "Laptop", "D"}
"""Words in the names of parts and variants with lower rates than the card that they are named after."""
LARGEST = {"cpu": 2048, "cuda": 8192}
"""Maximum rows of the timed matrix products: larger ones would reach no higher rate."""
ENOUGH_S = 0.02
"""Duration in seconds from which larger products are skipped: they would take minutes on a CPU without bf16
instructions."""


def published(name: str) -> Accelerator | None:
    """Return the data sheet's values of a device with this CUDA name.

    None if it is not in ACCELERATORS, or is a part or a slower variant of one that is.
    """
    words = name.replace("-", " ").split()
    if SLOWER.intersection(words):
        return None
    matches = [key for key in ACCELERATORS if all(word in words for word in key.replace("-", " ").split())]
    return ACCELERATORS[matches[0]] if matches else None


def measured(device: torch.device, memory_bytes: float) -> Accelerator:
    """Measure the current device: rates of a large matrix product and a large addition, each the fastest of nine.

    The fastest repetition approximates the peak even while other programs run.
    """
    flops = {name: product_rate(device, name) for name in ("fp32", "tf32", "bf16")}
    long = torch.randn(2**25, device=device)
    return Accelerator(memory_bytes, 2 * long.nbytes / _fastest_s(lambda: long.add_(1), device), flops)


def product_rate(device: torch.device, precision: PrecisionName) -> float:
    """Measure the FLOP/s of a large matrix product, the fastest of nine."""
    rows, dtype = 256, torch.bfloat16 if precision == "bf16" else torch.float32
    with Precision(precision).context(device), torch.no_grad():
        while True:
            a, b = torch.randn(2, rows, rows, device=device, dtype=dtype).unbind()
            seconds = _fastest_s(functools.partial(torch.matmul, a, b), device)
            if rows == LARGEST[device.type] or seconds > ENOUGH_S:
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

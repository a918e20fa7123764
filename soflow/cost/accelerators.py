"""Accelerators by their makers' figures, and the one at hand by measurement."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from soflow.precision import Precision


@dataclass(frozen=True)
class Accelerator:
    """Peaks of a device: what it could do at best."""

    memory_bytes: float
    bytes_per_s: float
    """To and from its memory."""
    flops_per_s: dict[str, float]
    """Of dense matrix products by precision (soflow.precision)."""


def _published(memory_gb: float, terabytes_per_s: float, fp32: float, tf32: float, bf16: float) -> Accelerator:
    """From a data sheet: GB, TB/s and dense teraflops."""
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
"""SXM variants where there are several; NVIDIA's data sheets, without sparsity."""


LARGEST, ENOUGH_S = 2048, 0.02
"""Rows of the largest matrix products that are timed, and seconds after which larger ones are not: they would be no
faster, and take minutes where a CPU has no instructions for bf16."""


def measured(device: torch.device, memory_bytes: float) -> Accelerator:
    """The device at hand: rates of a large matrix product and addition, the best of nine: peaks whatever else runs."""
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
        seconds = _fastest_s(lambda a=a, b=b: a @ b, device)
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

"""Images per second of training steps on one GPU: DiT-B/4 and DiT-XL/2 on latents of 256x256 images, in bfloat16."""

from __future__ import annotations

import gc
import importlib.util
import statistics
import time
from dataclasses import dataclass, replace

import torch

from benchmarks.gpu.processes import in_processes
from benchmarks.gpu.results import Figure
from orchestration.cost_study.config import UNGUIDED, VARIANTS
from soflow.config import RunConfig, parse
from soflow.config_base import PrecisionName
from soflow.cost.measure import peak_bytes, time_steps
from soflow.cost.predict import predict
from soflow.cost.synthetic import synthetic_source
from soflow.cost.utilization import peak_flops_per_s
from soflow.training.out_of_memory import StepOutOfMemory, is_out_of_memory
from soflow.training.trainer import Trainer

WARMUP, STEPS = 3, 10
BATCHES = {"DiT-B/4": 256, "DiT-XL/2": 128}
"""Samples per step, halved until a step fits into memory."""
PUBLISHED_REASON = "median of ten steps after three; reported only, beside the published figures"


class NotReached(Exception):
    """End of the time budget during a row."""


@dataclass(frozen=True)
class Row:
    """Step to time."""

    network: str
    variant: str
    """One of orchestration.cost_study.config.VARIANTS, without guidance."""
    compiled: bool = False
    quotient: PrecisionName = "fp32"
    """Precision of the values in SoFlow's finite difference."""

    @property
    def name(self) -> str:
        quotient = "" if self.quotient == "fp32" else f" with its quotient in {self.quotient}"
        return f"{self.network}, {LABELS[self.variant]}{quotient}{', compiled' if self.compiled else ''}"

    def config(self, batch: int) -> RunConfig:
        """Configure this step without guidance, as published figures have none."""
        objective = VARIANTS[self.variant]
        return parse(
            {
                "dataset": {"name": "latents", "image_size": 256},
                "network": {"name": self.network},
                "objective": objective | UNGUIDED[objective["name"]],
                "training": {
                    "precision": "bf16",
                    "quotient_precision": self.quotient,
                    "batch_size": batch,
                    "compile": self.compiled,
                    "total_steps": 1000,
                },
            }
        )


LABELS = {
    "flow_matching": "flow matching",
    "soflow": "SoFlow",
    "meanflow_c": "MeanFlow",
    "meanflow_d": "MeanFlow by finite difference",
    "meanflow_flash": "MeanFlow with fused attention",
}
EAGER = [
    *(Row(network, variant) for network in BATCHES for variant in LABELS if variant != "meanflow_flash"),
    *(Row(network, "meanflow_flash") for network in BATCHES if importlib.util.find_spec("jvp_flash_attention")),
    *(Row(network, "soflow", quotient="tf32") for network in BATCHES),
]
COMPILED = [replace(row, compiled=True) for row in EAGER if row.variant != "meanflow_flash"]


def throughput(row: Row, device: torch.device, seconds: float) -> list[Figure]:
    """Time a row in a process of its own, which leaves no memory behind.

    Raises:
        NotReached: if it takes longer than `seconds`.
    """
    try:
        (figures,) = in_processes(largest_that_fits, [(row, str(device), BATCHES[row.network])], seconds)
    except TimeoutError as error:
        raise NotReached(str(error)) from None
    return figures


def largest_that_fits(row: Row, device: str, batch: int) -> list[Figure]:
    """Time steps of at most `batch` samples, half as many as long as they do not fit into memory."""
    try:
        return timed(row, torch.device(device), batch)
    except (RuntimeError, MemoryError) as error:
        if batch == 2 or not (isinstance(error, StepOutOfMemory) or is_out_of_memory(error)):
            raise
    gc.collect()  # the trainer is part of cycles
    torch.cuda.empty_cache()
    return largest_that_fits(row, device, batch // 2)


def timed(row: Row, device: torch.device, batch: int) -> list[Figure]:
    """Time steps of `batch` samples; RuntimeError if the network should be compiled, but no compiler works."""
    config = row.config(batch)
    trainer = Trainer(config, synthetic_source(config.dataset), device)
    if trainer.compiled != row.compiled:
        raise RuntimeError(
            "training.compile = True: the compiler does not work here; install a C++ compiler and Triton"
        )
    began = time.perf_counter()
    time_steps(trainer, WARMUP)
    warmup_s = time.perf_counter() - began
    step_ms = statistics.median(step["step"] for step in time_steps(trainer, STEPS))
    rate = predict(config).flops / step_ms * 1e3
    return [
        Figure("images/s", batch * 1e3 / step_ms),
        Figure("batch", batch),
        Figure("peak memory, GiB", peak_bytes(trainer) / 2**30),
        Figure("% of the peak FLOP/s", 100 * rate / peak_flops_per_s(trainer.device, config.training.precision)),
        Figure(f"first {WARMUP} steps, s", warmup_s),
    ]

"""Arithmetic that a training run achieves: FLOP/s of its optimizer steps, and their share of the devices' peak."""

from __future__ import annotations

import functools
import logging

import torch

from soflow.config import RunConfig
from soflow.config_base import PrecisionName
from soflow.cost.accelerators import product_rate, published
from soflow.cost.predict import predict

LOG = logging.getLogger(__name__)


class Utilization:
    """FLOP/s of a run on `world_size` workers with a device each.

    FLOPs are those of the eager step's matrix products, convolutions and attention, counted without computation:
    compiled steps, whose kernels cannot be counted, compute the same. Make it before the run's network, as the peak of
    an unknown device is measured with large products.
    """

    def __init__(self, config: RunConfig, device: torch.device, world_size: int):
        self.config = config
        self._flops: int | None = None
        self._peak = peak_flops_per_s(device, config.training.precision) * world_size

    def metrics(self, step: int, step_ms: float) -> dict[str, float]:
        """Return FLOP/s and their share of the peak for steps of `step_ms` ms up to `step`; {} if not countable."""
        try:
            if self._flops is None or self.config.objective.arithmetic_varies:
                self._flops = predict(self.config, step - 1).flops
        except Exception as error:  # a failed count must not fail the run
            LOG.warning("the operations of a step cannot be counted (%s: %s)", type(error).__name__, error)
            return {}
        rate = self._flops / step_ms * 1e3
        return {"throughput/gflop_per_s": rate / 1e9, "throughput/peak_share": rate / self._peak}


@functools.cache
def peak_flops_per_s(device: torch.device, precision: PrecisionName) -> float:
    """Return the peak FLOP/s of a device: the data sheet's if known, else those of large products, measured once."""
    if device.type == "cuda" and (accelerator := published(torch.cuda.get_device_name(device))):
        return accelerator.flops_per_s[precision]
    return product_rate(device, precision)

"""Compilation of the network, and the check that derivatives which are not computed exactly are right."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from soflow.config import RunConfig
from soflow.config_base import ConfigError
from soflow.objectives.base import normal
from soflow.objectives.config import MeanFlowFields
from soflow.randomness import generator

LOG = logging.getLogger(__name__)

TOLERANCE = {"fp32": 1e-3, "tf32": 3e-2, "bf16": 0.15}
"""Largest relative error of a compiled derivative against the eager one in float32, by precision: ten times or more the
error that rounding causes in the networks here, far below that of a dropped term."""
DIFFERENCE_TOLERANCE = 0.1
"""Largest relative error of a derivative by finite differences at the start of training."""
DISTURBANCE = 0.02
"""Standard deviation of the change of the weights for the check: new networks are zero, and so are derivatives."""


def compiled(network: nn.Module, config: RunConfig, device: torch.device) -> nn.Module:
    """Return the network, compiled if the configuration says so and a compiler works; if none does, warn."""
    if not config.training.compile or device.type == "meta":
        return network
    if problem := _compiler_problem(device):
        LOG.warning("training.compile = True: the compiler does not work (%s); training runs without it", problem)
        return network
    if config.network.dropout:
        torch._inductor.config.fallback_random = True  # otherwise each compiled function has masks of its own
    return torch.compile(network)  # type: ignore[return-value]  # it returns a module


@functools.cache
def _compiler_problem(device: torch.device) -> str:
    """Compile a function of one operation; return the first line of the error, "" if it works."""
    try:
        torch.compile(torch.sin)(torch.zeros(2, device=device))
    except Exception as error:  # of torch, of the compiler, of the file system
        return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return ""


def check_derivative(error: float, config: RunConfig) -> None:
    """Refuse a derivative whose relative error exceeds its tolerance.

    Raises:
        ConfigError: with both numbers and the remedy.
    """
    objective = config.objective
    if isinstance(objective, MeanFlowFields) and objective.jvp == "finite_difference":
        field = f"objective.finite_difference_step = {objective.finite_difference_step}"
        tolerance = DIFFERENCE_TOLERANCE
        remedy = "choose another step, training.quotient_precision = fp32, or objective.jvp = subset"
    else:
        field, tolerance = "training.compile = True", TOLERANCE[config.training.precision]
        remedy = "set it to false"
    if not error <= tolerance:
        raise ConfigError(
            f"{field}: du/dt differs from the exact derivative by {error:.2g}, relative to its norm, more than the "
            f"{tolerance:g} allowed; {remedy}"
        )


@contextmanager
def disturbed(network: nn.Module) -> Iterator[None]:
    """Add seeded noise to the weights inside the block; afterwards they are as before, bit for bit."""
    before = [weights.detach().clone() for weights in network.parameters()]
    random = generator(before[0].device, 0, "disturbance")
    with torch.no_grad():
        for weights in network.parameters():
            weights.add_(normal(tuple(weights.shape), random), alpha=DISTURBANCE)
        try:
            yield
        finally:
            for weights, value in zip(network.parameters(), before, strict=True):
                weights.copy_(value)

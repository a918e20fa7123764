"""Compilation of the network, and the check that derivatives which are not computed exactly are right."""

from __future__ import annotations

import functools
import importlib.util
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from soflow.autodiff import COMPILATIONS
from soflow.config import RunConfig
from soflow.config_base import ConfigError
from soflow.objectives.base import normal
from soflow.objectives.config import MeanFlowFields
from soflow.randomness import generator

LOG = logging.getLogger(__name__)


@dataclass
class Compilations:
    """Compilations and their total duration; a function's backward pass may be one of its own."""

    count: int = 0
    seconds: float = 0.0
    _began: float = 0.0

    def begin(self, *trigger: object) -> None:
        self.count, self._began = self.count + 1, time.perf_counter()

    def end(self, *trigger: object) -> None:
        self.seconds += time.perf_counter() - self._began


@functools.cache
def _process_compilations() -> Compilations:
    from torch._dynamo.callback import on_compile_end, on_compile_start  # slow to import

    result = Compilations()
    on_compile_start(result.begin)
    on_compile_end(result.end)
    return result


class CompileClock:
    """Count of the compilations of this process from now on; none if `compiles` is False."""

    def __init__(self, compiles: bool):
        self._compiles = compiles
        self._now = _process_compilations() if compiles else Compilations()
        self._before = replace(self._now)

    @property
    def seconds(self) -> float:
        return self._now.seconds - self._before.seconds

    def metrics(self) -> dict[str, float]:
        """Return number and seconds, if this run compiles."""
        if not self._compiles:
            return {}
        return {"compile/count": self._now.count - self._before.count, "time/compile_s": self.seconds}


TOLERANCE = {"fp32": 1e-3, "tf32": 3e-2, "bf16": 0.15}
"""Largest relative error of a compiled derivative against the eager one in float32, by precision: ten times or more the
error that rounding causes in the networks here, far below that of a dropped term."""
DIFFERENCE_TOLERANCE = 0.1
"""Largest relative error of a derivative by finite differences at the start of training."""
DISTURBANCE = 0.02
"""Standard deviation of the change of the weights for the check: new networks are zero, and so are derivatives."""


def compiled(network: nn.Module, config: RunConfig, device: torch.device) -> nn.Module:
    """Return the network, compiled if a compiler works; if none does, warn."""
    if problem := compiler_problem(device):
        LOG.warning(
            "training.compile = %s: the compiler does not work (%s); training runs without it",
            config.training.compile,
            problem,
        )
        return network
    if config.network.dropout:
        torch._inductor.config.fallback_random = True  # otherwise each compiled function has masks of its own
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILATIONS)
    result: nn.Module = torch.compile(network)  # type: ignore[assignment]  # it returns a module
    result.register_forward_pre_hook(_mark_batch_dynamic)
    return result


def _mark_batch_dynamic(network: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Let the code compiled for these inputs [B, ...] serve all batch sizes: they differ by call, step and trial."""
    for tensor in inputs:
        torch._dynamo.maybe_mark_dynamic(tensor, 0)


@functools.cache
def compiler_problem(device: torch.device) -> str:
    """Compile a function of one operation; return the first line of the error, "" if it works."""
    try:
        torch.compile(torch.sin)(torch.zeros(2, device=device))
    except Exception as error:  # of torch, of the compiler, of the file system
        return first_line(error)
    return ""


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def check_flash_attention(config: RunConfig, device: torch.device) -> None:
    """Refuse the fused kernel of the Jacobian-vector product where it cannot run.

    Raises:
        ConfigError: without CUDA or without the package.
    """
    if not config.objective.fused_jvp or device.type == "meta":
        return
    if device.type == "cpu":
        raise ConfigError("objective.jvp_attention = flash: needs a CUDA device; set it to math")
    if not importlib.util.find_spec("jvp_flash_attention"):
        raise ConfigError(
            "objective.jvp_attention = flash: needs the package jvp_flash_attention; "
            'install it with `pip install "soflow[flash]"` or set it to math'
        )


def check_derivative(error: float, config: RunConfig) -> None:
    """Refuse a derivative whose relative error exceeds its tolerance.

    Raises:
        ConfigError: with both numbers and the remedy.
    """
    objective = config.objective
    if isinstance(objective, MeanFlowFields) and objective.jvp == "finite_difference":
        field = f"objective.finite_difference_step = {objective.finite_difference_step}"
        remedy = "choose another step, training.quotient_precision = fp32, or objective.jvp = subset"
    elif objective.fused_jvp:
        field, remedy = "objective.jvp_attention = flash", "set it to math"
    else:
        field, remedy = f"training.compile = {config.training.compile}", "set it to false"
    if problem := derivative_problem(error, config):
        raise ConfigError(f"{field}: {problem}; {remedy}")


def derivative_problem(error: float, config: RunConfig) -> str:
    """Describe a relative error of the derivative that exceeds its tolerance; "" if it does not."""
    by_difference = getattr(config.objective, "jvp", "") == "finite_difference"
    tolerance = DIFFERENCE_TOLERANCE if by_difference else TOLERANCE[config.training.precision]
    if error <= tolerance:
        return ""
    return (
        f"du/dt differs from the exact derivative by {error:.2g}, relative to its norm, more than the "
        f"{tolerance:g} allowed"
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

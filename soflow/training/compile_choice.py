"""Choice of training.compile = auto: compile if the steps to go save more time than compilation takes."""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from soflow.training.compilation import (
    CompileClock,
    compiled,
    compiler_problem,
    derivative_problem,
    disturbed,
    first_line,
)
from soflow.training.inputs import StepInputs
from soflow.training.loss_module import LossModule, accumulate_gradients, loss_module_of, without_all_reduce
from soflow.training.out_of_memory import StepOutOfMemory, is_out_of_memory

LARGEST_SAVING = 2 / 3
"""Largest share of the time that compilation is expected to save. The most measured is 64 %, of MeanFlow's smallest
steps; steps without a Jacobian-vector product save 5 to 41 % (docs/cost.md)."""
COMPILE_S = 30.0
"""Seconds that a compilation typically takes. The first of a network took 26 to 70 s on two shared CPU cores (DiT-XXS/4
to S/2); later processes find code in torch's cache on disk and took 4 to 27 s."""
SMALLEST_SAVING = 0.03
"""Smallest share of the time that counts as a saving: less may be scatter of the few measured steps."""
EAGER_STEPS, COMPILING_STEPS, ROUNDS = 3, 2, 5
"""Measured steps before compilation, steps that compile, and rounds of an eager and a compiled step after it."""
MEASURED_STEPS = 1 + EAGER_STEPS + COMPILING_STEPS + 2 * ROUNDS


@dataclass(frozen=True)
class Choice:
    """Choice between compiled and eager steps, with its reason in words."""

    compiled: bool
    reason: str

    def __str__(self) -> str:
        return f"{'compiled' if self.compiled else 'not compiled'}, {self.reason}"


def choose(
    module: nn.Module,
    inputs: StepInputs,
    step: int,
    derivative_error: Callable[[], float],
    total: Callable[[Tensor], Tensor],
) -> tuple[Choice, CompileClock]:
    """Measure gradients of a step, discard them, and leave the chosen network in the module; equal on all workers.

    Args:
        module: a LossModule with the eager network, or DistributedDataParallel of one.
        step: number of optimizer steps done.
        derivative_error: measures the relative error of the derivative in the loss.
        total: sums a tensor over all workers.

    Returns:
        the choice, and the clock of the compilations that it took.
    """
    config, loss_module = inputs.config, loss_module_of(module)
    left = config.training.total_steps - step
    if config.objective.fused_jvp:
        return Choice(False, "because objective.jvp_attention = flash cannot be compiled"), CompileClock(False)
    if largest_saving_s(left, eager_s=1) <= 0:
        return Choice(False, f"because {left} steps are too few to measure"), CompileClock(False)

    def average(*seconds: float) -> list[float]:
        return (total(torch.tensor(seconds, device=inputs.device)) / inputs.world_size).tolist()

    take_s = functools.partial(_seconds, _discarded_step(module, inputs, step), inputs.device)
    take_s()  # allocators and kernels warm up
    (eager_s,) = average(statistics.median(take_s() for _ in range(EAGER_STEPS)))
    if largest_saving_s(left, eager_s) <= COMPILE_S:
        steps = f"{left} steps, with gradients in {_duration(eager_s)},"
        reason = f"because {steps} cannot save the {COMPILE_S:.0f} s of a compilation"
        return Choice(False, reason), CompileClock(False)
    eager, clock, compiled_s = loss_module.network, CompileClock(True), math.inf
    if not (problem := _compile(loss_module, inputs, take_s, derivative_error)):
        eager_s, compiled_s = _alternating(loss_module, eager, take_s)
    eager_s, compiled_s = average(eager_s, compiled_s)
    if math.isinf(compiled_s):
        choice = Choice(False, f"because {problem or 'another worker cannot compile'}")
    else:
        choice = choice_between(eager_s, compiled_s, clock.seconds)
    if not choice.compiled:
        loss_module.network = eager
    return choice, clock


def largest_saving_s(steps: int, eager_s: float) -> float:
    """Estimate the most seconds that compilation saves in `steps` steps, less those of the measured steps."""
    return (LARGEST_SAVING * steps - MEASURED_STEPS) * eager_s


def choice_between(eager_s: float, compiled_s: float, compile_s: float) -> Choice:
    """Choose the faster kind of steps, by seconds per step; the seconds of the compilation are spent already."""
    faster = compiled_s < (1 - SMALLEST_SAVING) * eager_s
    times = f"{_duration(compiled_s)} instead of {_duration(eager_s)} for the gradients of a step"
    verdict = times if faster else f"because {times} is no gain"
    return Choice(faster, f"{verdict}, after {compile_s:.0f} s of compilation")


def _discarded_step(module: nn.Module, inputs: StepInputs, step: int) -> Callable[[], None]:
    """Make a function that computes the gradients of a step, without its batch, and discards them."""
    data, labels = inputs.example(sum(len(draws.t) for draws in inputs.draws(step)))
    shares = inputs.draws(step, (data, labels))

    def discarded_step() -> None:
        with without_all_reduce(module):
            accumulate_gradients(module, data, labels, shares, inputs.world_size)
        module.zero_grad()

    return discarded_step


def _compile(
    module: LossModule, inputs: StepInputs, step: Callable[[], object], derivative_error: Callable[[], float]
) -> str:
    """Compile the module's network; return the problem that prevents its use, "" if it works."""
    if problem := compiler_problem(inputs.device):
        return f"the compiler does not work ({problem})"
    eager = module.network
    module.network = compiled(eager, inputs.config, inputs.device)
    try:
        if module.approximates_derivative:
            with disturbed(eager):
                problem = derivative_problem(derivative_error(), inputs.config)
        for _ in range(0 if problem else COMPILING_STEPS):
            step()
    except Exception as error:  # the compiler raises any; eager steps have worked
        if isinstance(error, StepOutOfMemory) or is_out_of_memory(error):
            raise
        return f"compilation failed ({first_line(error)})"
    return problem


def _alternating(module: LossModule, eager: nn.Module, seconds: Callable[[], float]) -> tuple[float, float]:
    """Time eager and compiled steps in turn; return the median seconds of both."""
    networks = (eager, module.network)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for network, seconds_of_network in zip(networks, times, strict=True):
            module.network = network
            seconds_of_network.append(seconds())
    return statistics.median(times[0]), statistics.median(times[1])


def _seconds(step: Callable[[], object], device: torch.device) -> float:
    """Time one call, with what it starts on the device."""
    _synchronize(device)
    began = time.perf_counter()
    step()
    _synchronize(device)
    return time.perf_counter() - began


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _duration(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 0.9995 else f"{seconds:.3g} s"

"""List of the checks, and how they are run: in order, within a time budget, each outcome saved at once."""

from __future__ import annotations

import functools
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from benchmarks.gpu import agreement, sharing, sweep, throughput, training
from benchmarks.gpu.results import FAILED, NOT_RUN, PASSED, Figure, Outcome
from benchmarks.gpu.throughput import NotReached

Measure = Callable[[torch.device, float], list[Figure]]
"""Function (device, seconds left) → figures."""


@dataclass(frozen=True)
class Check:
    """Check of one device, or of two."""

    name: str
    measure: Measure
    reason: str
    """Origin of the limits."""
    gpus: int = 1


def _of_device(measure: Callable[[torch.device], list[Figure]]) -> Measure:
    return lambda device, seconds: measure(device)


def _on_two_gpus(device: torch.device, seconds: float) -> list[Figure]:
    return sharing.two_workers((torch.device("cuda:0"), torch.device("cuda:1")))


CORRECTNESS = (
    Check("CPU against CUDA", _of_device(agreement.agreement), agreement.REASON),
    Check("errors by precision", _of_device(training.precision), training.PRECISION_REASON),
    Check("resume bit for bit", _of_device(training.resume), training.RESUME_REASON),
    Check("peak memory against prediction", _of_device(training.memory), training.MEMORY_REASON),
    Check("out of memory, then micro-batches", _of_device(training.micro_batches), training.PARTS_REASON),
    Check("two slots on one GPU", _of_device(sharing.shared_gpu), sharing.SHARED_REASON),
    Check("two data-parallel GPUs", _on_two_gpus, sharing.WORKERS_REASON, gpus=2),
)
HALVES = Check("a sweep on half GPUs", _of_device(sweep.on_half_gpus), sweep.REASON)


def _rows(rows: list[throughput.Row]) -> list[Check]:
    return [Check(row.name, functools.partial(throughput.throughput, row), throughput.PUBLISHED_REASON) for row in rows]


CHECKS = (*CORRECTNESS, *_rows(throughput.EAGER), HALVES, *_rows(throughput.COMPILED))
"""All checks in the order in which they are run: those that take long, and may not be reached, come last."""


def run(
    checks: Iterable[Check], device: torch.device, seconds: float, keep: Callable[[list[Outcome]], None]
) -> list[Outcome]:
    """Run checks one after the other, as long as the time lasts.

    Args:
        seconds: time budget of all checks together.
        keep: called with all outcomes so far after each check.
    """
    end, outcomes = time.monotonic() + seconds, []
    for check in checks:
        print(f"{check.name} …", flush=True)
        outcomes.append(outcome_of(check, device, end - time.monotonic()))
        print(f"  {summary(outcomes[-1])}", flush=True)
        keep(outcomes)
    return outcomes


def outcome_of(check: Check, device: torch.device, seconds: float) -> Outcome:
    """Run one check; an error fails it, without enough time or GPUs it is not run."""
    if check.gpus > (available := torch.cuda.device_count() if device.type == "cuda" else 1):
        return Outcome(check.name, NOT_RUN, 0.0, reason=f"needs {check.gpus} GPUs, this machine has {available}")
    if seconds <= 0:
        return Outcome(check.name, NOT_RUN, 0.0, reason="not reached: the time budget was spent")
    began = time.monotonic()
    try:
        figures = check.measure(device, seconds)
    except NotReached as error:
        return Outcome(check.name, NOT_RUN, time.monotonic() - began, reason=f"not reached: {error}")
    except Exception as error:  # whatever goes wrong, the other checks still say something
        traceback.print_exc()
        line = (str(error).strip().splitlines() or [""])[0]
        return Outcome(check.name, FAILED, time.monotonic() - began, reason=f"{type(error).__name__}: {line}")
    verdict = PASSED if figures and all(figure.passes for figure in figures) else FAILED
    return Outcome(check.name, verdict, time.monotonic() - began, figures, check.reason)


def summary(outcome: Outcome) -> str:
    """Describe an outcome in one line: the figure closest to its limit, or the reason why none was measured."""
    if not outcome.figures:
        return f"{outcome.verdict}: {outcome.reason}"
    figure = worst(outcome.figures)
    limit = "" if figure.limit is None else f" (at most {figure.limit:.3g})"
    return f"{outcome.verdict} in {outcome.seconds:.0f} s: {figure.name} {figure.value:.3g}{limit}"


def worst(figures: list[Figure]) -> Figure:
    """Return the figure that fails or, if none does, the one closest to its limit."""

    def share(figure: Figure) -> float:
        if not figure.passes:
            return float("inf")
        return figure.value / figure.limit if figure.limit else 0.0

    return max(figures, key=share)

"""Phases of an optimizer step, marked in the code so that a recorder can measure each of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

PHASES = {
    "batch": "data, noise and times",
    "guidance": "velocities without gradient for classifier-free guidance",
    "forward": "network outputs with gradient",
    "target": "the second network output of a finite difference, or the Jacobian-vector product",
    "backward": "gradients",
    "optimizer": "the update of the weights",
    "ema": "the update of their moving average",
}
"""Phases in the order of a step, with descriptions."""


class Recorder(Protocol):
    """Interface of an object that measures each phase."""

    def phase(self, name: str) -> AbstractContextManager[None]: ...


_recorder: Recorder | None = None


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Mark a phase of the step (a key of PHASES), at no cost without a recorder."""
    if _recorder is None:
        yield
        return
    with _recorder.phase(name):
        yield


@contextmanager
def recorded_by(recorder: Recorder) -> Iterator[None]:
    """Report every phase inside the block to a recorder."""
    global _recorder
    before, _recorder = _recorder, recorder
    try:
        yield
    finally:
        _recorder = before

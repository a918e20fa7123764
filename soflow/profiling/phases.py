"""The parts of an optimiser step, marked where they happen so that whoever measures can tell them apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

PARTS = {
    "batch": "data, noise and times",
    "guidance": "velocities without gradient for classifier-free guidance",
    "forward": "network outputs with gradient",
    "target": "the second network output of a quotient, or the Jacobian-vector product",
    "backward": "gradients",
    "optimizer": "the update of the weights",
    "ema": "the update of their moving average",
}
"""In the order in which a step goes through them."""


class Recorder(Protocol):
    """Measures what happens inside a part."""

    def part(self, name: str) -> AbstractContextManager[None]: ...


_recorder: Recorder | None = None


@contextmanager
def part(name: str) -> Iterator[None]:
    """Inside, the step is in this part (a key of PARTS); costs nothing while nobody records."""
    if _recorder is None:
        yield
        return
    with _recorder.part(name):
        yield


@contextmanager
def recorded_by(recorder: Recorder) -> Iterator[None]:
    """Inside, the recorder is told of every part."""
    global _recorder
    before, _recorder = _recorder, recorder
    try:
        yield
    finally:
        _recorder = before

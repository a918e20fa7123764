"""Time per optimizer step."""

from __future__ import annotations

import statistics
import time
from itertools import pairwise

import torch

WARMUP_STEPS = 5
"""Steps at the start of a process that are not counted, while allocators and kernels warm up."""


class StepClock:
    """Clock for the median step time between `start_step` calls and `stop`, without synchronization in the loop."""

    def __init__(self, device: torch.device):
        self.device = device
        self._num_steps = 0
        self._marks: list = []
        self._timed: list[float] = []
        """Milliseconds of the steps up to the last pause since the last `stop`."""
        self._steps_ms: list[float] = []

    def start_step(self) -> None:
        self._marks.append(self._now())

    def pause(self) -> None:
        """End a step that is followed by something else before the next one."""
        marks, self._marks = [*self._marks, self._now()], []
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            steps = [a.elapsed_time(b) for a, b in pairwise(marks)]
        else:
            steps = [(b - a) * 1e3 for a, b in pairwise(marks)]
        self._timed += steps

    def stop(self) -> None:
        self.pause()
        steps, self._timed = self._timed, []
        warmup = min(max(WARMUP_STEPS - self._num_steps, 0), len(steps) - 1)
        self._num_steps += len(steps)
        self._steps_ms = steps[warmup:]

    def median_ms(self) -> float:
        """Return the median milliseconds per step up to the last `stop`, without warm-up steps."""
        return statistics.median(self._steps_ms)

    def _now(self):
        if self.device.type == "cuda":
            # Events are timestamped on the device, so recording one does not wait for it.
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self.device))
            return event
        return time.perf_counter()

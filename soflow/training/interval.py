"""What a run has measured since its last report, and when it saves a checkpoint before the next one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from soflow.training.curve import Reduce, TermTotals

NEVER = torch.iinfo(torch.int64).max
CHECK_S = 2.0
"""Seconds between two decisions whether to save a checkpoint; each waits for the device once."""
NOTICE_S = 10.0
"""Seconds between checkpoints once the machine has announced its end."""


@dataclass
class Interval:
    """Measurements of the optimizer steps since the last report, of one worker, on its device."""

    begin: int
    """Step of the last report."""
    first_bad: Tensor
    """First step whose loss was infinite or NaN, counted from 1; NEVER if none was."""
    totals: TermTotals = field(default_factory=TermTotals)
    gradients: list[Tensor] = field(default_factory=list)
    """Norm of every step's gradient."""

    @classmethod
    def after(cls, step: int, device: torch.device) -> Interval:
        """Begin an interval after this step."""
        return cls(step, torch.full((), NEVER, device=device))

    def state(self) -> dict[str, Any]:
        """Return the measurements for a checkpoint, on the CPU."""
        return {
            "begin": self.begin,
            "first_bad": self.first_bad.cpu(),
            "gradients": torch.stack(self.gradients).cpu(),
            "totals": _moved(self.totals.totals, "cpu"),
            "points": [(step, _moved(totals, "cpu")) for step, totals in self.totals.points],
        }

    @classmethod
    def of_state(cls, state: dict[str, Any], device: torch.device) -> Interval:
        """Restore the measurements of `state`."""
        points = [(step, _moved(totals, device)) for step, totals in state["points"]]
        totals = TermTotals(_moved(state["totals"], device), points)
        gradients = list(state["gradients"].to(device).unbind())
        return cls(state["begin"], state["first_bad"].to(device), totals, gradients)


def _moved(tensors: dict[str, Tensor], device: torch.device | str) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in tensors.items()}


class CheckpointTimer:
    """Decides after which steps a run saves a checkpoint between reports, equally on all workers.

    Args:
        every_s: seconds between checkpoints.
        reduce: all-reduce over the workers.
        notice: called on all workers alike; True once the machine of one of them has announced its end.
    """

    def __init__(
        self, every_s: float, reduce: Callable[[Tensor, str], Tensor], notice: Callable[[], bool], device: torch.device
    ):
        self.every_s, self.notice, self.device = every_s, notice, device
        self._reduce: Reduce = reduce
        self._saved = self._checked = time.monotonic()
        self._noticed = False
        self._steps, self._left = 1, 1

    def saved(self) -> None:
        """Start to count: a checkpoint was saved."""
        self._saved = time.monotonic()

    def due(self) -> bool:
        """Decide after a step; call it after every one."""
        self._left -= 1
        if self._left > 0:
            return False
        noticed_now = self.notice() and not self._noticed
        self._noticed |= noticed_now
        now = time.monotonic()
        limit = min(self.every_s, NOTICE_S) if self._noticed else self.every_s
        wanted = noticed_now or now - self._saved >= limit
        # MIN over the workers: of minus the wish, and of the steps that fit into the time to the next check.
        steps = self._steps * CHECK_S / max(now - self._checked, 1e-6)
        votes = torch.tensor([-float(wanted), min(steps, 2.0 * self._steps)], dtype=torch.float64, device=self.device)
        vote, steps = self._reduce(votes, "MIN").tolist()
        self._steps = self._left = max(1, int(steps))
        self._checked = now
        return vote < 0

"""Messages between the driver and the training workers of a run.

In a module of their own, because the mailbox process unpickles them: it must not import Ray Train or torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from soflow.config import RunConfig
from soflow.training.reports import Report


@dataclass(frozen=True)
class Request:
    """Train `config` in `directory` from its checkpoint at `start` (0: from scratch) to the next report."""

    config: RunConfig
    directory: Path
    start: int
    micro_batches: int = 1
    """Parts into which each worker splits its samples of a step."""


@dataclass(frozen=True)
class Answer:
    """Outcome of a request: a report, or the reason of a failure."""

    step: int
    report: Report | None = None
    """None on failure, and on ranks other than 0."""
    failure: str | None = None
    """One line; None on success."""
    out_of_memory: bool = False
    """Whether it failed because an optimizer step did not fit into memory."""
    details: str = ""
    """Traceback of an unexpected failure."""

    @property
    def reported(self) -> Report:
        """The report of a request that succeeded, from rank 0."""
        assert self.report is not None
        return self.report

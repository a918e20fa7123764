"""The owner's side of training: one run's reports, one after another, whatever happens to the workers meanwhile."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from soflow.config import RunConfig, to_dict
from soflow.training import reports

if TYPE_CHECKING:
    from orchestration.workers.group import WorkerGroup
    from orchestration.workers.training import Answer, Request

LOG = logging.getLogger(__name__)


@dataclass
class FollowedRun:
    """A run in its folder, as far as its reports have been received.

    A report that was made before, but lost with whoever asked for it, is read from the folder. A step that does not fit
    into the workers' memory is tried again in twice as many micro-batches, down to one sample at a time.
    """

    config: RunConfig
    folder: Path
    num_workers: int
    step: int = 0
    """Optimiser steps reported."""
    micro_batches: int = 1
    taken_over: int = 0
    """Step at which it goes on from another run's checkpoint, which lies in its folder as its own; 0 if it does not."""

    def next_report(self, group: WorkerGroup) -> Answer:
        """The next report, or the reason why there is none.

        Raises:
            RayError: if the group is gone for good.
        """
        from orchestration.workers.training import Answer

        if known := reports.recorded(self.config, self.folder, self.step):
            answer = Answer(known.step, known.metrics, known.facts, known.grids, known.finished)
        else:
            while (answer := self._ask(group)).out_of_memory and self._take_smaller_parts():
                LOG.warning("%s: %s; trying %d micro-batches", self.folder, answer.failure, self.micro_batches)
        if not answer.failure:
            self.step = answer.step
        return answer

    def _ask(self, group: WorkerGroup) -> Answer:
        from orchestration.workers.group import RequestFailed
        from orchestration.workers.mailbox import OUT_OF_MEMORY
        from orchestration.workers.training import Answer

        try:
            return group.ask(self._request())
        except RequestFailed as error:
            return Answer(self.step, failure=str(error), out_of_memory=OUT_OF_MEMORY in str(error))

    def _request(self) -> Request:
        from orchestration.workers.training import Request

        return Request(to_dict(self.config), str(self.folder), self.step, self.micro_batches, self.taken_over)

    def _take_smaller_parts(self) -> bool:
        """Halve the micro-batch; False if it is one sample already."""
        samples = self.config.training.batch_size // self.num_workers
        before, self.micro_batches = self.micro_batches, min(2 * self.micro_batches, samples)
        return self.micro_batches > before

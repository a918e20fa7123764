"""The driver's side of training: the reports of one run in order, whatever happens to the workers."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from orchestration.workers.group import RequestFailed, WorkerGroup
from orchestration.workers.mailbox import OUT_OF_MEMORY
from orchestration.workers.messages import Answer, Request
from soflow.config import RunConfig
from soflow.training import reports

LOG = logging.getLogger(__name__)


@dataclass
class FollowedRun:
    """A run in its folder, up to the last report received.

    A report that exists already, but was lost with an interrupted process, is read from the folder. A step that does
    not fit into memory is tried again in twice as many micro-batches, down to one sample each.
    """

    config: RunConfig
    folder: Path
    num_workers: int
    step: int = 0
    """Optimizer steps reported."""
    micro_batches: int = 1

    def next_report(self, group: WorkerGroup) -> Answer:
        """Return the next report, or the reason of a failure.

        Raises:
            RayError: if the group is gone for good.
        """
        if report := reports.load_report(self.config, self.folder, self.step):
            answer = Answer(report.step, report)
        else:
            while (answer := self._ask(group)).out_of_memory and self._double_micro_batches():
                LOG.warning("%s: %s; trying %d micro-batches", self.folder, answer.failure, self.micro_batches)
        if not answer.failure:
            self.step = answer.step
        return answer

    def _ask(self, group: WorkerGroup) -> Answer:
        try:
            return group.ask(Request(self.config, self.folder, self.step, self.micro_batches))
        except RequestFailed as error:
            return Answer(self.step, failure=str(error), out_of_memory=OUT_OF_MEMORY in str(error))

    def _double_micro_batches(self) -> bool:
        """Halve the micro-batch; False if it is one sample already."""
        samples = self.config.training.batch_size // self.num_workers
        before, self.micro_batches = self.micro_batches, min(2 * self.micro_batches, samples)
        return self.micro_batches > before

"""One slot of a sweep: a Tune trainable that keeps its worker group alive from trial to trial."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import tune

from orchestration.config import ResourcesConfig
from orchestration.memory_fit import Room, micro_batches_that_fit
from orchestration.storage import trial_folder
from orchestration.sweep.ray_search import RESULT_REASON, RESULT_STATUS, current_point
from orchestration.sweep.search_space import trial_config
from orchestration.workers.follow import FollowedRun
from orchestration.workers.training import Answer, training_group
from soflow.config import RunConfig, override, parse, to_dict
from soflow.config_base import ConfigError
from soflow.statistics import mean_interval

LOG = logging.getLogger(__name__)


class TrialSlot(tune.Trainable):
    """Runs the trials that Tune gives it, one report per `step`.

    A trial is one run, unless it has rungs before or more seeds after it. Each rung is a shorter run of its own, from
    scratch and over all of its schedule, and yields one result. Further seeds are trained when the trial has reached
    its last step, and their mean is its last result. All of these runs keep their reports in their folders, so that
    nothing is trained twice if this process is lost.

    Tune discards the process of a trial that raises, and with it the warm workers. So a trial that fails by its own
    fault ends with a result that says so.
    """

    def setup(
        self,
        config: dict[str, Any],
        base: RunConfig,
        cases: tuple[str, ...],
        resources: ResourcesConfig,
        sweep_folder: Path,
        there: Room,
        rungs: tuple[int, ...],
        seeds: int,
        restarts: int,
    ) -> None:
        self.base, self.cases, self.sweep_folder = base, cases, sweep_folder
        self.resources, self.room = resources, there
        self.earlier_rungs, self.seeds = rungs[:-1], seeds
        self.group = training_group(resources, sweep_folder, f"group-{uuid.uuid4().hex[:8]}", restarts)
        self._begin(config)

    def _begin(self, trial: dict[str, Any]) -> None:
        self.trial, self.rungs_done, self.micro_batches = trial, 0, 1
        self.taken_over = self.done_steps = trial.get("exchange", {"step": 0})["step"]

    def step(self) -> dict[str, Any]:
        try:
            config = trial_config(self.base, current_point(self.trial), self.cases)
            parts = micro_batches_that_fit(config, self.room, self.resources.num_workers)
            self.micro_batches = max(self.micro_batches, parts)
        except ConfigError as error:
            return self._failed(Answer(0, failure=str(error)))
        folder = trial_folder(self.sweep_folder, self.trial["number"])
        if self.rungs_done < len(self.earlier_rungs):
            return self._next_rung(config, folder)
        run = self._run(config, folder, self.done_steps, self.taken_over)
        answer = self._follow(run)
        if answer.failure:
            return self._failed(answer)
        self.done_steps = answer.step
        if not answer.finished:
            return self._result(answer, answer.metrics)
        return self._end(config, folder, answer)

    def _next_rung(self, config: RunConfig, folder: Path) -> dict[str, Any]:
        """The result of a shorter run to its end; its metrics have names of their own beside the trial's."""
        steps = self.earlier_rungs[self.rungs_done]
        shorter = parse(override(to_dict(config), {"training.total_steps": steps}))
        answer = self._to_the_end(self._run(shorter, folder / f"rung-{steps}"))
        if answer.failure:
            return self._failed(replace(answer, failure=f"rung of {steps} steps: {answer.failure}"))
        self.rungs_done += 1
        metrics = {f"rung/{name}": value for name, value in answer.metrics.items()}
        return self._result(replace(answer, finished=False), metrics)

    def _end(self, config: RunConfig, folder: Path, first: Answer) -> dict[str, Any]:
        """The trial's last result, after the other seeds' runs."""
        ends = [first.metrics]
        for number in range(1, self.seeds):
            other = config.model_copy(update={"seed": config.seed + number})
            answer = self._to_the_end(self._run(other, folder / f"seed-{number}"))
            if answer.failure:
                return self._failed(replace(answer, failure=f"seed {other.seed}: {answer.failure}"))
            ends.append(answer.metrics)
        return self._result(first, over_seeds(ends))

    def _run(self, config: RunConfig, folder: Path, step: int = 0, taken_over: int = 0) -> FollowedRun:
        return FollowedRun(config, folder, self.resources.num_workers, step, self.micro_batches, taken_over)

    def _follow(self, run: FollowedRun) -> Answer:
        answer = run.next_report(self.group)
        self.micro_batches = run.micro_batches
        return answer

    def _to_the_end(self, run: FollowedRun) -> Answer:
        """A run's last report, or the reason why there is none."""
        while not ((answer := self._follow(run)).failure or answer.finished):
            pass
        return answer

    def _result(self, answer: Answer, metrics: dict[str, float]) -> dict[str, Any]:
        return {
            **answer.metrics,
            **metrics,
            "step": answer.step,
            RESULT_STATUS: "finished" if answer.finished else "running",
            RESULT_REASON: "",
            "done": answer.finished,
            "metrics": metrics,
            "facts": answer.facts,
            "grids": {name: str(path) for name, path in answer.grids.items()},
        }

    def _failed(self, answer: Answer) -> dict[str, Any]:
        return {
            "fid": float("nan"),
            "step": answer.step,
            RESULT_STATUS: "failed",
            RESULT_REASON: answer.failure,
            "done": True,
            "details": answer.details,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, int]:
        """The workers wrote the real checkpoints into the runs' folders before they reported."""
        return {"rungs": self.rungs_done, "step": self.done_steps, "micro_batches": self.micro_batches}

    def restore(self, checkpoint_path: Any) -> None:
        """As Tune does, unless it has deleted what it remembers: a killed program's snapshot may be older than that.

        Then the trial begins anew, and the reports that it made are read from its folder.
        """
        try:
            super().restore(checkpoint_path)
        except (ValueError, OSError) as error:
            LOG.warning("trial %d: %s", self.trial["number"], error)

    def load_checkpoint(self, checkpoint: dict[str, int]) -> None:
        self.rungs_done, self.done_steps = checkpoint["rungs"], checkpoint["step"]
        self.micro_batches = checkpoint["micro_batches"]

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config)
        return True

    def cleanup(self) -> None:
        self.group.close()


def over_seeds(metrics: Sequence[dict[str, float]]) -> dict[str, float]:
    """Combine the final metrics of several seeds of one configuration.

    The result has the first seed's metrics, the mean FID of all seeds as `fid`, its 95 % interval and each seed's FID.
    """
    if len(metrics) == 1:
        return dict(metrics[0])
    fids = [seed["fid"] for seed in metrics]
    mean, low, high = mean_interval(fids)
    by_seed = {f"fid/seed_{number}": fid for number, fid in enumerate(fids)}
    return metrics[0] | {"fid": mean, "fid/mean": mean, "fid/low": low, "fid/high": high} | by_seed

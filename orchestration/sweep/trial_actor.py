"""One slot of a sweep: a Tune trainable that keeps its worker group alive from trial to trial."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import tune

from orchestration.config import ResourcesConfig
from orchestration.memory_fit import MemoryBudget, micro_batches_that_fit
from orchestration.storage import trial_folder
from orchestration.store.location import on_this_machine
from orchestration.store.runs import CHECKPOINTS, fetch_run
from orchestration.sweep.cases import Case
from orchestration.sweep.ray_search import REASON, STATUS
from orchestration.sweep.ticket import TrialTicket, trial_config
from orchestration.workers.follow import FollowedRun
from orchestration.workers.messages import Answer
from orchestration.workers.training import training_group
from soflow.config import RunConfig, override, parse, to_dict
from soflow.config_base import ConfigError
from soflow.statistics import mean_interval


class TrialActor(tune.Trainable):
    """Runs the trials that Tune gives it, one report per `step`.

    A trial is one run, unless it has rungs before or more seeds after it. Each rung is a shorter run from scratch over
    the whole schedule, and yields one result. Further seeds are trained when the trial has reached its last step; their
    mean is its last result. All these runs keep their reports in their folders, so that nothing is trained twice if
    this process is lost: another one begins again and reads them.

    Tune discards the process of a trial that raises, and with it the warm workers. So a trial that fails by its own
    fault ends with a result that says so.
    """

    def setup(
        self,
        config: dict[str, Any],
        base: RunConfig,
        cases: tuple[Case, ...],
        resources: ResourcesConfig,
        sweep_folder: Path,
        budget: MemoryBudget,
        rungs: tuple[int, ...],
        seeds: int,
        restarts: int,
    ) -> None:
        self.base, self.cases, self.sweep_folder = base, cases, on_this_machine(sweep_folder)
        self.resources, self.budget = resources, budget
        self.earlier_rungs, self.seeds = rungs[:-1], seeds
        self.group = training_group(resources, sweep_folder, f"group-{uuid.uuid4().hex[:8]}", restarts)
        self._begin(config)

    def _begin(self, config: dict[str, Any]) -> None:
        self.ticket = TrialTicket.from_tune(config)
        self.rungs_done, self.steps_done, self.micro_batches = 0, 0, 1

    def step(self) -> dict[str, Any]:
        try:
            config = trial_config(self.base, self.ticket.point, self.cases)
            needed = micro_batches_that_fit(config, self.budget, self.resources.num_workers)
            self.micro_batches = max(self.micro_batches, needed)
        except ConfigError as error:
            return self._failed(Answer(0, failure=str(error)))
        folder = trial_folder(self.sweep_folder, self.ticket.number)
        if self.rungs_done < len(self.earlier_rungs):
            return self._next_rung(config, folder)
        answer = self._follow(self._run(config, folder, self.steps_done))
        if answer.failure:
            return self._failed(answer)
        self.steps_done = answer.step
        if not answer.reported.finished:
            return self._result(answer, answer.reported.metrics)
        return self._end(config, folder, answer)

    def _next_rung(self, config: RunConfig, folder: Path) -> dict[str, Any]:
        """Train a shorter run to its end and return its result."""
        steps = self.earlier_rungs[self.rungs_done]
        shorter = parse(override(to_dict(config), {"training.total_steps": steps}))
        answer = self._to_the_end(self._run(shorter, folder / f"rung-{steps}"))
        if answer.failure:
            return self._failed(replace(answer, failure=f"rung of {steps} steps: {answer.failure}"))
        self.rungs_done += 1
        return self._result(answer, answer.reported.metrics, is_rung=True)

    def _end(self, config: RunConfig, folder: Path, first: Answer) -> dict[str, Any]:
        """Train the other seeds and return the trial's last result."""
        metrics = [first.reported.metrics]
        for number in range(1, self.seeds):
            other = config.model_copy(update={"seed": config.seed + number})
            answer = self._to_the_end(self._run(other, folder / f"seed-{number}"))
            if answer.failure:
                return self._failed(replace(answer, failure=f"seed {other.seed}: {answer.failure}"))
            metrics.append(answer.reported.metrics)
        return self._result(first, over_seeds(metrics))

    def _run(self, config: RunConfig, folder: Path, step: int = 0) -> FollowedRun:
        if step == 0:  # once per run: a resumed sweep's reports may be in a store
            fetch_run(folder, CHECKPOINTS)
        return FollowedRun(config, folder, self.resources.num_workers, step, self.micro_batches)

    def _follow(self, run: FollowedRun) -> Answer:
        answer = run.next_report(self.group)
        self.micro_batches = run.micro_batches
        return answer

    def _to_the_end(self, run: FollowedRun) -> Answer:
        """Return a run's last report, or the reason of a failure."""
        while not ((answer := self._follow(run)).failure or answer.reported.finished):
            pass
        return answer

    def _result(self, answer: Answer, metrics: dict[str, float], is_rung: bool = False) -> dict[str, Any]:
        """Make the result for Tune; `fid` and `done` are keys of Tune's, the rest is ours."""
        report, finished = answer.reported, answer.reported.finished and not is_rung
        return {
            "fid": metrics["fid"],
            "step": answer.step,
            STATUS: "finished" if finished else "running",
            REASON: "",
            "done": finished,
            "metrics": metrics,
            "curve": report.curve,
            "is_rung": is_rung,
            "facts": report.facts,
            "grids": {name: str(path) for name, path in report.grids.items()},
        }

    def _failed(self, answer: Answer) -> dict[str, Any]:
        return {
            "fid": float("nan"),
            "step": answer.step,
            STATUS: "failed",
            REASON: answer.failure,
            "done": True,
            "metrics": {},
            "details": answer.details,
        }

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

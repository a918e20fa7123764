"""One slot of a sweep: a Tune trainable that keeps its worker group alive from trial to trial."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from ray import tune

from orchestration.config import ResourcesConfig
from orchestration.folders import trial_folder
from orchestration.search import RESULT_REASON, RESULT_STATUS
from orchestration.search_space import trial_config
from orchestration.training_worker import Request, training_group
from soflow.config import RunConfig, to_dict
from soflow.sections import ConfigError


class TrialSlot(tune.Trainable):
    """Runs the trials that Tune gives it, one report per `step`.

    Tune discards the process of a trial that raises, and with it the warm workers. So a trial that fails by its own
    fault ends with a result that says so.
    """

    def setup(self, config: dict[str, Any], base: RunConfig, resources: ResourcesConfig, sweep_folder: Path) -> None:
        self.base, self.sweep_folder = base, sweep_folder
        self.group = training_group(resources, sweep_folder, f"group-{uuid.uuid4().hex[:8]}")
        self._begin(config)

    def _begin(self, trial: dict[str, Any]) -> None:
        self.trial, self.done_steps = trial, 0

    def step(self) -> dict[str, Any]:
        try:
            config = trial_config(self.base, self.trial["point"])
        except ConfigError as error:
            return self._result(0, str(error), failed=True)
        folder = trial_folder(self.sweep_folder, self.trial["number"])
        answer = self.group.ask(Request(to_dict(config), str(folder), self.done_steps))
        if answer.failure:
            return self._result(answer.step, answer.failure, failed=True) | {"details": answer.details}
        self.done_steps = answer.step
        return self._result(answer.step, "", finished=answer.finished) | {
            **answer.metrics,
            "metrics": answer.metrics,
            "facts": answer.facts,
            "grid": answer.grid,
        }

    def _result(self, step: int, reason: str, failed: bool = False, finished: bool = False) -> dict[str, Any]:
        status = "failed" if failed else "finished" if finished else "running"
        return {
            "fid": float("nan"),
            "step": step,
            RESULT_STATUS: status,
            RESULT_REASON: reason,
            "done": status != "running",
        }

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, int]:
        """The workers wrote the real checkpoint into the trial's folder before they reported."""
        return {"step": self.done_steps}

    def load_checkpoint(self, checkpoint: dict[str, int]) -> None:
        self.done_steps = checkpoint["step"]

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config)
        return True

    def cleanup(self) -> None:
        self.group.close()

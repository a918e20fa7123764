"""Population-based training (Jaderberg et al., arXiv 1711.09846): all trials train side by side, in turns.

After every `grace_reports` reports they wait for each other. Then each of the worst quarter goes on with the weights,
optimiser and point of one of the best quarter, and with another guidance: m and w are multiplied by 0.8 or 1.2, or
drawn anew. What a trial's m and w were is so a function of its steps.

Because they wait, decisions do not depend on how fast trials were, nor on how many run at a time. They are functions of
the values in the study and the sweep's seed, and are recorded there before a trial acts on them. What is exchanged is
in the trials' folders first: should the program be lost in between, the same decisions are made again.
"""

from __future__ import annotations

import math
import random
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler

from orchestration.config import SweepConfig
from orchestration.storage import trial_folder
from orchestration.sweep.pruning import grace_steps
from orchestration.sweep.ray_search import StudySearch
from orchestration.sweep.search_space import Dimension, SearchSpace
from orchestration.sweep.study import Exchange
from soflow.config_base import ConfigError

GUIDANCE = (
    "objective.guidance_strength",
    "objective.velocity_mix",
    "objective.guidance_omega",
    "objective.guidance_kappa",
)
"""What changes while a network trains: SoFlow's w and m, MeanFlow's ω and κ."""
QUANTILE = 4
"""One in this many trials is replaced, and one in this many passes on what it has."""
FACTORS = 0.8, 1.2
REDRAWN = 0.25
"""Probability that a value is drawn anew instead of multiplied."""


def check_population(config: SweepConfig, space: SearchSpace) -> None:
    """Make sure that a sweep can be a population.

    Raises:
        ConfigError: naming the field.
    """
    if not any(dimension.path in GUIDANCE and not dimension.choices for dimension in space.dimensions):
        raise ConfigError(
            f"early_stopping.kind = pbt: changes {' and '.join(GUIDANCE[:2])} (or MeanFlow's), none of which is "
            "searched as a range"
        )
    if config.num_trials < 2:
        raise ConfigError(f"num_trials = {config.num_trials}: pbt needs two trials or more")
    if config.seeds_per_trial > 1:
        raise ConfigError(f"seeds_per_trial = {config.seeds_per_trial}: must be 1 with pbt, whose trials change")
    if config.early_stopping.compare != "equal_steps":
        raise ConfigError("early_stopping.compare = equal_progress: must be equal_steps with pbt")


def is_exchange(config: SweepConfig, step: int) -> bool:
    """Whether trials wait for each other at this step."""
    every = grace_steps(config)
    return config.early_stopping.kind == "pbt" and step % every == 0 and 0 < step < config.training.total_steps


def guidance_of(config: SweepConfig, point: dict[str, Any]) -> dict[str, float]:
    """What changes while a trial of a population trains, as metrics; nothing in other sweeps."""
    if config.early_stopping.kind != "pbt":
        return {}
    return {f"point/{path}": value for path, value in point.items() if path in GUIDANCE}


def decide(
    config: SweepConfig,
    space: SearchSpace,
    step: int,
    values: dict[int, float],
    points: dict[int, dict[str, Any]],
) -> dict[int, Exchange]:
    """Who goes on from whom.

    Args:
        values: FID (or the first goal) of each trial at this step, lower is better.
        points: of each trial up to this step.
    """
    ranked = sorted(values, key=lambda number: (values[number], number))
    several = max(1, len(ranked) // QUANTILE) if len(ranked) > 1 else 0
    exchanges = {}
    for number in ranked[len(ranked) - several :]:
        draws = random.Random(f"{config.seed}/{step}/{number}")
        donor = draws.choice(ranked[:several])
        changed = {d.path: _explore(d, points[donor][d.path], draws) for d in space.dimensions if d.path in GUIDANCE}
        exchanges[number] = Exchange(step, donor, points[donor] | changed)
    return exchanges


def _explore(dimension: Dimension, value: Any, draws: random.Random) -> Any:
    """Another value near this one, or anywhere in the dimension."""
    if dimension.choices:
        return draws.choice(dimension.choices) if draws.random() < REDRAWN else value
    if draws.random() >= REDRAWN:
        found = value * draws.choice(FACTORS)
    elif dimension.log:
        found = math.exp(draws.uniform(math.log(dimension.low), math.log(dimension.high)))
    else:
        found = draws.uniform(dimension.low, dimension.high)
    found = min(max(found, dimension.low), dimension.high)
    return round(found) if dimension.integer else found


class PopulationTraining(FIFOScheduler):
    """Tune's scheduler: pauses trials where they wait for each other, and lets them go on with what was decided."""

    def __init__(self, search: StudySearch):
        super().__init__()
        self.search, self.study = search, search.study
        self.exchanged: set[int] = set()
        """Steps whose exchanges are made."""

    def __reduce__(self):
        return PopulationTraining, (self.search,)

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        self.search.hold(trial)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        self.study.report(trial.config["number"], result["step"], result)
        return self.PAUSE if is_exchange(self.study.config, result["step"]) else self.CONTINUE

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        trials = tune_controller.get_trials()
        waiting = [trial for trial in trials if trial.status == Trial.PAUSED]
        for trial in waiting:
            self.search.pause(trial)
        chosen = next((trial for trial in trials if trial.status == Trial.PENDING), None)
        if chosen is not None or not self.search.has_room:
            return chosen
        for trial in sorted(waiting, key=lambda trial: (trial.last_result["step"], trial.config["number"])):
            if self._exchange(trial.last_result["step"], trials):
                trial.set_config(self.study.tune_config(trial.config["number"]))
                self.search.hold(trial)
                return trial
        return None

    def _exchange(self, step: int, trials: list[Trial]) -> bool:
        """Make the exchanges of a step, once all trials have come there; False if some have not."""
        if step in self.exchanged:
            return True
        study, config = self.study, self.study.config
        if len(trials) < config.num_trials:
            return False
        values = {}
        for trial in trials:
            number = trial.config["number"]
            value = study.record(number).intermediate_values.get(step)
            here = trial.status == Trial.PAUSED and trial.last_result["step"] == step
            if value is None and not here and not trial.is_finished():
                return False
            if here or value is not None:
                values[number] = math.inf if value is None else value
        points = {number: study.point_at(number, step) for number in values}
        for number, exchange in decide(config, study.space, step, values, points).items():
            self._make(number, exchange)
        self.exchanged.add(step)
        return True

    def _make(self, number: int, exchange: Exchange) -> None:
        from soflow.training.checkpoints import take_over  # imports torch

        if any(made.step >= exchange.step for made in self.study.exchanges(number)) or self.study.is_over(number):
            return  # before the program was lost
        folder = self.study.folder
        take_over(trial_folder(folder, exchange.donor), trial_folder(folder, number), exchange.step)
        self.study.exchange(number, exchange)

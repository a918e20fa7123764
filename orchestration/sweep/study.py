"""A sweep's Optuna study: which trials there are, what they reported, how they ended.

All that search and early stopping must remember is in the study's storage and nowhere else, and is written there before
Ray Tune acts on it. So nothing is lost with a process, and a resumed sweep goes on from the storage alone.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import check_distribution_compatibility
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from orchestration.config import SweepConfig, read_case, read_constraint
from orchestration.storage import SWEEP_FILE
from orchestration.sweep import search_space
from orchestration.sweep.hypotheses import read_hypothesis
from orchestration.sweep.samplers import check_sampler, make_sampler
from soflow.config_base import ConfigError
from soflow.config_files import read_yaml

STUDY = "sweep"
"""The study's name in a journal, which holds one sweep; in a database it is the sweep's."""
STUDY_FILE = "study.journal"
REASON, STOPPED_AT, EXCHANGES = "reason", "stopped_at_step", "exchanges"
"""Attributes of trials: why it failed, the step at which it was decided to stop it, what it took over from others."""


@dataclass(frozen=True)
class Exchange:
    """In population-based training: from `step` on a trial goes on with what trial `donor` had there, elsewhere."""

    step: int
    donor: int
    point: dict[str, Any]


class SweepStudy:
    """The one object that knows a sweep's study; search and early stopping share it.

    Pickled, it is the sweep's folder: where it is loaded it opens sweep.yaml and the study again.

    Args:
        config: of the sweep, with `num_trials` resolved.
        folder: the sweep's.
    """

    def __init__(self, config: SweepConfig, folder: Path):
        self.config, self.folder = config, folder
        self.space = search_space.build(config)
        self.constraints = [read_constraint(constraint) for constraint in config.constraints]
        if config.study_storage is None:
            mend_journal(folder / STUDY_FILE)
        self.storage, name = open_storage(config.study_storage, folder), study_name(config, folder)
        self.study = self._open(name, goals=len(config.goals))
        self.records = self.study
        """The study that holds reports. Optuna takes none for several goals: then it is one of the first goal."""
        if len(config.goals) > 1:
            self.records = self._open(f"{name}-stopping", goals=1)
        known = search_space.known_points(config, self.space)[: config.num_trials]
        for point in known[len(self.trials()) :]:
            self.study.enqueue_trial(point)

    def _open(self, name: str, goals: int) -> optuna.Study:
        return optuna.create_study(
            storage=self.storage,
            study_name=name,
            directions=["minimize"] * goals,
            sampler=make_sampler(self.config, 0),
            pruner=optuna.pruners.NopPruner(),
            load_if_exists=True,
        )

    @classmethod
    def of(cls, folder: Path) -> SweepStudy:
        return cls(SweepConfig.model_validate(read_yaml(folder / SWEEP_FILE)), folder)

    def __reduce__(self):
        return SweepStudy.of, (self.folder,)

    def trials(self) -> list[FrozenTrial]:
        """All trials by number; those that wait to be suggested too."""
        return self.study.get_trials(deepcopy=False)

    def next_trial(self, held: set[int]) -> dict[str, Any] | None:
        """The next trial's configuration for Tune, None if there is to be none.

        First come trials of the study that Tune does not hold: they were suggested after its last snapshot before an
        abrupt end, and are taken up again as they were.
        """
        trials = self.trials()
        waiting = [trial.number for trial in trials if trial.state == TrialState.WAITING]
        for trial in trials:
            if trial.state != TrialState.WAITING and trial.number not in held:
                return self._suggest(self._handle(self.study, trial.number))
        if len(trials) - len(waiting) >= self.config.num_trials:
            return None
        self.study.sampler = make_sampler(self.config, min(waiting, default=len(trials)))
        return self._suggest(self.study.ask())

    def _suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """Choose what is not chosen yet of a trial's point; nothing is, if it is over."""
        if not self._frozen(self.study, trial.number).state.is_finished():
            self.study.sampler = make_sampler(self.config, trial.number)
            self.space(trial)
            if self.records is not self.study:
                while len(self.records.get_trials(deepcopy=False)) <= trial.number:
                    self.records.ask()
        return self.tune_config(trial.number)

    def tune_config(self, number: int) -> dict[str, Any]:
        """A trial's number and point, and the last exchange if there was one: all that the trial's slot needs."""
        found = {"number": number, "point": self.space.point(self._frozen(self.study, number).params)}
        exchanges = self.exchanges(number)
        return found | ({"exchange": asdict(exchanges[-1])} if exchanges else {})

    def exchanges(self, number: int) -> list[Exchange]:
        """What a trial has taken over from others, in order."""
        return [Exchange(**values) for values in self._frozen(self.study, number).user_attrs.get(EXCHANGES, [])]

    def exchange(self, number: int, new: Exchange) -> None:
        """Record an exchange."""
        made = [asdict(exchange) for exchange in (*self.exchanges(number), new)]
        self._handle(self.study, number).set_user_attr(EXCHANGES, made)

    def point_at(self, number: int, step: int) -> dict[str, Any]:
        """The point with which a trial came to a step."""
        before = [exchange.point for exchange in self.exchanges(number) if exchange.step < step]
        return before[-1] if before else self.space.point(self._frozen(self.study, number).params)

    def is_over(self, number: int) -> bool:
        return self._frozen(self.study, number).state.is_finished()

    def report(self, number: int, step: int, result: dict[str, Any]) -> bool:
        """Record the first goal's value at a step, unless it is there or is no number; True if it is new."""
        value, frozen = value_of(result, self.config.goals[0]), self.record(number)
        if not math.isfinite(value) or frozen.state.is_finished() or step in frozen.intermediate_values:
            return False
        self._handle(self.records, number).report(value, step)
        return True

    def record(self, number: int) -> FrozenTrial:
        """What a trial has reported."""
        return self._frozen(self.records, number)

    def stop(self, number: int, step: int) -> None:
        """Record that a trial is to be stopped at a step: Tune forgets that if it is killed before it does it."""
        self._handle(self.records, number).set_user_attr(STOPPED_AT, step)

    def complete(self, number: int, result: dict[str, Any]) -> None:
        """End a trial that has reached its last step; as failed, if a goal or constraint has no finite value."""
        values = {name: value_of(result, name) for name in (*self.config.goals, *dict(self.constraints))}
        without = [name for name, value in values.items() if not math.isfinite(value)]
        if without:
            self.fail(number, f"{', '.join(without)} was not reported or is no finite number")
            return
        self.report(number, result["step"], result)
        trial = self._handle(self.study, number)
        for constraint, (metric, bound) in zip(self.config.constraints, self.constraints, strict=True):
            trial.set_constraint(constraint, values[metric] - bound)
        self._tell(number, [values[goal] for goal in self.config.goals])

    def prune(self, number: int) -> None:
        self._tell(number, state=TrialState.PRUNED)

    def fail(self, number: int, reason: str) -> None:
        self._handle(self.study, number).set_user_attr(REASON, reason)
        self._tell(number, state=TrialState.FAIL)

    def _tell(self, number: int, values: list[float] | None = None, state: TrialState | None = None) -> None:
        if self.records is not self.study:
            self.records.tell(number, values and values[0], state=state, skip_if_finished=True)
        self.study.tell(number, values, state=state)

    def _handle(self, study: optuna.Study, number: int) -> optuna.Trial:
        return optuna.Trial(study, self._id(study, number))

    def _frozen(self, study: optuna.Study, number: int) -> FrozenTrial:
        return self.storage.get_trial(self._id(study, number))

    def _id(self, study: optuna.Study, number: int) -> int:
        study_id = self.storage.get_study_id_from_name(study.study_name)
        return self.storage.get_trial_id_from_study_id_trial_number(study_id, number)


def value_of(result: dict[str, Any], metric: str) -> float:
    """A metric of a trial's result as Tune hands it to searchers and schedulers, one level deep; NaN if it has none."""
    return float(result.get(f"metrics/{metric}", result.get(metric, math.nan)))


def study_name(config: SweepConfig, folder: Path) -> str:
    return folder.name if config.study_storage else STUDY


def open_journal(path: Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(path)))


def mend_journal(path: Path) -> None:
    """Take away what a process that was killed while writing may have left: its lock and half a line.

    Only for the sweep's own process, which is the only one that writes.
    """
    path.with_name(path.name + ".lock").unlink(missing_ok=True)
    if path.exists() and (content := path.read_bytes()) and not content.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)


@functools.cache
def open_storage(url: str | None, folder: Path) -> BaseStorage:
    """Where a sweep's study is; opened once per process, since reading a long journal takes seconds.

    Raises:
        ConfigError: if the database cannot be opened.
    """
    if url is None:
        return open_journal(folder / STUDY_FILE)
    try:
        return RDBStorage(url)
    except Exception as error:  # SQLAlchemy's and each driver's own
        reason = str(error).splitlines()[0]
        raise ConfigError(f"study_storage = {url}: cannot be opened ({reason})") from None


def load_study(config: SweepConfig, folder: Path) -> optuna.Study:
    """The study of an existing sweep, to read."""
    return optuna.load_study(study_name=study_name(config, folder), storage=open_storage(config.study_storage, folder))


def trial_states(config: SweepConfig, folder: Path) -> dict[int, TrialState]:
    """States of a sweep's trials by number: what is over and what is not, whatever Tune made of an interruption."""
    return {trial.number: trial.state for trial in load_study(config, folder).get_trials(deepcopy=False)}


def check_study(config: SweepConfig, folder: Path, resuming: bool) -> None:
    """Make sure that the sweep's study can be opened, is new if the sweep is, and fits its search.

    Raises:
        ConfigError: naming the field.
    """
    space = search_space.build(config)
    check_sampler(config, space)
    if config.early_stopping.kind == "pbt":
        from orchestration.sweep.population import check_population  # imports Ray Tune

        check_population(config, space)
    _check_metrics(config)
    search_space.known_points(config, space)
    if config.study_storage is None and not (folder / STUDY_FILE).exists():
        return  # interrupted before its first trial, or new
    folder = folder.absolute()
    name, storage = study_name(config, folder), open_storage(config.study_storage, folder)
    exists = name in {study.study_name for study in storage.get_all_studies()}
    if exists and not resuming:
        raise ConfigError(f"name = {name}: {config.study_storage} holds a study of this name; choose another")
    if exists:
        _check_extension(config, optuna.load_study(study_name=name, storage=storage), space)


def _check_metrics(config: SweepConfig) -> None:
    """Trials tell of their metrics only when they are done; what cannot be one is refused before."""
    of_cases = {name: changes.get("evaluation.diagnostics") for name, changes in map(read_case, config.cases)}
    for place, metric, case in _metrics_named(config):
        measured = of_cases.get(case)
        diagnostics = config.evaluation.diagnostics if measured is None else measured
        groups = ("time", "throughput", "memory", "loss", "gradient", *(f"diagnostics/{name}" for name in diagnostics))
        if not re.fullmatch(rf"(fid|kid|class_consistency)(_\w+)?|({'|'.join(groups)})/.+", metric):
            raise ConfigError(
                f"{place}: {metric} is no metric; there are fid, kid, fid_2nfe, class_consistency and those of "
                f"{', '.join(f'{group}/' for group in groups)} such as memory/peak_mib"
            )


def _metrics_named(config: SweepConfig) -> Iterator[tuple[str, str, str | None]]:
    """Where a metric is named, the metric, and the case that it is of, None for all."""
    for goal in config.goals:
        yield f"goals = {goal}", goal, None
    for constraint in config.constraints:
        yield f"constraints = {constraint}", read_constraint(constraint)[0], None
    for hypothesis in config.hypotheses:
        for term in read_hypothesis(hypothesis).terms:
            yield f"hypotheses = {hypothesis}", term.metric, term.case


def _check_extension(config: SweepConfig, study: optuna.Study, space: search_space.SearchSpace) -> None:
    trials = study.get_trials(deepcopy=False)
    begun = sum(trial.state != TrialState.WAITING for trial in trials)
    if config.num_trials < begun:
        raise ConfigError(f"num_trials = {config.num_trials}: the sweep has {begun} trials already")
    before = {path: distribution for trial in trials for path, distribution in trial.distributions.items()}
    for dimension in space.dimensions:
        if dimension.path in before:
            try:
                check_distribution_compatibility(before[dimension.path], dimension.distribution)
            except ValueError:
                raise ConfigError(
                    f"search of {dimension.path}: the sweep's trials have {before[dimension.path]}; ranges may change, "
                    "but not choices, kind or :log"
                ) from None

"""Checks of a sweep before anything starts: sampler, metrics, known points, and the study to continue."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import check_distribution_compatibility
from optuna.trial import TrialState

from orchestration.storage import STUDY_FILE
from orchestration.sweep import search_space
from orchestration.sweep.config import SweepConfig, read_constraint
from orchestration.sweep.hypotheses import read_hypothesis
from orchestration.sweep.points import check_space
from orchestration.sweep.samplers import check_sampler
from orchestration.sweep.search_space import SearchSpace
from orchestration.sweep.study import accepted
from orchestration.sweep.study_storage import open_storage, study_name
from soflow.config_base import ConfigError


def check_study(config: SweepConfig, folder: Path, resuming: bool, space: SearchSpace) -> None:
    """Check that the study can be opened, that it is new if the sweep is, and that it fits the search space.

    Raises:
        ConfigError: naming the field.
    """
    check_sampler(config, space)
    _check_metrics(config)
    search_space.known_points(config, space)
    check_space(config, space)
    if config.study_storage is None and not (folder / STUDY_FILE).exists():
        return  # new, or interrupted before its first trial
    folder = folder.absolute()
    name, storage = study_name(config, folder), open_storage(config.study_storage, folder)
    exists = name in {study.study_name for study in storage.get_all_studies()}
    if exists and not resuming:
        raise ConfigError(f"name = {name}: {config.study_storage} has a study of this name; choose another")
    if exists:
        _check_extension(config, optuna.load_study(study_name=name, storage=storage), space)


def _check_metrics(config: SweepConfig) -> None:
    """Refuse names that cannot be metrics now, because trials report their metrics only later."""
    by_case: dict[str | None, Any] = {case.name: case.changes.get("evaluation.diagnostics") for case in config.cases}
    quality = "fid|kid|class_consistency" + ("|cmmd" if config.run.feature_network == "clip" else "")
    for place, metric, case in _metrics_named(config):
        diagnostics = by_case.get(case)
        diagnostics = config.evaluation.diagnostics if diagnostics is None else diagnostics
        groups = ("time", "throughput", "memory", "loss", "gradient", *(f"diagnostics/{name}" for name in diagnostics))
        if not re.fullmatch(rf"({quality})(_floor|_\d+nfe)?|({'|'.join(groups)})/.+", metric):
            raise ConfigError(
                f"{place}: {metric} is not a metric; metrics are fid, kid, fid_2nfe, class_consistency and those of "
                f"{', '.join(f'{group}/' for group in groups)} such as memory/peak_mib"
            )


def _metrics_named(config: SweepConfig) -> Iterator[tuple[str, str, str | None]]:
    """Yield each place that names a metric, the metric, and its case (None: all trials)."""
    for goal in config.goals:
        yield f"goals = {goal}", goal, None
    for constraint in config.constraints:
        yield f"constraints = {constraint}", read_constraint(constraint).metric, None
    for hypothesis in config.hypotheses:
        for term in read_hypothesis(hypothesis).terms:
            yield f"hypotheses = {hypothesis}", term.metric, term.case


def _check_extension(config: SweepConfig, study: optuna.Study, space: SearchSpace) -> None:
    """Refuse fewer trials than the study has, and dimensions that Optuna cannot combine with its earlier trials."""
    trials = accepted(study.get_trials(deepcopy=False))
    started = sum(trial.state != TrialState.WAITING for trial in trials)
    if config.resolved_num_trials < started:
        raise ConfigError(f"num_trials = {config.num_trials}: the sweep has {started} trials already")
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

"""A sweep: Optuna suggests, Ray Tune schedules, warm worker groups train, one writer records."""

from __future__ import annotations

import logging
import shutil
from contextlib import ExitStack
from pathlib import Path

from orchestration.cluster import connected
from orchestration.config import ResourcesConfig, SweepConfig
from orchestration.memory_fit import Room, check_room, room
from orchestration.preflight import check_inputs
from orchestration.storage import (
    SWEEP_FILE,
    check_storage,
    create,
    new_folder,
    resumable_sweep,
    resume_command,
    sole_owner,
)
from orchestration.sweep import search_space
from orchestration.sweep.resume import TUNE_FOLDER, check_state, own_config
from orchestration.terminal.views import stdout_for
from orchestration.tracking.uri import check_tracking
from soflow.config_base import ConfigError
from soflow.config_files import to_yaml


def run_sweep(config: SweepConfig) -> str:
    """Run or resume a sweep to its end, with live progress on the terminal and a summary at the end.

    Returns:
        "FINISHED", "FAILED" (no trial reached its last step) or "KILLED" (interrupted, after saying how to go on).

    Raises:
        ConfigError, DataError, TrackingError: before anything starts, in one line.
    """
    with stdout_for(config.progress), ExitStack() as until_the_end:
        return _run(config, until_the_end)


def _run(config: SweepConfig, until_the_end: ExitStack) -> str:
    resuming = config.resume is not None
    folder = resumable_sweep(config) if resuming else new_folder(config)
    tune_has_state = False
    if resuming:
        until_the_end.enter_context(sole_owner(folder))
        config = _resumed(config, folder)
        if config.early_stopping.kind == "pbt":  # Tune would let all that waited run at once; the study knows better
            shutil.rmtree(folder / TUNE_FOLDER, ignore_errors=True)
        tune_has_state = check_state(config, folder)
    space = search_space.build(config)
    check_storage(config.storage)
    check_inputs(config)
    _check_study(config, folder, resuming)
    check_tracking(config.resolved_tracking_uri)
    with connected(config, groups=config.max_concurrent) as resources:
        there = room(resources, config.max_concurrent)
        check_room(config, there, space)
        _silence_libraries()
        folder = folder.absolute()
        if resuming:
            from soflow.files import write_atomic  # imports torch

            write_atomic(folder / SWEEP_FILE, to_yaml(config).encode())
        else:
            create(folder, SWEEP_FILE, to_yaml(config))
            until_the_end.enter_context(sole_owner(folder))
        trials = f"{config.num_trials} trials, {config.max_concurrent} at a time"
        print(f"sweep {folder.name}: {trials}, in {folder}", flush=True)
        slot = _slot(config, resources, there, folder)
        tuner = _restored_tuner(slot, folder) if tune_has_state else _new_tuner(slot, config, folder)
        return _execute(tuner, config, folder)


def _check_study(config: SweepConfig, folder: Path, resuming: bool) -> None:
    from orchestration.sweep.study import check_study  # imports optuna

    check_study(config, folder, resuming)


def _resumed(config: SweepConfig, folder: Path) -> SweepConfig:
    """The sweep's own configuration, with what may change on a resume."""
    changes = {name: getattr(config, name) for name in ("num_trials", "search", "progress")}
    resumed = own_config(folder, {name: value for name, value in changes.items() if value is not None})
    if resumed.early_stopping.kind == "pbt" and resumed.num_trials != (own := own_config(folder, {}).num_trials):
        raise ConfigError(f"num_trials = {resumed.num_trials}: a population keeps its size, here {own}")
    return resumed


def _execute(tuner, config: SweepConfig, folder: Path) -> str:
    from orchestration.sweep.callback import end_record, start_record
    from orchestration.sweep.ranking import write_summary
    from orchestration.sweep.study import trial_states

    start_record(config, folder)
    status, summary = "FAILED", None
    try:
        trials = tuner.fit()._experiment_analysis.trials
        states = trial_states(config, folder)
        over = sum(state.is_finished() for state in states.values())
        status = "FINISHED" if over == len(states) >= config.num_trials else "KILLED"
        if status == "FINISHED":
            summary = write_summary(config, folder, trials)
            status = "FINISHED" if summary.metrics else "FAILED"
    finally:
        end_record(config, folder, status, summary)
    if status == "KILLED":
        print(
            f"interrupted with {over} of {config.num_trials} trials over; go on with: {resume_command(config, folder)}"
        )
    return status


def _silence_libraries() -> None:
    """Keep their log lines off the terminal, which the live table has."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _slot(config: SweepConfig, resources: ResourcesConfig, there: Room, folder: Path):
    from ray import tune

    from orchestration.sweep.pruning import rungs
    from orchestration.sweep.trial_actor import TrialSlot

    settings = {"base": config.run, "cases": config.cases, "rungs": rungs(config), "seeds": config.seeds_per_trial}
    settings |= {"resources": resources, "there": there, "sweep_folder": folder, "restarts": config.trial_retries}
    # A slot only waits for its workers. Tune wants it to ask for something: one byte of logical memory.
    return tune.with_resources(tune.with_parameters(TrialSlot, **settings), {"CPU": 0, "memory": 1})


def _new_tuner(slot, config: SweepConfig, folder: Path):
    from ray import tune

    from orchestration.sweep.callback import SweepMonitor
    from orchestration.sweep.population import PopulationTraining
    from orchestration.sweep.pruning import StudyPruning
    from orchestration.sweep.ray_search import StudySearch, StudyTrials
    from orchestration.sweep.study import SweepStudy

    search = StudySearch(SweepStudy(config, folder))
    scheduler = PopulationTraining if config.early_stopping.kind == "pbt" else StudyPruning
    return tune.Tuner(
        slot,
        tune_config=tune.TuneConfig(
            metric="fid",
            mode="min",
            search_alg=StudyTrials(search),
            scheduler=scheduler(search),
            num_samples=config.num_trials,
            reuse_actors=True,
            trial_dirname_creator=_trial_number,
        ),
        run_config=tune.RunConfig(
            name=TUNE_FOLDER,
            storage_path=str(folder),
            callbacks=[SweepMonitor(config, folder)],
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1, num_to_keep=1, checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=config.trial_retries),
            verbose=0,
        ),
    )


def _trial_number(trial) -> str:
    return f"{trial.config['number']:04d}"


def _restored_tuner(slot, folder: Path):
    from ray import tune

    return tune.Tuner.restore(str(folder / TUNE_FOLDER), slot, resume_unfinished=True)

"""A sweep: Optuna suggests, Ray Tune schedules, warm worker groups train, one writer records."""

from __future__ import annotations

import logging
from pathlib import Path

from orchestration import search_space
from orchestration.cluster import connected
from orchestration.config import ResourcesConfig, SweepConfig
from orchestration.folders import SWEEP_FILE, check_storage, new_folder, resumable_sweep, resume_flags
from orchestration.inputs import check_inputs
from orchestration.tracking_check import check_tracking
from soflow.config import read_yaml, to_yaml

TUNE_FOLDER = "tune"
STUDY_FILE = "study.journal"


def run_sweep(config: SweepConfig) -> str:
    """Run or resume a sweep to its end, with live progress on the terminal and a summary at the end.

    Returns:
        "FINISHED", "FAILED" (no trial reached its last step) or "KILLED" (interrupted, after saying how to go on).

    Raises:
        ConfigError, DataError, TrackingError: before anything starts, in one line.
    """
    resuming = config.resume is not None
    folder = resumable_sweep(config) if resuming else new_folder(config)
    if resuming:
        config = SweepConfig.model_validate(read_yaml(folder / SWEEP_FILE))
    space = search_space.build(config)
    check_storage(config.storage)
    check_inputs(config)
    check_tracking(config.resolved_tracking_uri)
    with connected(config, groups=config.max_concurrent) as resources:
        _silence_libraries()
        folder = folder.absolute()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SWEEP_FILE).write_text(to_yaml(config))
        trials = f"{config.num_trials} trials, {config.max_concurrent} at a time"
        print(f"sweep {folder.name}: {trials}, in {folder}", flush=True)
        slot = _slot(config, resources, folder)
        tuner = _restored_tuner(slot, folder) if resuming else _new_tuner(slot, config, space, folder)
        return _execute(tuner, config, folder)


def _execute(tuner, config: SweepConfig, folder: Path) -> str:
    from orchestration.monitor import end_record, start_record
    from orchestration.search import trial_states
    from orchestration.summary import write_summary

    start_record(config, folder)
    status, summary = "FAILED", None
    try:
        trials = tuner.fit()._experiment_analysis.trials
        states = trial_states(folder / STUDY_FILE)
        over = sum(state.is_finished() for state in states.values())
        status = "FINISHED" if over == len(states) >= config.num_trials else "KILLED"
        if status == "FINISHED":
            summary = write_summary(config, folder, trials)
            status = "FINISHED" if summary.metrics else "FAILED"
    finally:
        end_record(config, folder, status, summary)
    if status == "KILLED":
        command = f"python experiments/sweep_schedule.py {resume_flags(config, folder)}"
        print(f"interrupted with {over} of {config.num_trials} trials over; go on with: {command}")
    return status


def _silence_libraries() -> None:
    """Keep their log lines off the terminal, which the live table has."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _slot(config: SweepConfig, resources: ResourcesConfig, folder: Path):
    from ray import tune

    from orchestration.slot import TrialSlot

    settings = {"base": config.run, "resources": resources, "sweep_folder": folder}
    # A slot only waits for its workers. Tune wants it to ask for something: one byte of logical memory.
    return tune.with_resources(tune.with_parameters(TrialSlot, **settings), {"CPU": 0, "memory": 1})


def _new_tuner(slot, config: SweepConfig, space: search_space.SearchSpace, folder: Path):
    from ray import tune

    from orchestration.monitor import SweepMonitor
    from orchestration.search import StudySearch

    return tune.Tuner(
        slot,
        tune_config=tune.TuneConfig(
            metric="fid",
            mode="min",
            search_alg=StudySearch(space, metric="fid", seed=config.seed, journal=folder / STUDY_FILE),
            scheduler=_scheduler(config),
            num_samples=config.num_trials,
            max_concurrent_trials=config.max_concurrent,
            reuse_actors=True,
            trial_dirname_creator=_trial_number,
        ),
        run_config=tune.RunConfig(
            name=TUNE_FOLDER,
            storage_path=str(folder),
            callbacks=[SweepMonitor(config, folder)],
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1, num_to_keep=1, checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=3),
            verbose=0,
        ),
    )


def _trial_number(trial) -> str:
    return f"{trial.config['number']:04d}"


def _restored_tuner(slot, folder: Path):
    from ray import tune

    return tune.Tuner.restore(str(folder / TUNE_FOLDER), slot, resume_unfinished=True)


def _scheduler(config: SweepConfig):
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    training = config.training
    if not config.early_stopping:
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr="step",
        max_t=training.total_steps,
        grace_period=min(config.grace_reports * training.report_every, training.total_steps),
        reduction_factor=2,
    )

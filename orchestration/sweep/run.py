"""Running a sweep: Optuna suggests, Ray Tune schedules, warm worker groups train, one tracker records."""

from __future__ import annotations

import functools
import logging
import signal
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from orchestration.cluster import connected
from orchestration.config import ResourcesConfig
from orchestration.interruption import is_interruption, received, set_last_words
from orchestration.memory_fit import MemoryBudget, check_memory, memory_budget, predict_memory
from orchestration.preflight import check_inputs
from orchestration.resuming import check_original, note_location, resumed
from orchestration.slots import Slots
from orchestration.storage import (
    SPOOL,
    STUDY_FILE,
    SWEEP_FILE,
    check_storage,
    create,
    new_folder,
    resume_command,
    resumed_folder,
    sole_owner,
)
from orchestration.store.location import url_or_path
from orchestration.store.program import fetch_trials
from orchestration.sweep import search_space
from orchestration.sweep.config import SweepConfig
from orchestration.sweep.points import as_many_as_points
from orchestration.sweep.resume import check_journal, saved_config, with_more_seeds
from orchestration.sweep.rungs import rungs
from orchestration.terminal.views import stdout_for
from orchestration.tracking.schema import check_own_tags
from orchestration.tracking.uri import check_tracking
from soflow.config_files import to_yaml
from soflow.files import write_atomic

if TYPE_CHECKING:
    from orchestration.sweep.callback import MlflowCallback, SweepRecord
    from orchestration.sweep.study import SweepStudy

Report = Callable[[Path, Callable[[Path], None]], None]
"""Writes reports of a sweep in its folder, and attaches each with the given function."""


def run_sweep(config: SweepConfig, write_report: Report) -> str:
    """Run or resume a sweep to its end, with live progress on the terminal and a summary at the end.

    Args:
        write_report: called at the end, unless the sweep was interrupted.

    Returns:
        "FINISHED", "FAILED" (no trial that keeps the constraints reached its last step) or "KILLED" (interrupted; the
        command to resume was printed).

    Raises:
        ConfigError, DataError, TrackingError: before anything starts, in one line.
    """
    with stdout_for(config.progress), ExitStack() as until_the_end:
        return _run(config, write_report, until_the_end)


def _run(config: SweepConfig, write_report: Report, until_the_end: ExitStack) -> str:
    resuming = config.resume is not None
    if config.resume is None:
        folder = new_folder(config)
    else:
        folder = resumed_folder(config.storage, config.resume, SWEEP_FILE)
        until_the_end.enter_context(sole_owner(folder))
        check_original(folder)
        config = resumed(*with_more_seeds(saved_config(folder), config), folder)
        if config.study_storage is None:
            check_journal(folder / STUDY_FILE)
    space = search_space.build(config)
    check_storage(config.storage, may_be_store=True)
    check_inputs(config)
    from orchestration.sweep.callback import MlflowCallback, SweepRecord  # imports Ray Tune
    from orchestration.sweep.checks import check_study  # imports optuna

    trials = check_study(config, folder, resuming, space)
    check_own_tags(config.own_tags)
    check_tracking(config.resolved_tracking_uri)
    record, callback, asked = None, None, config
    config = as_many_as_points(config, space, trials)
    try:
        groups = None if config.max_concurrent == "auto" else config.max_concurrent
        with connected(config, groups, meanwhile=functools.partial(predict_memory, config, space)) as resources:
            slots = Slots(resources, groups)
            budget = memory_budget(resources, slots())
            check_memory(config, budget, space)
            _silence_libraries()
            folder = folder.absolute()
            if resuming:
                fetch_trials(folder)
                write_atomic(folder / SWEEP_FILE, to_yaml(asked))
            else:
                create(folder, SWEEP_FILE, to_yaml(asked))
                until_the_end.enter_context(sole_owner(folder))
            note_location(folder)
            print(
                f"sweep {folder.name}: {config.num_trials} trials, {config.at_a_time}, in {url_or_path(folder)}",
                flush=True,
            )
            record = SweepRecord(config, folder, space)
            set_last_words(functools.partial(_interrupted, record))
            record.start()
            callback = MlflowCallback(record, slots())
            study = _train(record, callback, resources, budget, slots)
        return _finish(record, callback, study, write_report)
    except BaseException as error:
        if record is None:
            raise
        if callback is not None:
            callback.stop_showing()
        # After SIGTERM, which batch systems also send to Ray's processes, anything may fail.
        if is_interruption(error) or received() != signal.SIGINT:
            return _interrupted(record)
        record.end("FAILED", None)
        record.close()
        raise


def _train(
    record: SweepRecord, callback: MlflowCallback, resources: ResourcesConfig, budget: MemoryBudget, slots: Slots
):
    """Train all trials that have not finished; return the study."""
    from orchestration.sweep.ray_search import OptunaSearcher
    from orchestration.sweep.study import SweepStudy

    study = SweepStudy(record.config, record.folder, record.space, callback.rejected)
    # Trials that ended in the study, but were interrupted before their end was recorded in MLflow, or even their start:
    # the study may be in a database, and the records in a store that was behind it.
    ended = (trial.number for trial in study.trials() if trial.state.is_finished())
    replay = {number for number in ended if not record.tracker.has_ended(record.key(number))}
    callback.count_finished(study.trials(), study.rejected(), replay)
    searcher = OptunaSearcher(study, replay, slots)
    if not searcher.is_complete:
        # Tune's own state is never restored: the study knows the trials, their folders have their reports.
        with tempfile.TemporaryDirectory(prefix="soflow-tune-", ignore_cleanup_errors=True) as scratch:
            _tuner(record.config, record.folder, searcher, callback, resources, budget, scratch).fit()
    return study


def _finish(record: SweepRecord, callback: MlflowCallback, study: SweepStudy, write_report: Report) -> str:
    """Write the summary and the report, deliver all records, and return the status."""
    from orchestration.sweep.ranking import write_summary

    finished = sum(trial.state.is_finished() for trial in study.trials())
    if not study.exhausted and finished < record.config.resolved_num_trials:
        callback.view.summarized("KILLED", {})
        return _interrupted(record, f" with {finished} of {record.config.num_trials} trials finished")
    summary, upload_bytes = write_summary(study), 0
    status = "FINISHED" if summary.metrics else "FAILED"
    record.end(status, summary)
    callback.view.summarized(status, summary.metrics)
    if "best/trial" in summary.metrics:
        upload_bytes = record.register_best(int(summary.metrics["best/trial"]))
    record.tracker.flush(FLUSH_BEFORE_REPORT_S)
    write_report(record.folder, record.attach)
    record.close(upload_bytes)
    return status


def _interrupted(record: SweepRecord, progress: str = "") -> str:
    """Say how to resume, end the runs of the sweep and its trials in MLflow, and return the status.

    A further interruption ends this too: what is not delivered is kept for the resume.
    """
    set_last_words(None)
    command = resume_command(record.folder)
    print(f"interrupted{progress}; resume with: {command}", flush=True)
    try:
        record.end_open_trials()
        record.end("KILLED", None)
        record.close()
    except KeyboardInterrupt:
        print(f"interrupted again; the records in {record.folder / SPOOL} are sent on resume", flush=True)
    return "KILLED"


FLUSH_BEFORE_REPORT_S = 30.0
"""Seconds that the report waits for the records it reads from MLflow."""


def _silence_libraries() -> None:
    """Keep log lines of libraries off the terminal, where the live table is."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _tuner(
    config: SweepConfig,
    folder: Path,
    searcher,
    callback,
    resources: ResourcesConfig,
    budget: MemoryBudget,
    scratch: str,
):
    from ray import tune

    from orchestration.sweep.pruning import StudyPruning
    from orchestration.sweep.ray_search import FixedCountGenerator
    from orchestration.sweep.trial_actor import TrialActor

    settings = {"base": config.run, "cases": config.cases, "rungs": rungs(config), "seeds": config.seeds_per_trial}
    settings |= {"resources": resources, "budget": budget, "sweep_folder": folder, "restarts": config.trial_retries}
    # The actor only waits for its workers. Tune requires a resource: one byte of logical memory.
    actor = tune.with_resources(tune.with_parameters(TrialActor, **settings), {"CPU": 0, "memory": 1})
    return tune.Tuner(
        actor,
        tune_config=tune.TuneConfig(
            metric="fid",
            mode="min",
            search_alg=FixedCountGenerator(searcher),
            scheduler=StudyPruning(searcher),
            num_samples=config.num_trials,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: f"{trial.config['number']:04d}",
        ),
        run_config=tune.RunConfig(
            storage_path=scratch,
            callbacks=[callback],
            # A trial's process that is replaced reads the reports in the trial's folder.
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=config.trial_retries),
            verbose=0,
        ),
    )

"""Analysis of a snapshot of a running sweep: progress, time left, best trial, table, environment."""

from __future__ import annotations

import math
import time
from collections import Counter

import pandas as pd

from dashboards.labels import title
from dashboards.live.reader import Snapshot, Trial
from dashboards.reading.mlflow_runs import differing_params, goals_of
from orchestration.terminal.format import short_name
from orchestration.terminal.progress import OVER, TIMED, time_left_s
from orchestration.tracking.schema import (
    FAILURE,
    FID_PROTOCOL,
    FINAL,
    GIT_COMMIT,
    PEAK_MIB,
    PEAK_SHARE,
    STARTED_MS,
    TRAIN_S,
)

ENVIRONMENT = ("device", "dtype", "attention", "workers", "threads", "micro_batch", "memory_measure", FID_PROTOCOL[0])
"""Tags about how trials run, besides those of hardware and versions."""
MOST_COLUMNS = 12
SILENT_S, SILENT_INTERVALS = 120.0, 4
"""A sweep is silent after this time without a report, and this many times the usual interval between reports."""


def goal(snapshot: Snapshot) -> str:
    """Get the metric that ranks."""
    return goals_of(snapshot.sweep)[0]


def metrics_of(snapshot: Snapshot) -> list[str]:
    """List all metrics over steps, the goal first."""
    names = {name for trial in snapshot.trials for name in trial.metrics if not name.startswith((FINAL, "best/"))}
    return [goal(snapshot), *sorted(names - {goal(snapshot)})]


def counts(snapshot: Snapshot) -> Counter[str]:
    """Count trials by state."""
    return Counter(trial.state for trial in snapshot.trials)


def num_trials(snapshot: Snapshot) -> int:
    """Get the planned number of trials."""
    return max(_whole(snapshot.param("num_trials"), 0), len(snapshot.trials), 1)


def is_running(snapshot: Snapshot) -> bool:
    return snapshot.sweep is not None and snapshot.sweep.info.status == "RUNNING"


def steps_done(snapshot: Snapshot, trial: Trial) -> int:
    steps = snapshot.curve(trial, goal(snapshot)).steps
    return steps[-1] if steps else 0


def share_done(snapshot: Snapshot) -> float:
    """Compute the share of all steps that are done; trials that stopped early count as done."""
    if snapshot.sweep is not None and snapshot.sweep.info.status == "FINISHED":
        return 1.0
    done, total = 0, max(0, num_trials(snapshot) - len(snapshot.trials)) * _total_steps(snapshot)
    for trial in snapshot.trials:
        of_trial = _total_steps(snapshot, trial)
        total += of_trial
        done += of_trial if trial.state in OVER else min(of_trial, steps_done(snapshot, trial))
    return done / max(1, total)


def left_s(snapshot: Snapshot) -> float | None:
    """Estimate the remaining time if no trial stops early; None before the first timed step and after the end.

    Steps left times seconds per step (evaluation included, from the latest reports), divided by the number of parallel
    trials.
    """
    timed = [(seconds, steps) for _, seconds, steps in _intervals(snapshot)[-TIMED:]]
    running = [trial for trial in snapshot.trials if trial.state == "running"]
    steps = sum(steps for _, steps in timed)
    if not steps or not is_running(snapshot):
        return None
    over = sum(trial.state in OVER for trial in snapshot.trials)
    to_start = max(0, num_trials(snapshot) - over - len(running))
    steps_left = to_start * _total_steps(snapshot)
    steps_left += sum(_total_steps(snapshot, trial) - steps_done(snapshot, trial) for trial in running)
    # With max_concurrent = auto, as many as are running now.
    slots = min(_whole(snapshot.param("max_concurrent"), max(1, len(running))), to_start + len(running))
    return time_left_s(steps_left, sum(seconds for seconds, _ in timed) / steps, slots)


def silent_s(snapshot: Snapshot) -> float | None:
    """Compute the time since a running sweep's last report if it is unusually long; else None."""
    if not is_running(snapshot):
        return None
    intervals = _intervals(snapshot)
    last_ms = max([_started_ms(snapshot), *(trial.start_ms for trial in snapshot.trials)])
    last_ms = max([last_ms, *(at_ms for at_ms, _, _ in intervals)])
    usual = max((seconds for _, seconds, _ in intervals[-TIMED:]), default=0.0)
    silent = time.time() - last_ms / 1e3
    return silent if silent > max(SILENT_S, SILENT_INTERVALS * usual) else None


def _intervals(snapshot: Snapshot) -> list[tuple[int, float, int]]:
    """List each report's time in ms and the seconds and steps since the previous one, sorted by time.

    The time between an interruption and the sweep's resumption does not count.
    """
    intervals, started_ms = [], _started_ms(snapshot)
    for trial in snapshot.trials:
        curve = snapshot.curve(trial, goal(snapshot))
        previous_ms, previous_step = trial.start_ms, 0
        for step, at_ms in zip(curve.steps, curve.times_ms, strict=True):
            if at_ms > started_ms:
                previous_ms = max(previous_ms, started_ms)
            if step > previous_step:
                intervals.append((at_ms, (at_ms - previous_ms) / 1e3, step - previous_step))
            previous_ms, previous_step = at_ms, step
    return sorted(intervals)


def _started_ms(snapshot: Snapshot) -> int:
    """Return when the sweep was started last."""
    return _whole(snapshot.sweep.data.tags.get(STARTED_MS, ""), snapshot.sweep.info.start_time)


def current_best(snapshot: Snapshot) -> Trial | None:
    """Find the trial with the lowest goal; after the end of the sweep, among the finished ones."""
    ranked = [trial for trial in snapshot.trials if trial.state != "failed" and trial.value(goal(snapshot)) < math.inf]
    if snapshot.sweep is not None and not is_running(snapshot):
        ranked = [trial for trial in ranked if trial.state == "finished"] or ranked
    return min(ranked, key=lambda trial: trial.value(goal(snapshot)), default=None)


def ranked(snapshot: Snapshot, metric: str) -> list[Trial]:
    """List the trials that have reported a metric, the lowest value first."""
    measured = [trial for trial in snapshot.trials if not math.isnan(trial.value(metric))]
    return sorted(measured, key=lambda trial: trial.value(metric))


def searched(snapshot: Snapshot) -> list[str]:
    """List the parameters that differ between trials."""
    return differing_params(trial.params for trial in snapshot.trials)[:MOST_COLUMNS]


def point_of(snapshot: Snapshot, trial: Trial) -> dict[str, str]:
    """Map the short names of the searched parameters to a trial's values."""
    return {short_name(path): _display(trial.params[path]) for path in searched(snapshot) if path in trial.params}


def table(snapshot: Snapshot) -> pd.DataFrame:
    """Build a row per trial, best first."""
    metric, paths = goal(snapshot), searched(snapshot)
    rows = [
        {
            "trial": trial.number,
            "state": trial.state,
            "step": steps_done(snapshot, trial),
            metric: rounded(trial.value(metric)),
            **{short_name(path): _display(trial.params.get(path)) for path in paths},
            "training [s]": rounded(trial.value(TRAIN_S)),
            "peak memory [MiB]": rounded(trial.value(PEAK_MIB)),
            title(PEAK_SHARE): rounded(trial.value(PEAK_SHARE)),
            "reason": trial.tags.get(FAILURE, ""),
        }
        for trial in snapshot.trials
    ]
    frame = pd.DataFrame(rows)
    return frame if frame.empty else frame.sort_values(metric, na_position="last", kind="stable", ignore_index=True)


def environment(snapshot: Snapshot) -> pd.DataFrame:
    """Build a row per environment tag and value, with the number of trials that have it."""
    trials_by_value: dict[str, Counter[str]] = {}
    for trial in snapshot.trials:
        for name, value in trial.tags.items():
            if name in (*ENVIRONMENT, GIT_COMMIT) or name.startswith(("hardware.", "version.")):
                trials_by_value.setdefault(name, Counter())[value] += 1
    rows = [
        {"tag": name, "value": value, "trials": count}
        for name, values in sorted(trials_by_value.items())
        for value, count in values.most_common(5)
    ]
    return pd.DataFrame(rows, columns=["tag", "value", "trials"])


def differing_protocols(snapshot: Snapshot) -> list[str]:
    """List the FID protocol's tags that differ between trials, whose FIDs must then not be compared."""
    measured = [trial for trial in snapshot.trials if FID_PROTOCOL[0] in trial.tags]
    return [name for name in FID_PROTOCOL if len({trial.tags.get(name) for trial in measured}) > 1]


def rounded(value: float) -> float:
    """Round to four digits."""
    return float(f"{value:.4g}")


def _total_steps(snapshot: Snapshot, trial: Trial | None = None) -> int:
    """Return the steps of a trial; without one, those of a trial that does not set them itself."""
    usual = _whole(snapshot.param("training.total_steps"), 1)
    return max(1, _whole(trial.params.get("training.total_steps", ""), usual) if trial else usual)


def _whole(text: str, default: int) -> int:
    return int(text) if text.isdecimal() else default


def _display(value: str | None) -> str:
    """Format a parameter that was logged as text."""
    try:
        return f"{float(value):.4g}"
    except (TypeError, ValueError):
        return (value or "")[:200]

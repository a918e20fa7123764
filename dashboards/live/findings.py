"""What follows from a snapshot of a sweep: how far it is, what is best, what failed, on what it runs."""

from __future__ import annotations

import math
import time
from collections import Counter

import pandas as pd
import yaml

from dashboards.live.reader import Snapshot, Trial
from dashboards.reading.mlflow_runs import KIND
from dashboards.reading.sweep_data import PROTOCOL
from orchestration.terminal.format import short_name
from orchestration.terminal.progress import OVER, TIMED

FACTS = ("device", "dtype", "attention", "workers", "threads", "micro_batch", "memory_measure", "fid_feature_network")
"""Tags of trials that tell on what and how they run, beside those of hardware and versions."""
MOST_COLUMNS = 12
SILENT_S, SILENT_INTERVALS = 120.0, 4
"""After so long without a report, and so many times the usual time between two, a sweep counts as silent."""


def goal(snapshot: Snapshot) -> str:
    """The metric that ranks."""
    try:
        goals = yaml.safe_load(snapshot.param("goals"))
    except yaml.YAMLError:
        goals = None
    return goals[0] if isinstance(goals, list) and goals and isinstance(goals[0], str) else "fid"


def metrics_of(snapshot: Snapshot) -> list[str]:
    """Names of all metrics over steps, the goal first."""
    names = {name for trial in snapshot.trials for name in trial.metrics if not name.startswith(("final/", "best/"))}
    return [goal(snapshot), *sorted(names - {goal(snapshot)})]


def counts(snapshot: Snapshot) -> Counter[str]:
    return Counter(trial.state for trial in snapshot.trials)


def num_trials(snapshot: Snapshot) -> int:
    """How many there are to be."""
    return max(_whole(snapshot.param("num_trials"), 0), len(snapshot.trials), 1)


def steps_done(snapshot: Snapshot, trial: Trial) -> int:
    steps = snapshot.curve(trial, goal(snapshot)).steps
    return steps[-1] if steps else 0


def share_done(snapshot: Snapshot) -> float:
    """Steps done of all that there can be, those that stopped early counted as done."""
    total = _total_steps(snapshot)
    if snapshot.sweep is not None and snapshot.sweep.info.status == "FINISHED":
        return 1.0
    done = sum(total if trial.state in OVER else min(total, steps_done(snapshot, trial)) for trial in snapshot.trials)
    return done / (num_trials(snapshot) * total)


def left_s(snapshot: Snapshot) -> float | None:
    """The time that the rest takes if no trial stops early; None until a step has been timed, and at the end.

    As the sweep itself reckons (orchestration.terminal.progress): steps left times seconds per step, evaluation
    included, as the last reports came, over the trials at a time.
    """
    timed = [(seconds, steps) for _, seconds, steps in _intervals(snapshot)[-TIMED:]]
    running = [trial for trial in snapshot.trials if trial.state == "running"]
    steps = sum(steps for _, steps in timed)
    if not steps or snapshot.sweep is None or snapshot.sweep.info.status != "RUNNING":
        return None
    total, over = _total_steps(snapshot), sum(trial.state in OVER for trial in snapshot.trials)
    to_start = max(0, num_trials(snapshot) - over - len(running))
    left = to_start * total + sum(total - steps_done(snapshot, trial) for trial in running)
    slots = min(_whole(snapshot.param("max_concurrent"), 1), to_start + len(running))
    return max(0, left) * sum(seconds for seconds, _ in timed) / steps / max(1, slots)


def silent_s(snapshot: Snapshot) -> float | None:
    """How long a running sweep has said nothing, if that is long for it: its program may have been lost."""
    if snapshot.sweep is None or snapshot.sweep.info.status != "RUNNING":
        return None
    intervals = _intervals(snapshot)
    last_ms = max([snapshot.sweep.info.start_time, *(trial.start_ms for trial in snapshot.trials)])
    last_ms = max([last_ms, *(at for at, _, _ in intervals)])
    usual = max((seconds for _, seconds, _ in intervals[-TIMED:]), default=0.0)
    silent = time.time() - last_ms / 1e3
    return silent if silent > max(SILENT_S, SILENT_INTERVALS * usual) else None


def _intervals(snapshot: Snapshot) -> list[tuple[int, float, int]]:
    """Of every report its time in ms, the seconds and the steps since the one before, in order of time."""
    found = []
    for trial in snapshot.trials:
        curve = snapshot.curve(trial, goal(snapshot))
        before_ms, before = trial.start_ms, 0
        for step, at in zip(curve.steps, curve.times_ms, strict=True):
            if step > before:
                found.append((at, (at - before_ms) / 1e3, step - before))
            before_ms, before = at, step
    return sorted(found)


def current_best(snapshot: Snapshot) -> Trial | None:
    """The trial with the lowest goal; of a sweep that is over, among those that reached their last step."""
    ranked = [trial for trial in snapshot.trials if trial.state != "failed" and trial.value(goal(snapshot)) < math.inf]
    if snapshot.sweep is not None and snapshot.sweep.info.status != "RUNNING":
        ranked = [trial for trial in ranked if trial.state == "finished"] or ranked
    return min(ranked, key=lambda trial: trial.value(goal(snapshot)), default=None)


def searched(snapshot: Snapshot) -> list[str]:
    """Parameters that differ between trials, the sweep's own seed aside."""
    values: dict[str, set[str]] = {}
    for trial in snapshot.trials:
        for name, value in trial.params.items():
            values.setdefault(name, set()).add(value)
    return [name for name, different in values.items() if len(different) > 1][:MOST_COLUMNS]


def point_of(snapshot: Snapshot, trial: Trial) -> dict[str, str]:
    """What was searched, by its short name, as the trial has it."""
    return {short_name(path): _shown(trial.params[path]) for path in searched(snapshot) if path in trial.params}


def table(snapshot: Snapshot) -> pd.DataFrame:
    """One row per trial, the best first, as text and numbers."""
    metric, paths = goal(snapshot), searched(snapshot)
    rows = [
        {
            "trial": trial.number,
            "state": trial.state,
            "step": steps_done(snapshot, trial),
            metric: rounded(trial.value(metric)),
            **{short_name(path): _shown(trial.params.get(path)) for path in paths},
            "train s": rounded(trial.value("time/train_s")),
            "MiB": rounded(trial.value("memory/peak_mib")),
            "reason": trial.tags.get("failure", ""),
        }
        for trial in snapshot.trials
    ]
    frame = pd.DataFrame(rows)
    return frame if frame.empty else frame.sort_values(metric, na_position="last", kind="stable", ignore_index=True)


def facts(snapshot: Snapshot) -> pd.DataFrame:
    """On what the trials run and how they are measured: each fact with its values and their trials."""
    found: dict[str, Counter[str]] = {}
    for trial in snapshot.trials:
        for name, value in trial.tags.items():
            if name in FACTS or name.startswith(("hardware.", "version.")) or name == "git_commit":
                found.setdefault(name, Counter())[value] += 1
    rows = [
        {"fact": name, "value": value, "trials": count}
        for name, values in sorted(found.items())
        for value, count in values.most_common(5)
    ]
    return pd.DataFrame(rows, columns=["fact", "value", "trials"])


def differing_protocols(snapshot: Snapshot) -> list[str]:
    """What of the way FID is measured differs between trials, so that their values must not be compared."""
    measured = [trial for trial in snapshot.trials if PROTOCOL[0] in trial.tags]
    return [name for name in PROTOCOL if len({trial.tags.get(name) for trial in measured}) > 1]


def is_single_run(snapshot: Snapshot) -> bool:
    return snapshot.sweep is not None and snapshot.sweep.data.tags.get(KIND) == "run"


def rounded(value: float) -> float:
    """To four digits."""
    return float(f"{value:.4g}")


def _total_steps(snapshot: Snapshot) -> int:
    return max(1, _whole(snapshot.param("training.total_steps"), 1))


def _whole(text: str, default: int) -> int:
    return int(text) if text.isdecimal() else default


def _shown(value: str | None) -> str:
    """A parameter, its number shortened."""
    try:
        return f"{float(value):.4g}"
    except (TypeError, ValueError):
        return (value or "")[:200]

"""How a sweep was run: its subtitle, hardware, versions and settings, and the commands that repeat it."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Sequence

from dashboards.labels import plural, shorten
from dashboards.reading.protocols import Protocol
from dashboards.reading.sweep_data import SweepData
from orchestration.storage import SWEEP_FILE
from orchestration.terminal.format import format_time
from orchestration.tracking.schema import CPU, DATASET, FINGERPRINT, GIT_COMMIT, OBJECTIVE, STARTED_MS

FACTS = {
    "hardware": ("device", CPU, "hardware.cpu_cores", "hardware.memory_gib"),
    "precision": ("dtype", "quotient_dtype", "attention"),
    "workers": ("workers", "threads", "micro_batch"),
    "versions": ("version.python", "version.torch", "version.ray", "version.mlflow", "version.optuna"),
    "git commit": (GIT_COMMIT,),
    "memory measure": ("memory_measure",),
}
"""Tags of the trials by heading."""
SETTINGS = {
    "objective and network": (OBJECTIVE, "network.name"),
    "training": ("training.total_steps", "training.batch_size", "optimizer.learning_rate", "optimizer.name"),
    "seeds": ("seed", "seeds_per_trial"),
    "search": ("num_trials", "sampler", "early_stopping.kind", "early_stopping.compare", "goals", "constraints"),
}
"""Parameters of the sweep by heading."""
NEW_START_MS = 60_000
"""Time after a sweep's first start from which a start is a resumption, not a record that took a while."""


def subtitle(data: SweepData) -> str:
    """Format the number of trials by state, the start and the duration."""
    states = ", ".join(f"{count} {shorten(state)}" for state, count in data.trials["state"].value_counts().items())
    runs = [data.run] if data.run else list(data.runs.values())
    started, ends = min((run.info.start_time for run in runs), default=None), [run.info.end_time for run in runs]
    when = f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime(started / 1e3))} UTC" if started else "unknown start"
    duration = f", duration {format_time((max(ends) - started) / 1e3)}" if started and all(ends) else ""
    if duration and data.run and int(data.run.data.tags.get(STARTED_MS, started)) - started > NEW_START_MS:
        duration += " including interruptions"
    return f"Sweep of {plural(len(data.trials), 'trial')} ({states or 'none recorded'}) · {when}{duration}"


def run_facts(data: SweepData, protocols: Sequence[Protocol]) -> dict[str, str]:
    """Collect settings, data, FID protocols, hardware and versions by heading."""
    facts = {heading: _settings(data, names) for heading, names in SETTINGS.items()}
    fingerprint = _tag(data, FINGERPRINT)
    facts["data"] = ", ".join(filter(None, (_tag(data, DATASET), fingerprint and f"fingerprint {fingerprint}")))
    several = len(protocols) > 1
    facts["FID protocol"] = "; ".join(
        f"{protocol.letter}: {protocol}" if several else str(protocol) for protocol in protocols
    )
    for heading, names in FACTS.items():
        values = {name: value for name in names if (value := _tag(data, name))}
        facts[heading] = ", ".join(
            value if len(names) == 1 else f"{name.partition('.')[2] or name} {value}" for name, value in values.items()
        )
    facts["MLflow run"] = data.run.info.run_id if data.run else "deleted"
    return {name: value for name, value in facts.items() if value}


def _settings(data: SweepData, names: Sequence[str]) -> str:
    """Format parameters that all trials share; searched ones are in the table."""
    values = {name: data.param(name) for name in names if name not in data.paths}
    return ", ".join(f"{name} = {shorten(value)}" for name, value in values.items() if value not in ("", "[]"))


def _tag(data: SweepData, name: str) -> str:
    """Get a tag of the sweep and its trials; all distinct values, if they differ."""
    runs = [run for run in (data.run, *data.runs.values()) if run]
    values = list(dict.fromkeys(run.data.tags[name] for run in runs if name in run.data.tags))
    if len(values) < 2:
        return "".join(values)
    more = f" and {len(values) - 4} more" if len(values) > 4 else ""
    return " or ".join(map(shorten, values[:4])) + more


def repeat_command(data: SweepData) -> str:
    """Format the commands that repeat the sweep with its configuration file."""
    lines = []
    if commit := re.fullmatch(r"([0-9a-f]{7,40})(-dirty)?", _tag(data, GIT_COMMIT)):
        lines.append(f"git checkout {commit[1]}{'  # plus uncommitted changes' if commit[2] else ''}")
    name = shlex.quote(f"{data.name}-again")
    lines.append(f"python experiments/sweep_schedule.py --config {SWEEP_FILE} --name {name}")
    return "\n".join(lines)


def shared_values(data: SweepData, protocols: Sequence[Protocol]) -> dict[str, object]:
    """Collect the template values that searches and comparisons share."""
    return {
        "name": data.name,
        "subtitle": subtitle(data),
        "facts": run_facts(data, protocols),
        "configuration": data.configuration,
        "command": repeat_command(data),
    }

"""Descriptions of sweeps and trials in MLflow, in Markdown."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

from orchestration.storage import REPORT_FILE
from orchestration.sweep.config import SweepConfig
from orchestration.sweep.ranking import Summary
from orchestration.sweep.ray_search import REASON
from orchestration.sweep.search_space import Dimension, SearchSpace
from orchestration.sweep.ticket import TrialTicket
from orchestration.terminal.format import format_number, format_value, short_name
from orchestration.tracking.notes import code, link
from orchestration.tracking.schema import CASE, FINAL, TRAIN_S


def sweep_note(config: SweepConfig, folder: Path, space: SearchSpace, summary: Summary | None = None) -> str:
    """Describe a sweep's set-up and, with a summary, its result."""
    rows = config.cases or [f"{short_name(dimension.path)}: {_range(dimension)}" for dimension in space.dimensions]
    kind = "compared" if config.cases else f"searched by {config.sampler}, early stopping {config.early_stopping.kind}"
    trials = f"{config.num_trials} trials of {config.training.total_steps} steps, {config.at_a_time}"
    parts = [
        *([config.note] if config.note else []),
        *([_result(folder, summary)] if summary else []),
        f"**{config.objective.name} on {config.dataset.name}**: {trials}; {kind}:",
        "\n".join(f"- {code(row)}" for row in rows),
        f"{link('Trials, the best first', 'view', view_name(folder))}; the best one has the tag `best`.",
        f"Files: {code(folder)}.",
    ]
    return "\n\n".join(parts)


def view_name(folder: Path) -> str:
    """Return the name of a sweep's view in MLflow's UI."""
    return hashlib.sha256(str(folder).encode()).hexdigest()[:16]


def trials_view(config: SweepConfig, folder: Path, space: SearchSpace) -> dict[str, Any]:
    """Make the state of MLflow's list of runs that shows a sweep's trials, the best first, with what was searched."""
    goals = [f"metrics.`{FINAL}{goal}`" for goal in config.goals]
    searched = [
        f"tags.`{CASE}`" if dimension.path == CASE else f"params.`{dimension.path}`" for dimension in space.dimensions
    ]
    return {
        "searchFilter": f"tags.sweep = {folder.name!r}",
        "orderByKey": goals[0],
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": list(dict.fromkeys((*goals, f"metrics.`{FINAL}{TRAIN_S}`", *searched))),
    }


def _result(folder: Path, summary: Summary) -> str:
    files = ", ".join(link(name, "artifact", name) for name in (REPORT_FILE, *(path.name for path in summary.files)))
    if "best/trial" not in summary.metrics:
        return f"**No trial reached its last step within the constraints.** {files}"
    number, fid = int(summary.metrics["best/trial"]), summary.metrics["best/fid"]
    best = link(f"trial {number}", "run", f"{folder.name}/{number:04d}")
    return f"**Best: {best}, FID {format_number(fid, '.4g')}.** {files}. Its weights are a logged model."


def trial_note(folder: Path, ticket: TrialTicket, end: str = "", files: tuple[str, ...] = ()) -> str:
    """Describe a trial: its sweep, its point, and its end with the files that give details."""
    values = ", ".join(f"{short_name(path)} = {format_value(value)}" for path, value in ticket.point.items())
    sweep = f"{link('the sweep', 'run', folder.name)} {code(folder.name)}"
    details = ", ".join(link(name, "artifact", name) for name in files)
    return "\n\n".join(filter(None, [end, f"Trial {ticket.number} of {sweep}: {code(values)}", details]))


def end_note(state: str, result: dict[str, Any]) -> str:
    """Describe the end of a trial by its last result."""
    where = f"at step {result['step']} with FID {format_number(result.get('fid', math.nan), '.4g')}"
    return f"**{state}**: {code(result[REASON])}" if state == "failed" else f"**{state}** {where}"


def _range(dimension: Dimension) -> str:
    if dimension.choices:
        return ", ".join(map(str, dimension.choices))
    return f"{dimension.low:g} to {dimension.high:g}" + (", logarithmic" if dimension.log else "")

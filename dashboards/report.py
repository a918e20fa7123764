"""One HTML file about a sweep that needs no network: what it found, how its trials went, how it was run.

$ python -m dashboards.report NAME_OR_FOLDER
$ python -m dashboards.report RUN_ID --tracking-uri http://HOST:5000 --output report.html
"""

from __future__ import annotations

import argparse
import math
import re
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd

from dashboards.comparison.page import build_comparison, write_tables
from dashboards.comparison.terminal import show_comparison
from dashboards.reading.sweep_data import SweepRecord, configuration_of, read_sweep
from dashboards.sweep.findings import Findings, constraints, find, refusal, shortened, shown, title
from orchestration.config import LaunchConfig
from orchestration.storage import SWEEP_FILE
from orchestration.sweep.search_space import CASE
from orchestration.terminal.format import format_time, short_name
from orchestration.tracking.notes import REPORT
from orchestration.tracking.uri import TrackingError

METRICS = ("fid", "class_consistency", "time/train_s", "memory/peak_mib")
"""Columns of the table where there are values, beside the goals, the constraints and FID at other NFE."""
LONGEST_REASON = 300
FACTS = {
    "hardware": ("device", "hardware.cpu", "hardware.cpu_cores", "hardware.memory_gib"),
    "precision": ("dtype", "quotient_dtype", "attention"),
    "workers": ("workers", "threads", "micro_batch"),
    "versions": ("version.python", "version.torch", "version.ray", "version.mlflow", "version.optuna"),
    "git commit": ("git_commit",),
    "what memory is": ("memory_measure",),
}
"""Tags that say how trials were run, by heading."""
SETTINGS = {
    "objective and network": ("objective", "network.name"),
    "training": ("training.total_steps", "training.batch_size", "optimizer.learning_rate", "optimizer.name"),
    "seeds": ("seed", "seeds_per_trial"),
    "search": ("num_trials", "sampler", "early_stopping.kind", "early_stopping.compare", "goals", "constraints"),
}


def write_report(tracking_uri: str, name_or_id: str, output: Path) -> SweepRecord:
    """Write the report of a sweep.

    Raises:
        TrackingError: if the sweep cannot be read, in one line.
        OSError: if the file cannot be written.
    """
    record = read_sweep(tracking_uri, name_or_id)
    page = build(record)
    output.write_text(page, encoding="utf-8")
    return record


def leave_report(tracking_uri: str, folder: Path) -> None:
    """Write a sweep's report into its folder and attach it to its run; what goes wrong is told in one line."""
    output = folder / REPORT
    try:
        record = write_report(tracking_uri, str(folder), output)
        tables = write_tables(record, folder) if is_comparison(record) else []
        for path in (output, *tables):
            record.client.log_artifact(record.run.info.run_id, str(path))
        if tables:
            show_comparison(record)
        print(f"report:      {output}")
        if tables:
            print(f"for papers:  {', '.join(map(str, tables))}")
    except (Exception, KeyboardInterrupt) as error:  # the sweep is over, and ends as it ended
        reason = shortened(" ".join(str(error).split()) or type(error).__name__, 300)
        print(f"the report is not complete ({reason}); later: python -m dashboards.report {shlex.quote(str(folder))}")


def is_comparison(record: SweepRecord) -> bool:
    """Whether the sweep compares cases instead of searching."""
    return CASE in record.paths


def build(record: SweepRecord) -> str:
    """The report as HTML."""
    from dashboards.html.page import HEIGHT, render
    from dashboards.sweep.figures import panels  # imports plotly and optuna
    from dashboards.sweep.samples import strips

    findings = find(record)
    configuration = configuration_of(record)
    shared = {
        "name": record.name,
        "told": _told(record),
        "facts": _facts(record, findings),
        "configuration": configuration,
        "command": _command(record),
    }
    if is_comparison(record):
        return build_comparison(record, notes=record.notes, **shared)
    drawn = panels(record, findings)
    notes = list(record.notes)
    if not findings.comparable and findings.answer != [refusal(findings.protocols)]:
        notes.append(refusal(findings.protocols).replace("These trials are not ranked", "Quality is not compared"))
    return render(
        "sweep.html.j2",
        [figure for panel in drawn for figure in panel.figures],
        findings=findings,
        notes=notes,
        table=_table(record, findings),
        panels=drawn,
        height=HEIGHT,
        strips=strips(record, findings),
        **shared,
    )


def _told(record: SweepRecord) -> str:
    """What is below the heading."""
    states = ", ".join(f"{count} {shortened(state)}" for state, count in record.trials["state"].value_counts().items())
    begun, ended = _times(record)
    when = f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime(begun / 1e3))} UTC" if begun else "unknown start"
    lasted = f", {format_time((ended - begun) / 1e3)} long" if begun and ended else ""
    return f"Sweep of {len(record.trials)} trials ({states or 'none recorded'}) · {when}{lasted}"


def _times(record: SweepRecord) -> tuple[int | None, int | None]:
    runs = [record.run] if record.run else list(record.runs.values())
    ends = [run.info.end_time for run in runs]
    return min((run.info.start_time for run in runs), default=None), max(ends) if ends and all(ends) else None


def _table(record: SweepRecord, findings: Findings) -> dict[str, Any]:
    """Columns and rows of cells, each with what is shown and the exact value to sort by."""
    table = findings.table.copy()
    table["reason"] = [_reason(record, row) for _, row in table.iterrows()]
    of_quality = sorted(name for name in table if re.fullmatch(r"fid_\d+nfe", name))
    wanted = [*record.goals, METRICS[0], *of_quality, *METRICS[1:], *(name for name, _ in constraints(record))]
    metrics = [name for name in dict.fromkeys(wanted) if name in table and table[name].notna().any()]
    names = ["rank", "trial", *(["protocol"] if "protocol" in table else []), "state", *record.paths, *metrics]
    names += ["wall_s", "step", *(["feasible"] if constraints(record) else []), "reason"]
    texts = {"state", "reason", "protocol"}
    rows = []
    for _, row in table.iterrows():
        cells = [_cell(name, row[name], name in texts) for name in names]
        style = "best" if row["trial"] == findings.best else row["state"]
        rows.append({"cells": cells, "style": style if style in _STYLES else ""})
    columns = [{"name": name, "heading": _heading(record, name), "text": name in texts} for name in names]
    caption = "By the first goal; stopped and failed trials follow with the reason."
    return {"columns": columns, "rows": rows, "caption": caption}


HEADINGS = {
    "class_consistency": "consist.",
    "time/train_s": "train [s]",
    "memory/peak_mib": "peak [MiB]",
    "wall_s": "wall [s]",
}


def _heading(record: SweepRecord, name: str) -> str:
    return (
        short_name(shortened(name)) if name in record.paths else HEADINGS.get(name) or title(name).replace(" at ", " ")
    )


_STYLES = ("best", "stopped", "failed", "interrupted")


def _cell(name: str, value: Any, text: bool) -> dict[str, Any]:
    cell = {"shown": shown(value), "value": None, "title": None, "text": text}
    if name == "reason":
        cell["shown"] = shortened(value, LONGEST_REASON)
    if isinstance(value, bool):
        cell["shown"] = "yes" if value else "no"
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        exact = float(value)
        cell["shown"] = _number(name, exact)
        cell["value"] = "" if math.isnan(exact) else repr(value)
    elif cell["shown"] != str(value):
        cell["title"] = str(value)[:1000]
    return cell


def _number(name: str, value: float) -> str:
    if math.isnan(value):
        return "–"
    if name in ("rank", "trial", "step") or (abs(value) < 1e7 and value == int(value)):
        return f"{value:.0f}"
    return f"{value:.4g}"


def _reason(record: SweepRecord, row: pd.Series) -> str:
    """Why a trial did not reach its last step."""
    if row["state"] == "stopped":
        return f"by {record.param('early_stopping.kind', 'early stopping')}"
    return str(row["reason"])


def _facts(record: SweepRecord, findings: Findings) -> dict[str, str]:
    facts = {heading: _settings(record, names) for heading, names in SETTINGS.items()}
    facts["data"] = ", ".join(filter(None, (_tag(record, "dataset"), _fingerprint(record))))
    measured = "; ".join(
        f"{protocol.letter}: {protocol}" if not findings.comparable else str(protocol)
        for protocol in findings.protocols
    )
    facts["FID measured with"] = measured
    facts |= {
        heading: ", ".join(
            value if len(names) == 1 else f"{name.partition('.')[2] or name} {value}"
            for name in names
            if (value := _tag(record, name))
        )
        for heading, names in FACTS.items()
    }
    facts["MLflow run"] = record.run.info.run_id if record.run else "gone"
    return {name: value for name, value in facts.items() if value}


def _settings(record: SweepRecord, names: tuple[str, ...]) -> str:
    """Parameters that all trials share; searched ones are in the table."""
    told = [(name, record.param(name)) for name in names if name not in record.paths]
    return ", ".join(f"{name} = {shortened(value)}" for name, value in told if value not in ("", "[]"))


def _fingerprint(record: SweepRecord) -> str:
    value = _tag(record, "fid_reference_fingerprint")
    return f"fingerprint {value}" if value else ""


def _tag(record: SweepRecord, name: str) -> str:
    """A tag of the sweep and its trials; all different values, if they differ."""
    runs = [run for run in (record.run, *record.runs.values()) if run]
    values = dict.fromkeys(run.data.tags[name] for run in runs if name in run.data.tags)
    told = [shortened(value) if len(values) > 1 else value for value in values]
    return " or ".join(told[:4]) + (f" and {len(told) - 4} others" if len(told) > 4 else "")


def _command(record: SweepRecord) -> str:
    """What repeats the sweep, with the configuration below it in a file."""
    lines = []
    if commit := re.fullmatch(r"([0-9a-f]{7,40})(-dirty)?", _tag(record, "git_commit")):
        changed = "  # with changes that were not committed" if commit[2] else ""
        lines.append(f"git checkout {commit[1]}{changed}")
    name = shlex.quote(f"{record.name}-again")
    lines.append(f"python experiments/sweep_schedule.py --config {SWEEP_FILE} --name {name}")
    return "\n".join(lines)


def _default_output(name: str) -> Path:
    """In the folder where one is, whatever characters the name has."""
    return Path(f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name).strip('.-')[:80] or 'sweep'}-report.html")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m dashboards.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweep", metavar="SWEEP", help="its name, its folder, or the id of its run in MLflow")
    default = LaunchConfig().resolved_tracking_uri
    parser.add_argument("--tracking-uri", default=default, help="of MLflow, by default mlflow.db in results")
    parser.add_argument("--output", type=Path, help="by default NAME-report.html here")
    given = parser.parse_args(arguments)
    output = given.output or _default_output(given.sweep)
    try:
        record = write_report(given.tracking_uri, given.sweep, output)
    except TrackingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: output = {output}: cannot be written ({error.strerror})", file=sys.stderr)
        return 2
    print(f"report of sweep {record.name}: {output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

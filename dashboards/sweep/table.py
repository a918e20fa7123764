"""The table of trials in a search's report."""

from __future__ import annotations

import math
import re
from typing import Any

from dashboards.labels import display, shorten, title
from dashboards.reading.sweep_data import SweepData
from dashboards.sweep.findings import Findings
from orchestration.terminal.format import short_name
from orchestration.tracking.schema import FID, PEAK_MIB, PEAK_SHARE, TRAIN_S

METRICS = (FID, "class_consistency", TRAIN_S, PEAK_MIB, PEAK_SHARE)
"""Metric columns if reported, besides the goals, the constraints and FID at other NFE."""
LONGEST_REASON = 300
HEADINGS = {TRAIN_S: "training [s]", PEAK_MIB: "peak memory [MiB]", "wall_s": "wall-clock [s]"}
TEXT_COLUMNS = ("state", "reason", "protocol")
STYLES = ("best", "stopped", "failed", "interrupted")


def trials_table(findings: Findings) -> dict[str, Any]:
    """Build columns and rows of cells, each with its text and the exact value to sort by."""
    data, table = findings.data, findings.table.copy()
    stopped = table["state"] == "stopped"
    table.loc[stopped, "reason"] = f"by {data.param('early_stopping.kind', 'early stopping')}"
    limited = [metric for metric, _ in findings.constraints]
    other_nfe = sorted(name for name in table if re.fullmatch(rf"{FID}_\d+nfe", name))
    metrics = dict.fromkeys([*data.goals, METRICS[0], *other_nfe, *METRICS[1:], *limited])
    metrics = [name for name in metrics if name in table and table[name].notna().any()]
    names = ["rank", "trial", *(["protocol"] if "protocol" in table else []), "state", *data.paths, *metrics]
    names += ["wall_s", "step", *(["feasible"] if limited else []), "reason"]
    rows = []
    for _, row in table.iterrows():
        style = "best" if row["trial"] == findings.best else row["state"]
        cells = [_cell(name, row[name]) for name in names]
        rows.append({"cells": cells, "style": style if style in STYLES else ""})
    columns = [{"name": name, "heading": _heading(data, name), "text": name in TEXT_COLUMNS} for name in names]
    caption = "Ranked by the first goal; stopped and failed trials follow with the reason."
    if not findings.ranked:
        caption = "Not ranked; letters denote the protocol."
    return {"columns": columns, "rows": rows, "caption": caption}


def _heading(data: SweepData, name: str) -> str:
    if name in data.paths:
        return short_name(shorten(name))
    return HEADINGS.get(name) or title(name).replace(" at ", " ")


def _cell(name: str, value: Any) -> dict[str, Any]:
    cell = {"shown": display(value), "value": None, "title": None, "text": name in TEXT_COLUMNS}
    if name == "reason":
        cell["shown"] = shorten(value, LONGEST_REASON)
    if isinstance(value, bool):
        cell["shown"] = "yes" if value else "no"
    elif isinstance(value, (int, float)):
        cell["shown"] = _number(name, float(value))
        cell["value"] = "" if math.isnan(value) else repr(value)
    elif cell["shown"] != str(value):
        cell["title"] = shorten(value, 1000)
    return cell


def _number(name: str, value: float) -> str:
    if math.isnan(value):
        return "–"
    if name in ("rank", "trial", "step") or (abs(value) < 1e7 and value == int(value)):
        return f"{value:.0f}"
    return f"{value:.4g}"

"""The best trials of a search as a LaTeX table."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from dashboards.labels import display, title
from dashboards.latex import Value, compact
from dashboards.sweep.findings import Findings
from orchestration.terminal.format import short_name
from orchestration.tracking.schema import FID, PEAK_MIB, TRAIN_S
from soflow.files import write_atomic

MOST_ROWS = 10
TABLE_FILE = "trials-compact.tex"


def write_table(findings: Findings, folder: Path) -> list[Path]:
    """Write the table of the best trials and return its path; nothing without ranked trials."""
    if findings.best is None:
        return []
    write_atomic(folder / TABLE_FILE, as_compact_latex(findings))
    return [folder / TABLE_FILE]


def as_compact_latex(findings: Findings) -> str:
    """Format the best trials with their parameters, goals and costs."""
    data, rows = findings.data, findings.table[findings.table["rank"].notna()].head(MOST_ROWS)
    metrics = [name for name in dict.fromkeys([*data.goals, FID, TRAIN_S, PEAK_MIB]) if name in rows]
    caption = f"{data.name}: the best {len(rows)} of {len(findings.table)} trials by {title(data.goals[0])}."
    if f"{FID}/low" in rows:
        caption += " FID: mean over seeds ± half the width of the 95 % interval."
    if findings.protocols:
        caption += f" FID protocol: {'; '.join(map(str, findings.protocols))}."
    return compact(
        ["trial", *(short_name(path) for path in data.paths)],
        [[str(row["trial"]), *(display(row[path]) for path in data.paths)] for _, row in rows.iterrows()],
        {title(metric): [_value(row, metric) for _, row in rows.iterrows()] for metric in metrics},
        caption,
        data.name,
    )


def _value(row: pd.Series, metric: str) -> Value | None:
    if not math.isfinite(row[metric]):
        return None
    return Value(row[metric], (row.get(f"{metric}/high", math.nan) - row.get(f"{metric}/low", math.nan)) / 2)

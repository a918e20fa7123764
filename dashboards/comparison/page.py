"""The report of a comparison: one HTML page, and its tables as Markdown and LaTeX files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from dashboards.comparison import published
from dashboards.comparison.compare import Comparison
from dashboards.comparison.figures import panels
from dashboards.comparison.tables import (
    EXPONENTS_NOTE,
    VERDICTS_NOTE,
    as_compact_latex,
    as_latex,
    as_markdown,
    exponent_table,
    measured_note,
    measured_table,
    published_table,
    stacked,
    verdict_table,
)
from dashboards.html.facts import shared_values
from dashboards.html.page import render_panels
from dashboards.html.pictures import REAL_IMAGES, Picture, pictures
from dashboards.labels import shorten, thousands
from dashboards.reading.cost_study import CostStudy
from dashboards.reading.images import TrialImages
from orchestration.sweep.cases import Case
from orchestration.tracking.schema import PEAK_MIB, STEP_MS
from soflow.files import write_atomic

COST_COLUMNS = {
    "variant": "variant",
    "network": "network",
    "batch": "batch",
    "precision": "precision",
    STEP_MS: "step [ms]",
    "time/to_flow_matching": "× flow matching",
    PEAK_MIB: "peak memory [MiB]",
    "flops/step": "FLOPs",
}


def comparison_page(comparison: Comparison, images: dict[int, TrialImages], costs: CostStudy | None) -> str:
    """Render the report.

    Args:
        images: sample grids of the illustrated trials.
        costs: the newest cost study in the same MLflow.
    """
    return render_panels(
        "comparison.html.j2",
        panels(comparison),
        answer=comparison.answer,
        notes=comparison.data.notes,
        verdicts=verdict_table(comparison),
        verdicts_note=VERDICTS_NOTE,
        exponents=exponent_table(comparison.exponents),
        exponents_note=EXPONENTS_NOTE,
        measured=stacked(measured_table(comparison)),
        measured_note=measured_note(comparison),
        lost=_lost(comparison),
        pictures=_pictures(comparison, images),
        costs=_costs(costs) if costs else None,
        published=published_table(),
        published_note=published.NOTE,
        cases=_cases(comparison.data.param("cases")),
        **shared_values(comparison.data, comparison.protocols),
    )


def write_tables(comparison: Comparison, folder: Path) -> list[Path]:
    """Write comparison.md, comparison.tex and comparison-compact.tex and return their paths."""
    texts = {
        folder / "comparison.md": as_markdown(comparison),
        folder / "comparison.tex": as_latex(comparison),
        folder / "comparison-compact.tex": as_compact_latex(comparison),
    }
    for path, text in texts.items():
        write_atomic(path, text)
    return list(texts)


def _cases(text: str) -> str:
    """Format the logged cases, one per line."""
    try:
        return "\n".join(str(Case.model_validate(case)) for case in yaml.safe_load(text))
    except (yaml.YAMLError, TypeError, ValueError):
        return text


def _lost(comparison: Comparison) -> list[str]:
    """List excluded trials with their states and reasons."""
    rows = comparison.data.trials.set_index("trial")
    return [
        f"{shorten(case.name)}, seed {rows.loc[number, 'seed']:.0f} (trial {number}): {rows.loc[number, 'state']}"
        + (f", {shorten(rows.loc[number, 'reason'], 200)}" if rows.loc[number, "reason"] else "")
        for case in comparison.cases
        for number in case.lost
    ]


def _pictures(comparison: Comparison, images: dict[int, TrialImages]) -> list[Picture]:
    """Embed the real images, if all cases learned the same ones, and the samples of each case."""
    seed_of = {number: seed for case in comparison.cases for seed, number in case.trials.items()}
    real = {images[number].real for number in comparison.illustrated.values()} - {None}
    beside = {REAL_IMAGES: real.pop()} if len(real) == 1 else {}
    return pictures(
        beside
        | {
            f"{shorten(name)}, seed {seed_of[number]}, step {step:,}": png
            for name, number in comparison.illustrated.items()
            for step, png in images[number].over_steps.items()
        }
    )


def _costs(study: CostStudy) -> dict[str, Any]:
    rows = [[_cost_cell(step.get(name)) for name in COST_COLUMNS] for step in study.steps]
    measured_on = f", measured on {shorten(study.cpu)}" if study.cpu else ""
    caption = f"Cost study {shorten(study.name)}{measured_on}."
    return {"rows": [list(COST_COLUMNS.values()), *rows], "caption": caption}


def _cost_cell(value: str | float | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, str):
        return shorten(value)
    return thousands(f"{value:.0f}") if value >= 1e3 else f"{value:.3g}"

"""The report of a comparison of cases: one HTML file, and its tables as Markdown and LaTeX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dashboards.comparison import exponents, published
from dashboards.comparison.compare import Comparison, compare
from dashboards.comparison.tables import (
    VERDICTS_NOTE,
    Table,
    as_latex,
    as_markdown,
    how_to_read,
    measured,
    published_table,
    stacked,
    verdict_table,
)
from dashboards.reading.mlflow_runs import KIND, PARENT
from dashboards.reading.sweep_data import SweepRecord
from dashboards.sweep.findings import shortened, thousands
from dashboards.sweep.samples import Picture, data_uri

COST_COLUMNS = {
    "variant": "variant",
    "network": "network",
    "batch": "batch",
    "precision": "precision",
    "time/step_ms": "step [ms]",
    "time/to_flow_matching": "× flow matching",
    "memory/peak_mib": "peak [MiB]",
    "flops/step": "operations",
}


def build_comparison(record: SweepRecord, **shared: Any) -> str:
    """The report as HTML.

    Args:
        shared: what every report of a sweep tells: `name`, `told`, `notes`, `facts`, `configuration`, `command`.
    """
    from dashboards.comparison.figures import panels  # imports plotly
    from dashboards.html.page import HEIGHT, render

    comparison = compare(record)
    drawn, fitted = panels(comparison), exponents.fit(comparison)
    if fitted:
        drawn.insert(0, exponents.panel(fitted))
    return render(
        "comparison.html.j2",
        [figure for panel in drawn for figure in panel.figures],
        answer=[*exponents.answer(fitted), *comparison.answer],
        how_to_read=how_to_read(comparison).replace("\\", ""),
        verdicts=verdict_table(comparison),
        verdicts_note=VERDICTS_NOTE,
        exponents=exponents.table(fitted),
        exponents_note=exponents.NOTE,
        measured=stacked(measured(comparison)),
        lost=_lost(comparison),
        panels=drawn,
        height=HEIGHT,
        pictures=_pictures(comparison),
        costs=_costs(record),
        published=published_table(),
        published_note=published.NOTE,
        cases=record.param("cases"),
        **shared,
    )


def write_tables(record: SweepRecord, folder: Path) -> list[Path]:
    """Write comparison.md and comparison.tex; their paths."""
    comparison = compare(record)
    paths = [folder / "comparison.md", folder / "comparison.tex"]
    for path, text in zip(paths, (as_markdown(comparison), as_latex(comparison)), strict=True):
        path.write_text(text, encoding="utf-8")
    return paths


def _lost(comparison: Comparison) -> list[str]:
    rows = comparison.record.trials.set_index("trial")
    return [
        f"{shortened(case.name)}, seed {rows.loc[number, 'seed']:.0f} (trial {number}): {rows.loc[number, 'state']}"
        + (f", {shortened(str(rows.loc[number, 'reason']), 200)}" if rows.loc[number, "reason"] else "")
        for case in comparison.cases
        for number in case.lost
    ]


def _pictures(comparison: Comparison) -> list[Picture]:
    found = []
    for case in comparison.cases:
        if not case.trials:
            continue
        seed = min(case.trials)
        images = comparison.record.images(case.trials[seed]).get("samples", {})
        content = images and comparison.record.artifact(comparison.record.runs[case.trials[seed]], images[max(images)])
        if uri := content and data_uri(content):
            found.append(Picture(f"{shortened(case.name)}, seed {seed}, step {max(images):,}", uri))
    return found


def _costs(record: SweepRecord) -> dict[str, Any] | None:
    """The figures of the newest cost study in the same MLflow, if there is one."""
    client = record.client
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    finished = f"tags.`{KIND}` = 'cost study' and status = 'FINISHED'"
    studies = client.search_runs(experiments, finished, order_by=["start_time DESC"], max_results=1)
    if not studies:
        return None
    steps = client.search_runs(experiments, f"tags.`{PARENT}` = '{studies[0].info.run_id}'", max_results=1000)
    rows: Table = [list(COST_COLUMNS.values())]
    for run in sorted(steps, key=lambda run: run.info.start_time):
        rows.append([_shown(run.data.params.get(name, run.data.metrics.get(name))) for name in COST_COLUMNS])
    device = studies[0].data.tags.get("hardware.cpu", "")
    caption = f"The cost study {shortened(studies[0].info.run_name or studies[0].info.run_id)}"
    return {"rows": rows, "caption": caption + (f", measured on {shortened(device)}." if device else ".")}


def _shown(value: str | float | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, str):
        return shortened(value)
    return thousands(f"{value:.0f}") if value >= 1e4 else f"{value:.3g}"

"""Compare runs or trials: settings and metrics that differ, and samples side by side.

$ python experiments/compare_runs.py results/NAME/trials/0003 results/NAME/trials/0007
$ python experiments/compare_runs.py results/first results/second --out both.png
$ python experiments/compare_runs.py results/first results/second --format json

Where FIDs follow different protocols, the differences are named: such FIDs say nothing about which run is better.
Differences in device, number of workers and so on, which change times and memory, are named too.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator

from orchestration.terminal.command_line import fail, read_command_line
from orchestration.terminal.format import format_value, table_console
from orchestration.terminal.views import finite
from orchestration.tracking.schema import FID_PROTOCOL
from soflow.config import flatten, to_dict
from soflow.config_base import ConfigError, OutputPath, Section

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from soflow.runs import Run

MAIN = ("fid", "kid", "class_consistency", "time/train_s", "time/step_ms", "memory/peak_mib", "throughput/images_per_s")
"""Metrics that are shown unless all are."""
MEASURED_UNDER = ("device", "threads", "workers", "micro_batch", "memory_measure")
"""Facts besides the settings on which times and memory depend."""
GAP = 16
"""Pixels between two grids."""

Table = dict[str, list[Any]]
"""Values by name, one per run; None where a run has none."""


class CompareOptions(Section):
    runs: tuple[Path, ...]
    """Folders of runs or trials."""
    out: OutputPath | None = None
    """PNG file to write: the runs' last sample grids side by side, from equal noise."""
    format: Literal["table", "json"] = "table"
    """Print tables, or one JSON object."""
    all_metrics: bool = False
    """Compare every metric."""

    @field_validator("runs")
    @classmethod
    def _are_two(cls, runs: tuple[Path, ...]) -> tuple[Path, ...]:
        if len(runs) < 2:
            raise ValueError("must be two folders or more")
        return runs

    @field_validator("out")
    @classmethod
    def _is_a_png(cls, path: Path | None) -> Path | None:
        if path is not None and path.suffix.lower() != ".png":
            raise ValueError("must be the name of a .png file")
        return path


def main() -> int:
    options = read_command_line(CompareOptions, __doc__, positional="runs")
    from soflow.runs import load_run

    try:
        runs = [load_run(path) for path in options.runs]
        if not all(run.reports for run in runs):
            without = next(run.folder for run in runs if not run.reports)
            raise ConfigError(f"runs = {without}: has no report yet")
        compared = compare(runs, options.all_metrics)
        grids = [run.grid() for run in runs] if options.out is not None else []
    except (ConfigError, OSError) as error:
        fail(error)
    if options.format == "json":
        print(json.dumps(finite({"runs": [str(run.folder) for run in runs], **compared}), indent=2))
    else:
        show(runs, compared)
    if options.out is not None:
        write_grids(grids, options.out)
        print(f"samples: {options.out}", file=sys.stderr)
    return 0


def compare(runs: list[Run], all_metrics: bool = False) -> dict[str, Table]:
    """Return the metrics of the last reports, and the differences in settings, conditions and protocol of FID.

    The first of the metrics is `step`, that of the last report.
    """
    settings = _table([flatten(to_dict(run.config)) for run in runs])
    facts = _table([run.reports[-1].facts for run in runs])
    metrics = _table([run.metrics for run in runs])
    return {
        "settings": _differing(settings),
        "conditions": _differing({name: values for name, values in facts.items() if name in MEASURED_UNDER}),
        "protocol": _differing({name: values for name, values in facts.items() if name in FID_PROTOCOL}),
        "metrics": {"step": [run.reports[-1].step for run in runs]}
        | (metrics if all_metrics else {name: metrics[name] for name in MAIN if name in metrics}),
    }


def _table(rows: list[dict[str, Any]]) -> Table:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _differing(table: Table) -> Table:
    return {name: values for name, values in table.items() if any(value != values[0] for value in values)}


def show(runs: list[Run], compared: dict[str, Table]) -> None:
    """Print a table of the settings and one of the metrics, with each run's ratio to the first."""
    from rich.table import Table as Printed

    console = table_console()
    names = [_name(run) for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.folder) for run in runs]
    for title, table in compared.items():
        if not table:
            if title == "settings":
                console.print("settings: no difference")
            continue
        printed = Printed(title=title, title_justify="left")
        for column in ("", *names):
            printed.add_column(column, overflow="fold")
        for name, values in table.items():
            shown = [_shown(value, values[0] if title == "metrics" and i else None) for i, value in enumerate(values)]
            printed.add_row(name, *shown)
        console.print(printed)
    if compared["conditions"]:
        console.print("Times and memory were measured under different conditions.", highlight=False)
    if compared["protocol"]:
        console.print("The FIDs follow different protocols and cannot be compared.", highlight=False)
    if len(set(compared["metrics"]["step"])) > 1:
        console.print("The last reports are of different steps.", highlight=False)


def _name(run: Run) -> str:
    """Return a run's name, of a trial with its sweep's."""
    folder = run.folder.absolute()
    is_trial = folder.parent.name == "trials" and folder.name.isdecimal()
    return f"{folder.parents[1].name}, trial {int(folder.name)}" if is_trial else folder.name


def _shown(value: Any, first: Any) -> str:
    if value is None:
        return "–"
    ratio = f" (×{value / first:.3g})" if isinstance(first, float) and first else ""
    return f"{format_value(value)}{ratio}"


def write_grids(grids: list[Picture], path: Path) -> None:
    """Write sample grids as one picture, from left to right."""
    from PIL import Image

    from soflow.training.grids import save_png

    width = sum(grid.width for grid in grids) + GAP * (len(grids) - 1)
    picture = Image.new("RGB", (width, max(grid.height for grid in grids)), "white")
    left = 0
    for grid in grids:
        picture.paste(grid, (left, 0))
        left += grid.width + GAP
    save_png(picture, path)


if __name__ == "__main__":
    sys.exit(main())

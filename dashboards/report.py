"""Write the report of a sweep: one HTML file with its findings, figures and settings that works offline.

$ python -m dashboards.report NAME_OR_FOLDER
$ python -m dashboards.report RUN_ID --tracking-uri http://HOST:5000 --output report.html
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

from dashboards.comparison.compare import Comparison, compare
from dashboards.comparison.terminal import show_comparison
from dashboards.labels import one_line_reason
from dashboards.reading.cost_study import CostStudy, read_cost_study
from dashboards.reading.images import TrialImages, read_images
from dashboards.reading.sweep_data import SweepData, read_sweep
from dashboards.sweep.findings import Findings, find
from orchestration.config import Folder, Launch
from orchestration.storage import REPORT_FILE
from orchestration.terminal.command_line import fail, read_command_line
from orchestration.tracking.uri import TrackingError
from soflow.config_base import Section
from soflow.files import write_atomic

GRIDS_OVER_STEPS = 5
"""Sample grids of a search's trial over steps: the first, the last and some between."""

Analysis = Findings | Comparison


def analyze(data: SweepData) -> Analysis:
    return compare(data) if data.is_comparison else find(data)


def read_attachments(analysis: Analysis) -> tuple[dict[int, TrialImages], CostStudy | None]:
    """Read what a report shows besides the analysis: sample grids and, in a comparison, the newest cost study."""
    data = analysis.data
    is_comparison = isinstance(analysis, Comparison)
    images = read_images(data, analysis.illustrated.values(), 1 if is_comparison else GRIDS_OVER_STEPS)
    return images, read_cost_study(data.tracking_uri) if is_comparison else None


def render(analysis: Analysis, images: dict[int, TrialImages], costs: CostStudy | None) -> str:
    """Render the report as HTML; everything was read before."""
    from dashboards.comparison.page import comparison_page  # imports plotly and optuna
    from dashboards.sweep.page import search_page

    if isinstance(analysis, Comparison):
        return comparison_page(analysis, images, costs)
    return search_page(analysis, images)


def write_report(tracking_uri: str, name_or_id: str, output: Path) -> Analysis:
    """Read a sweep, analyze it and write its report.

    Raises:
        TrackingError: if the sweep cannot be read.
        OSError: if the file cannot be written.
    """
    analysis = analyze(read_sweep(tracking_uri, name_or_id))
    write_atomic(output, render(analysis, *read_attachments(analysis)))
    return analysis


def leave_report(tracking_uri: str, folder: Path, attach: Callable[[Path], None]) -> None:
    """Write a sweep's report and its tables for papers into its folder; print an error as one line.

    Args:
        attach: called with each written file.
    """
    output = folder / REPORT_FILE
    try:
        analysis = write_report(tracking_uri, str(folder), output)
        tables = _write_tables(analysis, folder)
        for path in (output, *tables):
            attach(path)
        if isinstance(analysis, Comparison):
            show_comparison(analysis)
        print(f"report:      {output}")
        if tables:
            print(f"for papers:  {', '.join(map(str, tables))}")
    except (Exception, KeyboardInterrupt) as error:  # a failed report does not change how the sweep ended
        retry = f"python -m dashboards.report {shlex.quote(str(folder))}"
        print(f"the report is incomplete ({one_line_reason(error, 300)}); to retry: {retry}")


def _write_tables(analysis: Analysis, folder: Path) -> list[Path]:
    from dashboards.comparison.page import write_tables  # imports plotly and optuna
    from dashboards.sweep.paper import write_table

    return write_tables(analysis, folder) if isinstance(analysis, Comparison) else write_table(analysis, folder)


def _default_output(name: str) -> Path:
    """Make a file name from a sweep's name or path, which may contain any character."""
    return Path(f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name).strip('.-')[:80] or 'sweep'}-report.html")


class ReportOptions(Section):
    sweep: str
    """Name or folder of the sweep, or the id of its MLflow run."""
    storage: Folder = Path("results")
    """Folder of the sweeps, with mlflow.db in it."""
    tracking_uri: str | None = None
    """MLflow server (http(s)://…) or database (sqlite:///…). Default: mlflow.db in `storage`."""
    output: Path | None = None
    """File to write. Default: NAME-report.html in the current folder."""


def main(arguments: list[str] | None = None) -> int:
    options = read_command_line(ReportOptions, __doc__, arguments, positional="sweep")
    uri = options.tracking_uri or Launch(storage=options.storage).resolved_tracking_uri
    output = options.output or _default_output(options.sweep)
    if not output.absolute().parent.is_dir():
        fail(f"output = {output}: cannot be written (there is no folder {output.parent})")
    try:
        analysis = write_report(uri, options.sweep, output)
    except TrackingError as error:
        fail(error)
    except OSError as error:
        fail(f"output = {output}: cannot be written ({error.strerror})")
    print(f"report of sweep {analysis.data.name}: {output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

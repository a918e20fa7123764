"""Cost study: optimizer steps of all variants, measured in turn in separate processes, compared by paired ratios."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.progress import Progress, TimeElapsedColumn, TimeRemainingColumn

from orchestration.cluster import connected
from orchestration.config import FLUSH_S, ResourcesConfig
from orchestration.cost_study.config import REFERENCE, Cell, CostStudyConfig, cells, run_values
from orchestration.cost_study.results import Contender, VariantCost, table
from orchestration.storage import check_storage, new_folder
from orchestration.terminal.format import table_console
from orchestration.tracking.environment import environment_tags
from orchestration.tracking.schema import COST_KIND, EXPERIMENT, KIND, OBJECTIVE, STEP_COST_KIND, check_own_tags
from orchestration.tracking.tracker import Tracker
from orchestration.tracking.uri import check_tracking
from soflow.config import flatten, to_dict
from soflow.config_files import to_yaml
from soflow.files import write_atomic

if TYPE_CHECKING:
    from orchestration.workers.group import WorkerGroup

CONFIG_FILE, COSTS_FILE, ROUNDS_FILE = "study.yaml", "costs.csv", "rounds.csv"
FIGURES = ("time", "memory", "flops")


def run_cost_study(config: CostStudyConfig) -> str:
    """Measure all variants, write tables and charts, and log them to MLflow.

    The tables are written after every setting, so that its measurements are kept however the program ends.

    Returns:
        "FINISHED", "FAILED" if settings could not be measured, e.g. for lack of memory, or "KILLED" if interrupted.

    Raises:
        ConfigError, TrackingError: in one line, before anything starts.
    """
    plan = {cell: _contenders(config, cell) for cell in cells(config)}
    for cell, contenders in plan.items():
        for contender in contenders:
            _values(config, cell, contender)
    folder = new_folder(config).absolute()
    check_storage(config.storage)
    check_own_tags(config.own_tags)
    check_tracking(config.resolved_tracking_uri)
    measured: list[VariantCost] = []
    status = "FINISHED"
    # The processes of all variants start at once. Ray warns above this limit.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "64")
    with connected(config, groups=1) as resources:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / CONFIG_FILE, to_yaml(config))
        variants = max(map(len, plan.values()))
        print(f"cost study {folder.name}: {len(plan)} settings of {variants} variants, in {folder}", flush=True)
        try:
            for number, (cell, results) in enumerate(_measure(config, plan, resources, folder), start=1):
                setting = f"{cell.network}, batch {cell.batch}, {cell.precision}"
                if isinstance(results, str):
                    status = "FAILED"
                    print(f"not measured, {number} of {len(plan)} settings: {setting}: {results}", flush=True)
                    continue
                measured += results
                costs = table(measured)
                _write_tables(folder, costs, measured)
                print(f"measured {number} of {len(plan)} settings: {setting}", flush=True)
        except KeyboardInterrupt:
            status = "KILLED"
            print(f"interrupted; {len(measured)} complete measurements are kept")
    if measured:
        _show(folder, costs)
        _log(config, folder, costs, status)
    return status


def _contenders(config: CostStudyConfig, cell: Cell) -> list[Contender]:
    """List what to measure in a cell, unguided flow matching first."""
    kinds = [(REFERENCE, False), *((variant, True) for variant in config.variants if variant != REFERENCE)]
    if REFERENCE in config.variants and cell.guidance:
        kinds.append((REFERENCE, True))
    return [Contender(*kind, compiled) for kind in kinds for compiled in dict.fromkeys(config.compiled)]


def _values(config: CostStudyConfig, cell: Cell, contender: Contender) -> dict[str, Any]:
    return run_values(config, cell, contender.variant, cell.guidance and contender.guided, contender.compiled)


def _measure(
    config: CostStudyConfig, plan: dict[Cell, list[Contender]], resources: ResourcesConfig, folder: Path
) -> Iterator[tuple[Cell, list[VariantCost] | str]]:
    """Yield each cell with its results, or the reason why there are none, from processes that are reused."""
    from orchestration.cost_study.worker import CostWorker
    from orchestration.workers.group import WorkerGroup

    # Only one process computes at a time, with all threads of a worker; each reserves a share of the worker's CPUs.
    contenders = list(dict.fromkeys(contender for cell in plan.values() for contender in cell))
    share = 1 / len(contenders)
    groups = {
        contender: WorkerGroup(resources, folder, contender.name.replace(" ", "-"), CostWorker, share)
        for contender in contenders
    }
    columns = (*Progress.get_default_columns()[:3], TimeElapsedColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns) as progress:
            task = progress.add_task("starting", total=sum(config.rounds + len(cell) for cell in plan.values()))
            done = 0
            for cell, of_cell in plan.items():
                progress.update(task, completed=done, description=f"{cell.network}, batch {cell.batch}")
                done += config.rounds + len(of_cell)
                found: list[VariantCost] | str
                try:
                    found = _measure_cell(config, cell, of_cell, groups, lambda: progress.advance(task))
                except CellFailed as error:
                    found = str(error)
                yield cell, found
    finally:
        for group in groups.values():
            group.close()


class CellFailed(Exception):
    """Failure of a variant, without which its cell has no ratios; the message names it."""


def _measure_cell(
    config: CostStudyConfig,
    cell: Cell,
    contenders: list[Contender],
    groups: dict[Contender, WorkerGroup],
    advance: Callable[[], None],
) -> list[VariantCost]:
    from orchestration.cost_study.worker import Prepare, Time

    results = []
    for contender in contenders:
        request = Prepare(_values(config, cell, contender), cell.attention, config.memory_gib * 2**30)
        results.append(VariantCost(cell, contender, _ask(groups, contender, request)))
        advance()
    for _ in range(config.rounds):
        for result in results:
            result.rounds.append(_ask(groups, result.contender, Time(config.turn_s)))
        advance()
    return results


def _ask(groups: dict[Contender, WorkerGroup], contender: Contender, request: Any) -> Any:
    """Send a request to a contender's group and return its answer.

    Raises:
        CellFailed: with the worker's error, or if the workers were lost too often.
    """
    from orchestration.workers.group import RequestFailed

    try:
        answer = groups[contender].ask(request)
    except RequestFailed as error:
        raise CellFailed(f"{contender.name}: {error}") from error
    if isinstance(answer, str):
        raise CellFailed(f"{contender.name}: {answer}")
    return answer


def _write_tables(folder: Path, costs: pd.DataFrame, measured: list[VariantCost]) -> None:
    write_atomic(folder / COSTS_FILE, costs.to_csv(index=False))
    steps = [
        {
            **vars(result.cell),
            "variant": result.contender.label,
            "compiled": result.contender.compiled,
            "round": number,
            **{f"{name}_ms": value for name, value in step.items()},  # a phase is named batch, and so is a setting
        }
        for result in measured
        for number, steps in enumerate(result.rounds)
        for step in steps
    ]
    write_atomic(folder / ROUNDS_FILE, pd.DataFrame(steps).to_csv(index=False))


def _show(folder: Path, costs: pd.DataFrame) -> None:
    """Print the short table and draw the charts."""
    from orchestration.cost_study.charts import draw_charts, sentences, short_table

    table_console().print(short_table(costs))
    for sentence in sentences(costs):
        print(sentence)
    charts = draw_charts(costs, folder)
    print(f"tables: {folder / COSTS_FILE}, {folder / ROUNDS_FILE}; charts: {', '.join(map(str, charts))}")


def _log(config: CostStudyConfig, folder: Path, costs: pd.DataFrame, status: str) -> None:
    """Log a parent run with tables and charts, and a child run with figures per variant and cell."""
    tags = config.own_tags | environment_tags() | {KIND: COST_KIND, "threads": str(config.resources.cpus_per_worker)}
    tracker = Tracker(config.resolved_tracking_uri, EXPERIMENT, folder / "spool")
    params = flatten(to_dict(config))
    del params["tags"], params["note"]
    tracker.start_run(folder.name, folder.name, params, tags)
    if config.note:
        tracker.describe(folder.name, config.note)
    for path in sorted(folder.glob("*.csv")) + sorted(folder.glob("*.png")):
        tracker.log_artifact(folder.name, path)
    for number, record in enumerate(costs.to_dict("records")):
        row = {str(name): value for name, value in record.items()}
        key = f"{folder.name}/{number:03d}"
        figures = {name: value for name, value in row.items() if "/" in name and name.split("/")[0] in FIGURES}
        params = {name: value for name, value in row.items() if name not in figures and value == value}
        child_tags = tags | {KIND: STEP_COST_KIND, OBJECTIVE: row["variant"]}
        name = f"{row['variant']}{', compiled' if row['compiled'] else ''}, {row['network']}, {row['batch']}"
        tracker.start_run(key, name, params, child_tags, folder.name)
        tracker.log_metrics(key, {name: value for name, value in figures.items() if value == value}, step=0)
        tracker.end_run(key, "FINISHED")
    tracker.end_run(folder.name, status)
    if undelivered := tracker.close(FLUSH_S):
        spool, uri = folder / "spool", config.resolved_tracking_uri
        print(f"{undelivered} records have not reached {uri}; they are kept in {spool}")

"""Cost study: optimizer steps of all variants, measured in turn in separate processes, compared by paired ratios."""

from __future__ import annotations

import os
import statistics
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from rich.progress import Progress, TimeElapsedColumn, TimeRemainingColumn

from orchestration.cluster import connected
from orchestration.config import FLUSH_S, ResourcesConfig
from orchestration.cost_study.config import BEST, REFERENCE, Cell, CostStudyConfig, cells, run_values
from orchestration.storage import check_storage, new_folder
from orchestration.terminal.format import table_console
from orchestration.tracking.environment import environment_tags
from orchestration.tracking.schema import COST_KIND, EXPERIMENT, KIND, OBJECTIVE, STEP_COST_KIND, check_own_tags
from orchestration.tracking.tracker import Tracker
from orchestration.tracking.uri import check_tracking
from soflow.config import flatten, to_dict
from soflow.config_files import to_yaml
from soflow.files import write_atomic
from soflow.profiling.phases import PHASES

if TYPE_CHECKING:
    from orchestration.workers.group import WorkerGroup

CONFIG_FILE, COSTS_FILE, ROUNDS_FILE = "study.yaml", "costs.csv", "rounds.csv"
FIGURES = ("time", "memory", "flops")


@dataclass(frozen=True)
class Contender:
    """Variant that one process measures in every cell, eager or compiled."""

    variant: str
    guided: bool
    """Guided where the cell is."""
    compiled: bool

    @property
    def label(self) -> str:
        return f"{self.variant} guided" if self.variant == REFERENCE and self.guided else self.variant

    @property
    def name(self) -> str:
        return f"{self.label} compiled" if self.compiled else self.label


@dataclass
class VariantCost:
    """Costs of a variant in a cell: `figures` of one step, and the times of all measured steps by round."""

    cell: Cell
    contender: Contender
    figures: dict[str, Any]
    rounds: list[list[dict[str, float]]] = field(default_factory=list)

    def round_ms(self) -> list[float]:
        """Return the median milliseconds per step of each round."""
        return [statistics.median(step["step"] for step in steps) for steps in self.rounds]

    def phase_ms(self) -> dict[str, float]:
        """Return the median milliseconds per step of each phase; "other" is the time outside all phases."""
        steps = [step for steps in self.rounds for step in steps]
        phases = {name: statistics.median(step.get(name, 0.0) for step in steps) for name in PHASES}
        # Every step contains its total, "step", beside the phases: total − Σ phases = 2 total − Σ all.
        return phases | {"other": statistics.median(2 * step["step"] - sum(step.values()) for step in steps)}


def run_cost_study(config: CostStudyConfig) -> str:
    """Measure all variants, write tables and charts, and log them to MLflow.

    Returns:
        "FINISHED", or "KILLED" if interrupted; complete measurements are kept.

    Raises:
        ConfigError, TrackingError: in one line, before anything starts.
    """
    plan, contenders = cells(config), _contenders(config)
    for cell in plan:
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
        print(f"cost study {folder.name}: {len(plan)} settings of {len(contenders)} variants, in {folder}", flush=True)
        try:
            for number, cell_results in enumerate(_measure(config, plan, contenders, resources, folder), start=1):
                measured += cell_results
                cell = cell_results[0].cell
                setting = f"{cell.network}, batch {cell.batch}, {cell.precision}"
                print(f"measured {number} of {len(plan)} settings: {setting}", flush=True)
        except KeyboardInterrupt:
            status = "KILLED"
            print(f"interrupted; {len(measured)} complete measurements are kept")
    if measured:
        costs = table(measured)
        _write(folder, costs, measured)
        _log(config, folder, costs, status)
    return status


def _contenders(config: CostStudyConfig) -> list[Contender]:
    """List what to measure in every cell, unguided flow matching first."""
    kinds = [(REFERENCE, False), *((variant, True) for variant in config.variants if variant != REFERENCE)]
    if REFERENCE in config.variants and True in config.guidance:
        kinds.append((REFERENCE, True))
    return [Contender(*kind, compiled) for kind in kinds for compiled in dict.fromkeys(config.compiled)]


def _values(config: CostStudyConfig, cell: Cell, contender: Contender) -> dict[str, Any]:
    return run_values(config, cell, contender.variant, cell.guidance and contender.guided, contender.compiled)


def _measure(
    config: CostStudyConfig, plan: list[Cell], contenders: list[Contender], resources: ResourcesConfig, folder: Path
):
    """Yield the results of each cell, from processes that are reused for all cells."""
    from orchestration.cost_study.worker import CostWorker, Prepare, Time
    from orchestration.workers.group import WorkerGroup

    # Only one process computes at a time, with all threads of a worker; each reserves a share of the worker's CPUs.
    share = 1 / len(contenders)
    groups = {
        contender: WorkerGroup(resources, folder, contender.name.replace(" ", "-"), CostWorker, share)
        for contender in contenders
    }
    columns = (*Progress.get_default_columns()[:3], TimeElapsedColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns) as progress:
            task = progress.add_task("starting", total=len(plan) * (config.rounds + len(contenders)))
            for cell in plan:
                progress.update(task, description=f"{cell.network}, batch {cell.batch}")
                results = []
                for contender in contenders:
                    request = Prepare(_values(config, cell, contender), cell.attention, config.memory_gib * 2**30)
                    results.append(VariantCost(cell, contender, _ask(groups[contender], request)))
                    progress.advance(task)
                for _ in range(config.rounds):
                    for result in results:
                        result.rounds.append(_ask(groups[result.contender], Time(config.turn_s)))
                    progress.advance(task)
                yield results
    finally:
        for group in groups.values():
            group.close()


def _ask(group: WorkerGroup, request: Any) -> Any:
    """Send a request to a group and return its answer.

    Raises:
        RuntimeError: with the worker's error.
    """
    answer = group.ask(request)
    if isinstance(answer, str):
        raise RuntimeError(answer)
    return answer


def table(measured: list[VariantCost]) -> pd.DataFrame:
    """Make a table with a row per cell and variant: times, ratios with intervals, memory and operations."""
    return pd.DataFrame(
        [_row(result, [other for other in measured if other.cell == result.cell]) for result in measured]
    )


def _row(result: VariantCost, cell: list[VariantCost]) -> dict[str, Any]:
    """Make the row of a result among those of its cell."""
    alike = [other for other in cell if other.contender.compiled == result.contender.compiled]
    reference = next(other for other in alike if other.contender.label == REFERENCE)
    times = result.round_ms()
    row = {
        **vars(result.cell),
        "variant": result.contender.label,
        "compiled": result.contender.compiled,
        "rounds": len(times),
        "time/step_ms": statistics.median(times),
        **dict(zip(("time/step_ms_low", "time/step_ms_high"), np.quantile(times, (0.25, 0.75)), strict=True)),
        **{f"time/{name}_ms": value for name, value in result.phase_ms().items()},
        **ratio("time/to_flow_matching", times, reference.round_ms()),
    }
    if soflow := _fastest(alike, "soflow"):
        row |= ratio("time/soflow_to_this", soflow.round_ms(), times)
        row["memory/soflow_to_this"] = soflow.figures["peak_bytes"] / result.figures["peak_bytes"]
    if result is soflow and (best := _fastest(alike, BEST)):
        row |= ratio("time/to_best_meanflow", times, best.round_ms()) | {"best_meanflow": best.contender.name}
        if len(alike) < len(cell) and result is _fastest(cell, "soflow") and (best := _fastest(cell, BEST)):
            row |= ratio("time/to_best_meanflow_of_all", times, best.round_ms())
            row["best_meanflow_of_all"] = best.contender.name
    eager = [other for other in cell if other.contender == replace(result.contender, compiled=False)]
    if result.contender.compiled and eager:
        row |= ratio("time/eager_to_this", eager[0].round_ms(), times)
    figures = result.figures
    row |= {
        "time/compile_s": figures["compile_s"],
        "memory/peak_mib": figures["peak_bytes"] / 2**20,
        "memory/held_mib": figures["held_bytes"] / 2**20,
        "memory/process_peak_mib": figures["process_peak_mib"],
        "memory/largest_batch": figures["largest_batch"],
        "memory/to_flow_matching": figures["peak_bytes"] / reference.figures["peak_bytes"],
        "parameters": figures["parameters"],
    }
    if figures["flops"] is not None:
        total = sum(figures["flops"].values())
        row |= {
            "memory/saved_mib": figures["saved_bytes"] / 2**20,
            "flops/step": total,
            "flops/to_flow_matching": total / sum(reference.figures["flops"].values()),
        }
    return row


def _fastest(results: list[VariantCost], kind: str) -> VariantCost | None:
    """Return the result of this kind with the smallest median time; None without any."""
    found = [result for result in results if result.contender.variant.startswith(kind)]
    return min(found, key=lambda result: statistics.median(result.round_ms())) if found else None


def ratio(name: str, times: list[float], reference: list[float]) -> dict[str, float]:
    """Compute the median over rounds of time / reference in the same round, with its interval (`median_interval`)."""
    from soflow.statistics import median_interval  # imports scipy

    ratios = [time / reference_time for time, reference_time in zip(times, reference, strict=True)]
    columns = {name: statistics.median(ratios)}
    if len(set(ratios)) > 1:
        columns |= dict(zip((f"{name}_low", f"{name}_high"), median_interval(ratios), strict=True))
    return columns


def _write(folder: Path, costs: pd.DataFrame, measured: list[VariantCost]) -> None:
    """Write tables and charts to the folder, and print the short table."""
    from orchestration.cost_study.charts import draw_charts, sentences, short_table

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

"""What a cost study has measured, and the table of times, ratios with intervals, memory and operations from it."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from orchestration.cost_study.config import BEST, REFERENCE, Cell
from soflow.profiling.phases import PHASES


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

"""Summary table and bar charts of a cost study."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from rich.table import Table

from soflow.profiling.phases import PHASES

SETTINGS = ["network", "batch", "guidance", "attention", "precision"]
COLORS = (
    *("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e"),
    *("#9498a0", "#7f7c22", "#274c4c"),
)
"""One for each variant of a cost study, guided and unguided flow matching included, and for each phase of a step."""


def short_table(costs: pd.DataFrame) -> Table:
    """Make the terminal table: time and memory of a step, and their ratios with the coverage of their intervals."""
    from soflow.statistics import median_coverage  # imports scipy

    coverage = f"{100 * median_coverage(int(costs['rounds'].min())):.0f} %"
    columns = (
        "setting",
        "variant",
        "ms/step",
        f"× flow matching ({coverage})",
        f"SoFlow/this ({coverage})",
        "MiB",
        "× flow matching",
    )
    result = Table(*columns, title="cost of an optimizer step")
    for settings, cell in costs.groupby(SETTINGS, sort=False):
        for i, row in enumerate(cell.to_dict("records")):
            result.add_row(
                _name(settings) if i == 0 else "",
                _variant(row),
                _number(row["time/step_ms"]),
                _ratio(row, "time/to_flow_matching"),
                _ratio(row, "time/soflow_to_this"),
                _number(row["memory/peak_mib"]),
                f"{row['memory/to_flow_matching']:.2f}",
            )
        result.add_section()
    return result


def sentences(costs: pd.DataFrame) -> list[str]:
    """State for each setting how much of the fastest MeanFlow's time SoFlow takes: eager, compiled, and overall."""
    result = []
    for row in costs[costs["variant"] == "soflow"].to_dict("records"):
        setting = f"{_name(tuple(row[name] for name in SETTINGS))}, {'compiled' if row['compiled'] else 'eager'}"
        for name, of_all in (("best_meanflow", ""), ("best_meanflow_of_all", " of all")):
            if isinstance(best := row.get(name), str):
                share = _ratio(row, f"time/to_{name}")
                result.append(f"{setting}: SoFlow's step takes {share} of that of the fastest MeanFlow{of_all}, {best}")
    return result


def draw_charts(costs: pd.DataFrame, folder: Path) -> list[Path]:
    """Draw PNG bar charts: time with the interquartile range over rounds, memory, and the phases of a step."""
    charts = {
        "time.png": ("time/step_ms", "time/to_flow_matching", "milliseconds per step"),
        "memory.png": ("memory/peak_mib", "memory/to_flow_matching", "peak memory of tensors, MiB"),
    }
    for name, (column, ratio, label) in charts.items():
        _bars(costs, column, ratio, label, folder / name)
    _breakdown(costs, folder / "breakdown.png")
    return [folder / name for name in (*charts, "breakdown.png")]


def _bars(costs: pd.DataFrame, column: str, ratio: str, label: str, path: Path) -> None:
    figure, axes = _axes(costs)
    for axis, (settings, cell) in zip(axes, costs.groupby(SETTINGS, sort=False), strict=True):
        values = cell[column]
        names = _bar_names(cell)
        bars = axis.bar(names, values, color=_colors(cell))
        if f"{column}_low" in cell:
            spread = [values - cell[f"{column}_low"], cell[f"{column}_high"] - values]
            axis.errorbar(names, values, yerr=spread, fmt="none", ecolor="black", capsize=3)
        labels = [f"{_number(value)}\n{times:.2f}×" for value, times in zip(values, cell[ratio], strict=True)]
        axis.bar_label(bars, labels, label_type="center", color="white", fontweight="bold")
        axis.set(title=_name(settings), ylabel=label)
    _save(figure, axes, path)


def _breakdown(costs: pd.DataFrame, path: Path) -> None:
    figure, axes = _axes(costs)
    for axis, (settings, cell) in zip(axes, costs.groupby(SETTINGS, sort=False), strict=True):
        bottom = 0 * cell["time/step_ms"]
        for name, color in zip((*PHASES, "other"), COLORS, strict=False):
            values = cell[f"time/{name}_ms"]
            axis.bar(_bar_names(cell), values, bottom=bottom, color=color, label=name)
            bottom = bottom + values
        axis.set(title=_name(settings), ylabel="milliseconds per step", ylim=(0, 1.1 * bottom.max()))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    _save(figure, axes, path)


def _axes(costs: pd.DataFrame):
    """Make a figure with one set of axes per setting, in two columns."""
    from matplotlib.figure import Figure

    count = costs.groupby(SETTINGS).ngroups
    rows, columns = -(-count // 2), min(count, 2)
    figure = Figure(figsize=(7 * columns, 4.2 * rows), layout="constrained", dpi=110)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[count:]:
        axis.remove()
    return figure, axes[:count]


def _save(figure, axes, path: Path) -> None:
    for axis in axes:
        axis.tick_params(axis="x", labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def _variant(row: dict, separator: str = ", ") -> str:
    return f"{row['variant']}{separator}compiled" if row["compiled"] else row["variant"]


def _bar_names(cell: pd.DataFrame) -> list[str]:
    """Name the bars in lines of one word, so that names of neighbors do not overlap."""
    return [_variant(row, " ").replace(" ", "\n").replace("_", "\n", 1) for row in cell.to_dict("records")]


def _colors(cell: pd.DataFrame) -> list[str]:
    """Give each variant a color, eager or compiled."""
    colors = dict(zip(dict.fromkeys(cell["variant"]), COLORS, strict=False))  # fewer variants than colors
    return [colors[variant] for variant in cell["variant"]]


def _name(settings: tuple) -> str:
    network, batch, guidance, attention, precision = settings
    words = [network, f"batch {batch}", "guided" if guidance else "no guidance", precision]
    return ", ".join(words + (["math attention"] if attention == "math" else []))


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _ratio(row: dict, name: str) -> str:
    value, low, high = (row.get(f"{name}{end}", float("nan")) for end in ("", "_low", "_high"))
    if value != value:
        return ""
    return f"{value:.2f}" if low != low else f"{value:.2f} ({low:.2f}–{high:.2f})"

"""Formatting of names, numbers and times for terminals, reports and MLflow notes."""

from __future__ import annotations

from typing import Any

from rich.console import Console

SHORT_NAMES = {
    "objective.flow_matching_fraction": "λ",
    "objective.gap_schedule": "r(k,K)",
    "objective.r_init": "r_init",
    "objective.r_end": "r_end",
    "objective.guidance_strength": "w",
    "objective.velocity_mix": "m",
    "objective.guidance_omega": "ω",
    "objective.guidance_kappa": "κ",
}
"""Symbols of the field for searched paths; other paths show their last part."""


def short_name(path: str) -> str:
    """Return the symbol of a searched path, or its last part."""
    return SHORT_NAMES.get(path, path.rsplit(".", 1)[-1])


def format_value(value: Any) -> str:
    """Format a value with three significant digits, or as an integer from 100 on."""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def three_digits(value: float) -> str:
    """Format a value with three significant digits and grouped thousands; 0.0001 to 10¹² without an exponent."""
    return f"{float(f'{value:.3g}'):,.12g}"


def format_point(point: dict[str, Any]) -> str:
    """Format a point of the search space in one line."""
    return " ".join(f"{short_name(path)}={format_value(value)}" for path, value in point.items())


def format_time(seconds: float) -> str:
    """Format a duration as H:MM:SS, or as M:SS below one hour."""
    hours, seconds = divmod(int(seconds), 3600)
    minutes, seconds = divmod(seconds, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def format_number(value: float, spec: str) -> str:
    """Format a number; NaN as a dash."""
    return format(value, spec) if value == value else "–"


def plain_console(width: int | None = None) -> Console:
    """Make a console that prints names as they are, brackets too."""
    return Console(width=width, markup=False)


def table_console() -> Console:
    """Make a console for tables, as wide as the terminal; 160 columns in files and pipes."""
    console = plain_console()
    return console if console.is_terminal else plain_console(width=160)

"""A comparison's tables on the terminal."""

from __future__ import annotations

from rich.table import Table as RichTable

from dashboards.comparison.compare import Comparison
from dashboards.comparison.tables import Table, exponent_table, measured_table, verdict_table
from orchestration.terminal.format import table_console

FIRST_GOAL = 6
"""Columns of the measured table up to the first goal's test; the report contains the others."""


def show_comparison(comparison: Comparison) -> None:
    """Print the first goal's means over seeds, the verdicts, the exponents and the answer."""
    for title, rows in (
        ("measured", [row[:FIRST_GOAL] for row in measured_table(comparison)]),
        ("hypotheses", verdict_table(comparison)),
        ("exponents", exponent_table(comparison.exponents)),
    ):
        if rows:
            show_table(rows, title)
    for sentence in comparison.answer:
        print(sentence)


def show_table(rows: Table, title: str = "", lines: bool = False) -> None:
    """Print rows of text, the first one as headings.

    Args:
        lines: draw lines between rows.
    """
    table = RichTable(*rows[0], title=title or None, title_justify="left", show_lines=lines)
    for row in rows[1:]:
        table.add_row(*row)
    table_console().print(table)

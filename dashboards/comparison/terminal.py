"""A comparison's verdicts on the terminal."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table as View

from dashboards.comparison import exponents
from dashboards.comparison.compare import compare
from dashboards.comparison.tables import Table, measured, verdict_table
from dashboards.reading.sweep_data import SweepRecord
from orchestration.terminal.format import table_console

GOAL_ENDS = 6
"""Columns of the measured table up to the first goal's test; the report has the others."""


def show_comparison(record: SweepRecord) -> None:
    """Print the first goal's means over seeds, the verdicts on what was stated before, and the answer."""
    comparison = compare(record)
    fitted = exponents.fit(comparison)
    for title, rows in (
        ("measured", [row[:GOAL_ENDS] for row in measured(comparison)]),
        ("hypotheses", verdict_table(comparison)),
        ("exponents", exponents.table(fitted)),
    ):
        if rows:
            show_table(rows, title)
    for sentence in (*exponents.answer(fitted), *comparison.answer):
        print(sentence)


def show_table(rows: Table, title: str = "", lines: bool = False) -> None:
    """Print rows of text, of which the first has the headings.

    Args:
        lines: whether rows have lines between them.
    """
    view = View(*map(escape, rows[0]), title=title or None, title_justify="left", show_lines=lines)
    for row in rows[1:]:
        view.add_row(*map(escape, row))
    table_console().print(view)

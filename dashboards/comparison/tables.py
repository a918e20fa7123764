"""A comparison's tables, for the page, the terminal, and as Markdown and LaTeX for papers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from dashboards.comparison import published
from dashboards.comparison.cases import Case, Measure
from dashboards.comparison.compare import COSTS, Comparison, interval
from dashboards.comparison.exponents import MARGIN, PREDICTED, Exponent
from dashboards.comparison.results import COLUMNS
from dashboards.comparison.verdicts import times
from dashboards.labels import p_value, title
from dashboards.latex import PACKAGES, Value, compact, escape, tabular

Table = list[list[str]]
"""Rows of text, the first one the headings."""
RATIO = "ratio to first"
RATIO_NOTE = (
    "Ratios are geometric means over pairs of equal seeds with 95 % intervals; p is from the paired t-test of their "
    "logarithms, Holm-corrected for all {family}; d is the mean of these logarithms over their standard deviation"
)
OUTLIERS_NOTE = (
    "The t-test takes the logarithms as normal. If one run in five of a case is ten times worse and the others scatter "
    "by 30 %, many comparisons contain no such run: of 100 tests of equal geometric means, 13 are then wrong with "
    "three seeds and 19 with five, instead of 5"
)
EXPONENT_TEST_NOTE = (
    f"An exponent k counts as {PREDICTED:g} within ± {MARGIN:g}: p is from the t-test of k against the nearer end of "
    "this margin, which confirms k if its mean is inside and refutes it if its mean is outside"
)
VERDICTS_NOTE = (
    f"Stated before the run. {RATIO_NOTE.format(family='hypotheses and exponents')}. The last column is the smallest "
    f"ratio above 1, or its inverse, that these seeds would have shown. {OUTLIERS_NOTE}."
)
EXPONENT_COLUMNS = ("error ~ δ", "case", "exponent k [95 % CI]", "verdict", "p", "seeds", "span of δ")
EXPONENTS_NOTE = (
    "Exponents k of error ~ δ^k over the reports of each trial except the first: means over seeds with 95 % intervals "
    f"(Student). {EXPONENT_TEST_NOTE}, Holm-corrected for all hypotheses and exponents. δ is the training loss "
    "(consistency, mean q² over the steps since the last report) or the squared ODE violation. The last column is the "
    "largest over the smallest δ (geometric mean over seeds): a δ that hardly changes predicts nothing."
)


def measured_table(comparison: Comparison) -> Table:
    """Build a row per case: means with intervals, ratios to the first case, the test of the first goal."""
    goal = comparison.quality[0] if comparison.quality else None
    rows = [["case", "seeds"]]
    for metric in comparison.metrics:
        rows[0] += [title(metric), RATIO] + (["p", "d"] if metric == goal else [])
    for case in comparison.cases:
        row = [case.name, f"{len(case.trials)}" + (f" ({len(case.lost)} lost)" if case.lost else "")]
        for metric in comparison.metrics:
            row.append(interval(case.measures[metric]) if metric in case.measures else "–")
            row.append(times(case.against[metric]) if metric in case.against else "–")
            row += _test_cells(case, metric) if metric == goal else []
        rows.append(row)
    return rows


def _test_cells(case: Case, metric: str) -> list[str]:
    return ["–", "–"] if math.isnan(case.p) else [p_value(case.p), f"{case.against[metric].effect_size:.2g}"]


def stacked(rows: Table) -> Table:
    """Move every ratio below its value, to fit a screen's width."""
    headings = rows[0]
    kept = [column for column, heading in enumerate(headings) if heading != RATIO]
    has_ratio = {column for column in kept if headings[column + 1 : column + 2] == [RATIO]}
    stack = [[f"{row[i]}\n{row[i + 1]}" if i in has_ratio else row[i] for i in kept] for row in rows[1:]]
    return [[headings[column] for column in kept], *stack]


def verdict_table(comparison: Comparison) -> Table:
    return [list(COLUMNS), *(verdict.row() for verdict in comparison.verdicts)] if comparison.verdicts else []


def exponent_table(exponents: Sequence[Exponent]) -> Table:
    """Build a row per fit under EXPONENT_COLUMNS; empty without fits."""
    rows = [
        [
            exponent.relation.name,
            exponent.case,
            exponent.interval,
            exponent.conclusion,
            p_value(exponent.p),
            str(len(exponent.by_seed)),
            f"× {exponent.span:.3g}",
        ]
        for exponent in exponents
    ]
    return [list(EXPONENT_COLUMNS), *rows] if rows else []


def published_table() -> Table:
    return [list(published.COLUMNS), *map(list, published.ROWS)]


def measured_note(comparison: Comparison) -> str:
    """Explain the measured table."""
    first = comparison.cases[0].name if comparison.cases else "the first case"
    return f"Means over seeds with 95 % intervals. {RATIO_NOTE.format(family='cases')}. The first case is {first}."


def annotated_tables(comparison: Comparison) -> list[tuple[Table, str]]:
    """List all tables that are not empty with their notes."""
    tables = [
        (verdict_table(comparison), VERDICTS_NOTE),
        (exponent_table(comparison.exponents), EXPONENTS_NOTE),
        (measured_table(comparison), measured_note(comparison)),
        (published_table(), published.NOTE),
    ]
    return [(rows, note) for rows, note in tables if rows]


def as_markdown(comparison: Comparison) -> str:
    """Format the answer and all tables as a Markdown page."""
    protocols = "; ".join(f"FID protocol: {protocol}" for protocol in comparison.protocols)
    parts = [f"# {_escape_markdown(comparison.data.name)}", *map(_escape_markdown, comparison.answer)]
    parts += [f"{_escape_markdown(protocols)}."] if protocols else []
    for rows, note in annotated_tables(comparison):
        parts += [as_markdown_table(rows), _escape_markdown(note)]
    return "\n\n".join(parts) + "\n"


def as_markdown_table(rows: Table) -> str:
    """Format rows as a Markdown table, with all text escaped."""
    lines = ["| " + " | ".join(map(_escape_markdown, row)) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    return "\n".join(lines)


def _escape_markdown(text: str) -> str:
    escaped = re.sub(r"([\\`*_{}\[\]<>#|~&])", r"\\\1", " ".join(text.split()))
    return escaped.replace("\\[", "[").replace("\\]", "]")


def as_latex(comparison: Comparison) -> str:
    """Format all tables as tabular environments for booktabs."""
    tables = [
        f"% {' '.join(note.split())}\n{tabular([list(map(escape, row)) for row in rows])}\n"
        for rows, note in annotated_tables(comparison)
    ]
    return f"{PACKAGES}\n\n" + "\n".join(tables)


def as_compact_latex(comparison: Comparison) -> str:
    """Format the cases' quality and costs as one table for a paper."""
    cases, metrics = comparison.cases, [*comparison.quality, *COSTS]
    values = {metric: [_value(case.measures.get(metric)) for case in cases] for metric in metrics}
    caption = f"{comparison.data.name}: means over seeds ± half the width of the 95 % interval (Student)."
    if protocols := "; ".join(map(str, comparison.protocols)):
        caption += f" FID protocol: {protocols}."
    return compact(
        ["case", "seeds"],
        [[case.name, str(len(case.trials))] for case in cases],
        {title(metric): column for metric, column in values.items() if any(column)},
        caption,
        comparison.data.name,
    )


def _value(measure: Measure | None) -> Value | None:
    return measure and Value(measure.mean, measure.high - measure.mean)

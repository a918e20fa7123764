"""A comparison's tables, for the page and as Markdown and LaTeX to paste into a paper."""

from __future__ import annotations

import math
import re

from dashboards.comparison import exponents, published
from dashboards.comparison.compare import Case, Comparison, interval, times
from dashboards.comparison.verdicts import COLUMNS
from dashboards.sweep.findings import title

Table = list[list[str]]
"""Rows of text, the first one the headings."""
QUOTIENT = "to the first"


def measured(comparison: Comparison) -> Table:
    """A row per case: means with intervals, quotients to the first case, p of the first goal."""
    goal = comparison.quality[0] if comparison.quality else None
    rows = [["case", "seeds"]]
    for metric in _reported(comparison):
        rows[0] += [title(metric), QUOTIENT] + (["p", "d"] if metric == goal else [])
    for case in comparison.cases:
        row = [case.name, f"{len(case.trials)}" + (f" ({len(case.lost)} lost)" if case.lost else "")]
        for metric in _reported(comparison):
            row += [interval(case.measures[metric]) if metric in case.measures else "–", _quotient(case, metric)]
            row += _test(case, metric) if metric == goal else []
        rows.append(row)
    return rows


def stacked(rows: Table) -> Table:
    """The same with every quotient under its value, which a screen has the width for."""
    kept = [column for column, heading in enumerate(rows[0]) if heading != QUOTIENT]
    found = [[row[column] for column in kept] for row in rows]
    for cells, lines in zip(rows[1:], found[1:], strict=True):
        for place, column in enumerate(kept):
            if rows[0][column + 1 : column + 2] == [QUOTIENT]:
                lines[place] += f"\n{cells[column + 1]}"
    return found


def _reported(comparison: Comparison) -> list[str]:
    return [metric for metric in comparison.metrics if any(metric in case.measures for case in comparison.cases)]


def _quotient(case: Case, metric: str) -> str:
    return times(case.against[metric]) if metric in case.against else "–"


def _test(case: Case, metric: str) -> list[str]:
    if math.isnan(case.p):
        return ["–", "–"]
    return [f"{case.p:.2g}", f"{case.against[metric].effect_size:.2g}"]


def verdict_table(comparison: Comparison) -> Table:
    return [list(COLUMNS), *(verdict.row() for verdict in comparison.verdicts)] if comparison.verdicts else []


VERDICTS_NOTE = (
    "Stated before the run. Left over right is a geometric mean over pairs of equal seeds with its 95 % interval; p is "
    "that of the paired t-test of the logarithms, corrected by Holm for all hypotheses, d the mean of these logarithms "
    "over their standard deviation. The last column says which quotient, or one over it, such seeds would have shown."
)


def published_table() -> Table:
    return [list(published.COLUMNS), *map(list, published.ROWS)]


def as_markdown(comparison: Comparison) -> str:
    """Both tables, measured and published ones apart."""
    parts = [f"# {_plain(comparison.record.name)}", *map(_plain, comparison.answer), how_to_read(comparison)]
    if protocols := comparison.findings.protocols:
        parts.append("; ".join(f"FID measured with {_plain(str(protocol))}" for protocol in protocols) + ".")
    if comparison.verdicts:
        parts += [as_markdown_table(verdict_table(comparison)), VERDICTS_NOTE]
    if fitted := exponents.table(exponents.fit(comparison)):
        parts += [as_markdown_table(fitted), exponents.NOTE]
    parts += [as_markdown_table(measured(comparison)), published.NOTE, as_markdown_table(published_table())]
    return "\n\n".join(parts) + "\n"


def how_to_read(comparison: Comparison) -> str:
    first = _plain(comparison.cases[0].name) if comparison.cases else "the first case"
    return (
        f"Means over seeds with their 95 % interval. Quotients to {first} are geometric means over pairs of equal "
        "seeds with theirs; p is that of the paired t-test of their logarithms, corrected by Holm for all cases, d the "
        "mean of these logarithms over their standard deviation."
    )


def as_markdown_table(rows: Table) -> str:
    """Foreign text shows as it is."""
    lines = ["| " + " | ".join(map(_plain, row)) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&])", r"\\\1", " ".join(text.split())).replace("\\[", "[").replace("\\]", "]")


def as_latex(comparison: Comparison) -> str:
    """Tabular environments, for booktabs."""
    parts = []
    tables = [(measured(comparison), how_to_read(comparison)), (published_table(), published.NOTE)]
    if fitted := exponents.table(exponents.fit(comparison)):
        tables.insert(0, (fitted, exponents.NOTE))
    if comparison.verdicts:
        tables.insert(0, (verdict_table(comparison), VERDICTS_NOTE))
    for rows, note in tables:
        lines = [" & ".join(map(_latex, row)) + r" \\" for row in rows]
        body = "\n".join(lines[1:])
        spec = "l" + "r" * (len(rows[0]) - 1)
        parts.append(
            f"% {note}\n\\begin{{tabular}}{{{spec}}}\n\\toprule\n{lines[0]}\n\\midrule\n{body}\n\\bottomrule\n"
            "\\end{tabular}\n"
        )
    return "\n".join(parts)


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "×": r"$\times$",
    "–": "--",
    "λ": r"$\lambda$",
    "δ": r"$\delta$",
    "√": r"$\surd$",
    "²": "$^2$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
} | {character: f"\\{character}" for character in "&%$#_{}"}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))

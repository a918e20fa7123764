"""A comparison's tables, for the page and as Markdown and LaTeX to paste into a paper."""

from __future__ import annotations

import math
import re

from dashboards import published
from dashboards.comparison import Case, Comparison, interval, times
from dashboards.findings import title
from dashboards.verdicts import COLUMNS, row

Table = list[list[str]]
"""Rows of text, the first one the headings."""


def measured(comparison: Comparison) -> Table:
    """A row per case: means with intervals, quotients to the first case, p of the first goal."""
    goal = comparison.quality[0] if comparison.quality else None
    rows = [["case", "seeds"]]
    for metric in _reported(comparison):
        rows[0] += [title(metric), "to the first"] + (["p", "d"] if metric == goal else [])
    for case in comparison.cases:
        row = [case.name, f"{len(case.trials)}" + (f" ({len(case.lost)} lost)" if case.lost else "")]
        for metric in _reported(comparison):
            row += [interval(case.measures[metric]) if metric in case.measures else "–", _quotient(case, metric)]
            row += _test(case, metric) if metric == goal else []
        rows.append(row)
    return rows


def _reported(comparison: Comparison) -> list[str]:
    return [metric for metric in comparison.metrics if any(metric in case.measures for case in comparison.cases)]


def _quotient(case: Case, metric: str) -> str:
    return times(case.against[metric]) if metric in case.against else "–"


def _test(case: Case, metric: str) -> list[str]:
    if math.isnan(case.p):
        return ["–", "–"]
    return [f"{case.p:.2g}", f"{case.against[metric].effect_size:.2g}"]


def verdict_table(comparison: Comparison) -> Table:
    return [list(COLUMNS), *map(row, comparison.verdicts)] if comparison.verdicts else []


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
        parts += [_markdown(verdict_table(comparison)), VERDICTS_NOTE]
    parts += [_markdown(measured(comparison)), published.NOTE, _markdown(published_table())]
    return "\n\n".join(parts) + "\n"


def how_to_read(comparison: Comparison) -> str:
    first = _plain(comparison.cases[0].name) if comparison.cases else "the first case"
    return (
        f"Means over seeds with their 95 % interval. Quotients to {first} are geometric means over pairs of equal "
        "seeds with theirs; p is that of the paired t-test of their logarithms, corrected by Holm for all cases, d the "
        "mean of these logarithms over their standard deviation."
    )


def _markdown(rows: Table) -> str:
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
    "<": r"\textless{}",
    ">": r"\textgreater{}",
} | {character: f"\\{character}" for character in "&%$#_{}"}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))

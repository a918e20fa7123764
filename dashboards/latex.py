"""Tables in LaTeX: escaped text, full tables, and a compact one with means and intervals for papers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

CHARACTERS = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "×": r"$\times$",
    "±": r"$\pm$",
    "·": r"$\cdot$",
    "–": "--",
    "…": r"\ldots{}",
    "λ": r"$\lambda$",
    "δ": r"$\delta$",
    "ω": r"$\omega$",
    "κ": r"$\kappa$",
    "√": r"$\surd$",
    "²": "$^2$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
} | {character: f"\\{character}" for character in "&%$#_{}"}
PACKAGES = r"% needs \usepackage{booktabs}"


@dataclass(frozen=True)
class Value:
    """A measured value, and half the width of its 95 % interval, which is NaN if unknown."""

    mean: float
    half_width: float = math.nan


def escape(text: str) -> str:
    """Escape text for LaTeX, in one line."""
    return "".join(CHARACTERS.get(character, character) for character in " ".join(text.split()))


def tabular(rows: Sequence[Sequence[str]], num_text: int = 1) -> str:
    """Format rows of LaTeX as a tabular environment, the first one as its head.

    Args:
        num_text: number of first columns that are text, aligned to the left.
    """
    columns = "l" * num_text + "r" * (len(rows[0]) - num_text)
    head, *body = [" & ".join(row) + r" \\" for row in rows]
    lines = [
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        head,
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines)


def compact(
    names: list[str], texts: list[list[str]], metrics: dict[str, list[Value | None]], caption: str, label: str
) -> str:
    r"""Format a table environment for a paper: values as mean ± half width, the lowest of each column in bold.

    Args:
        names: headings of the columns of text.
        texts: the cells of these columns, one list per row.
        metrics: the values of each further column by its heading, one per row; None if missing.
        label: what follows "tab:" in \label.
    """
    columns = [_cells(values) for values in metrics.values()]
    body = [[*map(escape, row), *cells] for row, *cells in zip(texts, *columns, strict=True)]
    rows = [list(map(escape, [*names, *metrics])), *body]
    label = "".join(character if character.isascii() and character.isalnum() else "-" for character in label)
    lines = [PACKAGES, r"\begin{table}", r"\centering", rf"\caption{{{escape(caption)}}}", rf"\label{{tab:{label}}}"]
    return "\n".join([*lines, tabular(rows, len(names)), r"\end{table}", ""])


def _cells(values: list[Value | None]) -> list[str]:
    """Format the values of a column, the lowest of several in bold."""
    means = [value.mean for value in values if value is not None]
    best = min(means) if len(means) > 1 else math.nan
    return [_cell(value, bold=value.mean == best) if value is not None else "--" for value in values]


def _cell(value: Value, bold: bool) -> str:
    """Round a half width to two digits and its mean to the same place; a mean alone to four digits."""
    if value.half_width > 0:
        places = max(0, 1 - math.floor(math.log10(value.half_width)))
        text = rf"{value.mean:.{places}f} $\pm$ {value.half_width:.{places}f}"
    else:
        places = max(0, 3 - math.floor(math.log10(abs(value.mean)))) if value.mean else 0
        text = f"{value.mean:.{places}f}"
    return rf"\textbf{{{text}}}" if bold else text

"""The picture of a ledger: every claim's ratio with its interval, against the smallest effect and published ratios."""

from __future__ import annotations

import math
import textwrap
from io import BytesIO

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from dashboards.claims.judge import CONFIRMED, EQUIVALENT, REFUTED, UNDECIDED, Judged, counts
from dashboards.comparison.exponents import MARGIN, PREDICTED
from dashboards.palette import BLUE, GRAY, GREEN, RED

COLORS = {CONFIRMED: GREEN, REFUTED: RED, EQUIVALENT: BLUE, UNDECIDED: GRAY}
ROW, WIDTH, LINE = 0.4, 11.0, 72
"""Height of a claim's row and width of the picture in inches; characters of a label's line."""
TICKS = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)
WIDEST = 60.0
"""Ratio at which an interval is cut off."""


def verdicts_png(judged: list[Judged]) -> bytes:
    """Draw all claims with a value as a PNG: ratios above, exponents below."""
    measured = [one for one in judged if one.estimate]
    groups = [[one for one in measured if one.is_exponent == exponents] for exponents in (False, True)]
    heights = [max(1, len(group)) for group in groups]
    figure = Figure(figsize=(WIDTH, ROW * sum(heights) + 2.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=heights)
    _draw(upper, groups[0])
    upper.set_xscale("log")
    upper.xaxis.set_major_locator(FixedLocator(TICKS))
    upper.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"× {value:g}"))
    upper.xaxis.set_minor_formatter(NullFormatter())
    low, high = upper.get_xlim()
    upper.set_xlim(min(low, 0.5), max(high, 2))
    upper.set_xlabel("ratio of the claim's two sides; below 1 as claimed")
    _draw(lower, groups[1])
    lower.set_xlabel("exponent k of error ~ δ^k; 1/2 as claimed")
    handles = [
        Line2D([], [], color=COLORS[outcome], marker="o", label=f"{outcome} ({count})")
        for outcome, count in counts(judged).items()
    ]
    handles.append(Line2D([], [], color="black", marker="D", linestyle="", fillstyle="none", label="published"))
    handles.append(Line2D([], [], color=GRAY, alpha=0.3, linewidth=8, label="smaller than the smallest effect"))
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False)
    file = BytesIO()
    figure.savefig(file, dpi=110, facecolor="white")
    return file.getvalue()


def _draw(axes: Axes, judged: list[Judged]) -> None:
    axes.set_visible(bool(judged))
    labels = []
    for row, one in enumerate(judged):
        assert one.estimate is not None
        value, low, high = one.estimate
        color = COLORS[one.outcome]
        if one.is_exponent:
            inner, middle = (PREDICTED - MARGIN, PREDICTED + MARGIN), PREDICTED
        else:
            effect, middle = one.study.smallest_of(one.claim), 1.0
            inner = (1 / effect, effect)
            low, high = max(low, 1 / WIDEST), min(high, WIDEST)
        axes.fill_betweenx([row - 0.4, row + 0.4], *inner, color=GRAY, alpha=0.25, linewidth=0)
        axes.plot([middle, middle], [row - 0.5, row + 0.5], color=GRAY, linewidth=0.8)
        if not math.isnan(low):
            axes.plot([low, high], [row, row], color=color, linewidth=2)
        axes.plot(value, row, "o", color=color)
        for published in one.claim.published:
            axes.plot(published.left / published.right, row, "D", color="black", fillstyle="none", markersize=5)
        labels.append(textwrap.fill(one.claim.claim, LINE))
    axes.set_yticks(range(len(judged)), labels, fontsize=7)
    axes.set_ylim(max(len(judged), 1) - 0.5, -0.5)
    axes.spines[["top", "right"]].set_visible(False)

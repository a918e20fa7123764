"""Hypotheses of a comparison, stated before it runs and tested in its report.

The form is METRIC(CASE) < METRIC(CASE), < NUMBER * METRIC(CASE) or < NUMBER: "fid(exponential) < fid(linear)",
"time/step_ms(soflow) < 0.8 * time/step_ms(meanflow)", "fid(soflow) < 65".
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_TERM = r"([\w/.]+)\(([^()]+)\)"
_NUMBER = r"(\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)"
_FORM = re.compile(rf"{_TERM}\s*<\s*(?:(?:{_NUMBER}\s*\*\s*)?{_TERM}|{_NUMBER})")


@dataclass(frozen=True)
class Measured:
    """One metric of one case, a value per seed."""

    metric: str
    case: str


@dataclass(frozen=True)
class Hypothesis:
    """left < factor · right, or left < factor if right is None."""

    text: str
    left: Measured
    right: Measured | None
    factor: float

    @property
    def terms(self) -> tuple[Measured, ...]:
        return (self.left,) if self.right is None else (self.left, self.right)


def read_hypothesis(text: str) -> Hypothesis:
    """Parse a hypothesis.

    Raises:
        ValueError: if the text has another form, or a number in it is 0.
    """
    match = _FORM.fullmatch(text.strip())
    if not match:
        raise ValueError(f"{text} must have the form METRIC(CASE) < METRIC(CASE), < NUMBER * METRIC(CASE) or < NUMBER")
    metric, case, factor, other_metric, other_case, bound = match.groups()
    right = Measured(other_metric, other_case.strip()) if other_metric else None
    number = float(factor or bound or 1)
    if not number:
        raise ValueError(f"{text} must have a number above 0")
    return Hypothesis(text.strip(), Measured(metric, case.strip()), right, number)

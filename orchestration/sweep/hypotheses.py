"""What a study holds to be true before it is run, in a form that its report can judge.

METRIC(CASE) < METRIC(CASE), the right side also with a factor or a plain number: "fid(exponential) < fid(linear)",
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
    """A metric of a case, over its seeds."""

    metric: str
    case: str


@dataclass(frozen=True)
class Hypothesis:
    """left < factor · right, or left < factor where right is None."""

    text: str
    left: Measured
    right: Measured | None
    factor: float

    @property
    def terms(self) -> tuple[Measured, ...]:
        return (self.left,) if self.right is None else (self.left, self.right)


def read_hypothesis(text: str) -> Hypothesis:
    """Raises ValueError if it reads otherwise, or a factor is 0."""
    match = _FORM.fullmatch(text.strip())
    if not match:
        raise ValueError(f"{text} must read METRIC(CASE) < METRIC(CASE), < NUMBER * METRIC(CASE) or < NUMBER")
    metric, case, factor, other_metric, other_case, bound = match.groups()
    right = Measured(other_metric, other_case.strip()) if other_metric else None
    found = Hypothesis(text.strip(), Measured(metric, case.strip()), right, float(factor or bound or 1))
    if not found.factor:
        raise ValueError(f"{text} must have a number above 0")
    return found

"""Results of tests, corrected together for all tests of a family."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from soflow.statistics import holm

CONFIRMED, REFUTED, UNDECIDED = OUTCOMES = ("confirmed", "refuted", "not decided")
COLUMNS = ("hypothesis", "verdict", "ratio [95 % CI]", "p", "d", "seeds", "minimum detectable ratio (80 % power)")


class TestResult(Protocol):
    """Result of a test: a `Verdict`, an `Exponent` or `NotTested`."""

    @property
    def outcome(self) -> str:
        """One of OUTCOMES."""

    @property
    def uncorrected_p(self) -> float:
        """p-value of the test alone; NaN without a test."""

    def with_corrected_p(self, p: float, num_tests: int) -> TestResult:
        """Replace p by its value corrected for a family of tests."""

    def figures(self) -> dict[str, float]:
        """Numbers to log, by short names; empty without a test."""

    def row(self) -> list[str]:
        """Cells under COLUMNS."""


Result = TypeVar("Result", bound=TestResult)


@dataclass(frozen=True)
class NotTested:
    """A test that was not possible, with the reason."""

    test: str
    reason: str
    outcome: str = UNDECIDED
    uncorrected_p: float = math.nan

    def with_corrected_p(self, p: float, num_tests: int) -> NotTested:
        return self

    def figures(self) -> dict[str, float]:
        return {}

    def row(self) -> list[str]:
        return [self.test, f"{self.outcome}: {self.reason}", *["–"] * (len(COLUMNS) - 2)]


def with_holm(results: Sequence[Result]) -> list[Result]:
    """Correct the p-values of all results together, whatever they were corrected for before."""
    ps = holm([result.uncorrected_p for result in results])
    num_tests = sum(not math.isnan(p) for p in ps)
    return [result.with_corrected_p(p, num_tests) for result, p in zip(results, ps, strict=True)]

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


def untested(num_seeds: int, quantity: str) -> str:
    """Word why some seeds allow no test."""
    few = {1: "a single seed", 2: "two seeds"}
    return few.get(num_seeds, f"all seeds give the same {quantity}")


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
    """Correct the p-values of all results together, whatever they were corrected for before.

    A wrong call is a false "confirmed" or a false "refuted". Every result makes at most one call, and at level a it is
    wrong with a probability of at most a: its interval at that level must miss the true value (two-sided test of a
    ratio; `margin_test` of an exponent). The probability of any wrong call is then at most 5 %:

    - Holm's argument needs a number of true hypotheses, but here every result can be called wrongly, even if it can
      also be called rightly. A wrong call at a level above 5 % / number requires that others were called rightly first.
    - For independent results this costs nothing. Let r results be called rightly, and m − r not. A result that was not
      called rightly at level a = 5 % / (m − r) is called wrongly at it with a probability of at most a, since the
      likelihood ratio of Student's statistic is monotonic (Shaffer 1980, Ann. Statist. 8). The sum over these m − r
      results is 5 %.
    - Results that share seeds are correlated. For them the bound is not proven but simulated (tests of this module).
    """
    ps = holm([result.uncorrected_p for result in results])
    num_tests = sum(not math.isnan(p) for p in ps)
    return [result.with_corrected_p(p, num_tests) for result, p in zip(results, ps, strict=True)]

"""Whether a mean is below 0, above 0 or as good as 0, decided at the looks of a sequential design.

Two tests are made at every look: Student's two-sided test of the mean against 0, and two one-sided tests against the
ends of the margin within which a mean counts as 0 (Schuirmann 1987, J. Pharmacokinet. Biopharm. 15). Each has a p-value
over all looks (`soflow.sequential`). Whichever is lower makes the call, and is its p-value.

If the values are normal, a wrong call with p ≤ a is made with a probability of at most a, whatever the true mean m is.
If m = 0, only "below" and "above" are wrong, and the two-sided test makes either with a probability of at most a. If m
is beyond the margin, say above it, a wrong call is "inside" or "below": both need statistics for m below the critical
value of the one-sided test at level a, which is less extreme than that of the two-sided test. Between these, only the
call of the opposite sign is wrong.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from soflow.sequential import SequentialTest, Spending
from soflow.statistics import LEVEL, ROUNDING

Call = Literal["below", "above", "inside"]


@dataclass(frozen=True)
class Look:
    """Mean and standard deviation of the first n values."""

    n: int
    mean: float
    deviation: float

    @property
    def error(self) -> float:
        return self.deviation / math.sqrt(self.n)


@dataclass(frozen=True)
class Question:
    """What is asked of a mean, and the design that answers it.

    Attributes:
        margin: largest distance from 0 that counts as none.
        null: distance from 0 that "below" and "above" must exceed: 0, or the margin itself.
        most: number of values at the last planned look.
    """

    margin: float
    most: int
    null: float = 0.0
    spending: Spending = "pocock"


@dataclass(frozen=True)
class Answer:
    """The call with the lower p-value.

    Attributes:
        low, high: bounds of the repeated 95 % interval at the last look: intervals at all looks together contain the
            mean with a probability of 95 % (Jennison and Turnbull 1989, J. R. Stat. Soc. B 51).
    """

    call: Call
    p: float
    low: float
    high: float


def answer(question: Question, looks: Sequence[Look]) -> Answer | None:
    """Test a mean at the looks so far; None without a look, and if the values do not scatter.

    Args:
        looks: with growing numbers of values, each at least 3.
    """
    if not looks or looks[-1].deviation < ROUNDING:
        return None
    ns = tuple(look.n for look in looks)
    candidates: list[tuple[float, Call]] = []
    for index, look in enumerate(looks):
        if look.deviation >= ROUNDING:
            beyond, inside = p_values(question, ns, index, look.mean, look.error)
            candidates += [(float(inside), "inside"), (float(beyond), "below" if look.mean < 0 else "above")]
    # Equal only at the lowest p-value of the tables, where scatter is tiny: the earliest look wins, there "inside".
    p, call = min(candidates, key=lambda candidate: candidate[0])
    last = looks[-1]
    half = sequential_tests(ns, question.most, question.spending)[0].critical(LEVEL)[-1] * last.error
    return Answer(call, p, last.mean - half, last.mean + half)


def p_values(
    question: Question, ns: tuple[int, ...], index: int, mean: np.ndarray | float, error: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the p-values of "below or above" and of "inside" at one look, for means and errors of any shape.

    Args:
        ns: numbers of values at the looks, at least up to this one.
        index: of the look.
    """
    beyond, inside = sequential_tests(ns, question.most, question.spending)
    distance = np.abs(mean)
    outside = beyond.p_at(index, np.maximum(0.0, distance - question.null) / error)
    return outside, inside.p_at(index, (question.margin - distance) / error)


@functools.lru_cache(maxsize=256)
def sequential_tests(seeds: tuple[int, ...], most: int, spending: Spending) -> tuple[SequentialTest, SequentialTest]:
    """Return the two-sided and the one-sided test of a design, whose last look may have more seeds than planned."""
    most = max(most, seeds[-1])
    return SequentialTest(seeds, most, spending), SequentialTest(seeds, most, spending, sides=1)

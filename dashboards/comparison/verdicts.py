"""A comparison's hypotheses, each with what its seeds say of it.

The logarithm of left / right is taken seed by seed and Student's test asks whether its mean is 0; a plain number on the
right is a constant. Holm's correction holds the probability of calling any difference that is not there below 5 % for
all hypotheses of a comparison together.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

import yaml
from scipy import stats

from orchestration.sweep.hypotheses import Hypothesis, Measured, read_hypothesis
from soflow.statistics import LEVEL, POWER, Ratio, detectable_effect, holm, paired_ratio

CONFIRMED, REFUTED, UNDECIDED = OUTCOMES = ("confirmed", "refuted", "not decided")
COLUMNS = ("hypothesis", "verdict", "left / right", "p", "d", "seeds", f"found with {POWER:.0%} from")


@dataclass(frozen=True)
class Verdict:
    """What the seeds say of left < right.

    Attributes:
        quotient: left / right; None if no seed has both.
        p: of the quotient being 1, corrected for all hypotheses; NaN where there is no test.
        smallest: how many times larger left or right must be for the test to find it with 80 %, by the seeds' scatter.
        reason: why there is no test, if there is none.
    """

    hypothesis: Hypothesis
    quotient: Ratio | None
    p: float
    smallest: float
    reason: str = ""

    @property
    def uncorrected_p(self) -> float:
        return self.quotient.p if self.quotient else math.nan

    @property
    def outcome(self) -> str:
        if self.quotient is None or not self.p < LEVEL:
            return UNDECIDED
        return CONFIRMED if self.quotient.value < 1 else REFUTED

    def among(self, p: float, ps: list[float]) -> Verdict:
        """The verdict with its p as one of several corrected ones, those without a test NaN."""
        level = LEVEL / max(1, sum(not math.isnan(other) for other in ps))
        return replace(self, p=p, smallest=_smallest(self.quotient, level))

    def figures(self) -> dict[str, float]:
        """What was found, by short names; empty if nothing was."""
        if self.quotient is None:
            return {}
        return {"quotient": self.quotient.value, "p": self.p, "seeds": self.quotient.n}

    def row(self) -> list[str]:
        """Under COLUMNS."""
        text, found = self.hypothesis.text, self.quotient
        if found is None:
            return [text, f"{self.outcome}: {self.reason}", "–", "–", "–", "0", "–"]
        outcome = f"{self.outcome}: {self.reason}" if self.reason else self.outcome
        if found.n == 1:
            return [text, outcome, f"× {found.value:.3g}", "–", "–", "1", "–"]
        return [
            text,
            outcome,
            f"× {found.value:.3g} [{found.low:.3g}, {found.high:.3g}]",
            f"{self.p:.2g}",
            f"{found.effect_size:.2g}",
            str(found.n),
            f"× {self.smallest:.3g}",
        ]


Values = dict[Measured, dict[int, float]]
"""Measurements by seed."""


def hypotheses_of(text: str) -> list[Hypothesis]:
    """Those of a sweep, from the parameter that MLflow holds of them; none if it cannot be read."""
    try:
        found = yaml.safe_load(text)
        return [read_hypothesis(str(each)) for each in found] if isinstance(found, list) else []
    except (yaml.YAMLError, ValueError):
        return []


def judge(hypotheses: Iterable[Hypothesis], values: Values, refused: Collection[Hypothesis] = ()) -> list[Verdict]:
    """Test all hypotheses of a comparison together, but for those that are about values which must not be compared."""
    return together([_refused(each) if each in refused else _test(each, values) for each in hypotheses])


def together(verdicts: list[Verdict]) -> list[Verdict]:
    """The same verdicts, corrected for all of these, whatever they were corrected for before."""
    ps = holm([verdict.uncorrected_p for verdict in verdicts])
    return [verdict.among(p, ps) for verdict, p in zip(verdicts, ps, strict=True)]


def _refused(hypothesis: Hypothesis) -> Verdict:
    return Verdict(hypothesis, None, math.nan, math.inf, "its FIDs were measured in different ways")


def _test(hypothesis: Hypothesis, values: Values) -> Verdict:
    left = values.get(hypothesis.left, {})
    right = values.get(hypothesis.right, {}) if hypothesis.right else dict.fromkeys(left, 1.0)
    pairs = [(left[seed], hypothesis.factor * right[seed]) for seed in sorted(set(left) & set(right))]
    if not pairs:
        return Verdict(hypothesis, None, math.nan, math.inf, "no seed has both values")
    if any(value <= 0 for pair in pairs for value in pair):
        return Verdict(hypothesis, None, math.nan, math.inf, "a value is not above 0")
    found = paired_ratio(*zip(*pairs, strict=True))
    return Verdict(hypothesis, found, found.p, math.inf, "one seed has no scatter" if found.n == 1 else "")


def _smallest(found: Ratio | None, level: float) -> float:
    """The quotient, or one over it, that the test would find with POWER if the logarithms scatter as they do."""
    if found is None or found.n < 2:
        return math.inf
    deviation = math.log(found.high / found.value) * math.sqrt(found.n) / stats.t.ppf(1 - LEVEL / 2, found.n - 1)
    return math.exp(detectable_effect(found.n, level) * deviation)


def summary(verdicts: list[Verdict]) -> str:
    """How many of each, and how sure that is."""
    counts = {outcome: sum(verdict.outcome == outcome for verdict in verdicts) for outcome in OUTCOMES}
    told = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
    several = "1 hypothesis" if len(verdicts) == 1 else f"{len(verdicts)} hypotheses"
    seeds = sorted({verdict.quotient.n for verdict in verdicts if verdict.quotient})
    power = f", with {'–'.join(map(str, seeds[:: max(1, len(seeds) - 1)]))} seeds" if seeds else ""
    return f"Of {several} stated before the run: {told}{power} (a false call in any of them: at most {LEVEL:.0%})."

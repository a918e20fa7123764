"""Verdicts on a ledger of claims, from the sweeps of its studies, at the looks that their designs planned."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dashboards.claims.evidence import Evidence, Gathered
from dashboards.claims.ledger import Claim, Ledger, Study
from dashboards.claims.looks import Answer, Look, Question, answer, sequential_tests
from dashboards.comparison.exponents import MARGIN, PREDICTED
from dashboards.comparison.verdicts import is_exact
from dashboards.labels import p_value, plural, with_interval
from orchestration.sweep.hypotheses import read_hypothesis
from soflow.statistics import (
    FEWEST_SEEDS,
    LEVEL,
    ROUNDING,
    detectable_effect,
    paired_ratio,
    two_sided_level,
)

CONFIRMED, REFUTED, EQUIVALENT, UNDECIDED = OUTCOMES = ("confirmed", "refuted", "equivalent", "undecided")


@dataclass(frozen=True)
class Judged:
    """A claim with what its seeds say.

    Attributes:
        looks: mean and scatter at each look so far, of the logarithm of the ratio, or of an exponent less 1/2.
        answer: the call; None without a test.
        p: p-value of the call, corrected for the ledger; NaN without a test.
        exact: the mean, where all seeds agree on a count of bytes, so that no test is needed; else None.
        gain: how many times as many seeds unpaired runs would need for the same scatter; NaN if unknown.
        reached: number of seeds of the last look that is complete, lost ones included.
        reason: why there is no test; else empty.
    """

    study: Study
    claim: Claim
    looks: tuple[Look, ...] = ()
    answer: Answer | None = None
    p: float = math.nan
    exact: float | None = None
    gain: float = math.nan
    reached: int = 0
    reason: str = ""

    @property
    def is_exponent(self) -> bool:
        return self.claim.exponent is not None

    @property
    def question(self) -> Question:
        most, spending = self.study.looks[-1], self.study.spending
        if self.is_exponent:
            return Question(MARGIN, most, null=MARGIN, spending=spending)
        return Question(math.log(self.study.smallest_of(self.claim)), most, spending=spending)

    @property
    def seeds(self) -> int:
        return self.looks[-1].n if self.looks else 0

    @property
    def outcome(self) -> str:
        if self.exact is not None:
            if abs(self.exact) <= self.question.margin:
                return EQUIVALENT
            return CONFIRMED if self.exact < 0 else REFUTED
        if self.answer is None or not self.p < LEVEL:
            return UNDECIDED
        if self.is_exponent:
            return CONFIRMED if self.answer.call == "inside" else REFUTED
        return {"below": CONFIRMED, "above": REFUTED, "inside": EQUIVALENT}[self.answer.call]

    @property
    def estimate(self) -> tuple[float, float, float] | None:
        """The ratio, or the exponent, with its repeated 95 % interval; None without a value."""
        if not self.looks:
            return None
        mean = self.looks[-1].mean
        bounds = (self.answer.low, self.answer.high) if self.answer else (math.nan, math.nan)
        if self.is_exponent:
            return PREDICTED + mean, PREDICTED + bounds[0], PREDICTED + bounds[1]
        return math.exp(mean), math.exp(bounds[0]), math.exp(bounds[1])

    @property
    def effect_size(self) -> float:
        """Mean over standard deviation at the last look."""
        return self.looks[-1].mean / self.looks[-1].deviation if self.answer else math.nan

    @property
    def detectable(self) -> float:
        """Ratio above 1 that all planned seeds tell from 1 with the study's power; infinite without a test.

        From the critical value of the last planned look alone, to which the earlier ones only add. Never below the
        smallest effect: cases that differ by less are called equivalent.
        """
        if self.answer is None or self.is_exponent:
            return math.inf
        planned, last = self.study.looks, self.looks[-1]
        critical = sequential_tests(planned, planned[-1], self.study.spending)[0].critical(self.study.level)[-1]
        level = two_sided_level(critical, planned[-1])
        ratio = math.exp(detectable_effect(planned[-1], level, self.study.power) * last.deviation)
        return max(ratio, self.study.smallest_of(self.claim))

    @property
    def interval(self) -> str:
        if self.estimate is None:
            return "–"
        return f"{'k =' if self.is_exponent else '×'} {with_interval(*self.estimate)}"

    @property
    def sentence(self) -> str:
        """What a reader may quote."""
        if self.reason and self.exact is None:
            return f"Not tested: {self.reason}."
        found = f"{self.interval}, {plural(self.seeds, 'seed')}"
        if self.exact is None:
            found += f", p = {p_value(self.p)}"
        if self.outcome == UNDECIDED:
            ended = "at the last planned look" if self.reached >= self.study.looks[-1] else "so far"
            return f"Undecided {ended}: {found}."
        if self.outcome == EQUIVALENT:
            return f"No difference of a factor of {self.study.smallest_of(self.claim):g} or more: {found}."
        if self.is_exponent:
            how = "decreases" if self.outcome == CONFIRMED else "does not decrease"
            return f"The error {how} as √δ: {found}."
        holds = "Holds" if self.outcome == CONFIRMED else "The opposite holds"
        return f"{holds} at this scale: {found}."


def judge(ledger: Ledger, gathered: Mapping[str, Gathered]) -> list[Judged]:
    """Test all claims at the looks so far, and correct them together.

    Every study states its share of the error rate, and every claim has an equal part of it. These shares are fixed: if
    log ratios are normal, all verdicts together are wrong with a probability of at most 5 %, whatever the dependence
    between claims (Bonferroni's inequality), and no verdict depends on other claims. Passing on the share of a decided
    claim, as in Holm's method, would not be valid: a claim that is rightly called equivalent could have been called
    confirmed at its own share, so nothing is left of it.

    Args:
        gathered: what the studies that were run have measured, by experiment.
    """
    judged = []
    for study in ledger.studies:
        evidence = gathered[study.experiment].evidence if study.experiment in gathered else {}
        for claim in study.claims:
            one = _judge_claim(study, claim, evidence.get(claim.test, Evidence(reason="not run yet")))
            p = min(1.0, one.answer.p * LEVEL / study.level) if one.answer else math.nan
            judged.append(replace(one, p=p))
    return judged


def _judge_claim(study: Study, claim: Claim, evidence: Evidence) -> Judged:
    looks: list[Look] = []
    reached = 0
    for planned in study.looks:
        if planned > len(evidence.seeds):
            break
        reached = planned
        known = [evidence.values[seed] for seed in evidence.seeds[:planned] if seed in evidence.values]
        if len(known) >= FEWEST_SEEDS and (not looks or len(known) > looks[-1].n):
            looks.append(_look(claim, known, evidence))
    one = Judged(study, claim, tuple(looks), reached=reached, reason=evidence.reason)
    if not looks:
        return replace(one, reason=one.reason or f"fewer than {FEWEST_SEEDS} seeds")
    if not claim.exponent:
        one = replace(one, gain=pairing_gain([(pair[0], pair[1]) for pair in evidence.values.values()]))
    if looks[-1].deviation < ROUNDING:
        if claim.exponent or not is_exact(read_hypothesis(claim.test)):
            return replace(one, reason="all seeds give the same value")
        return replace(one, exact=looks[-1].mean)
    return replace(one, answer=answer(one.question, looks))


def _look(claim: Claim, values: Sequence[tuple[float, ...]], evidence: Evidence) -> Look:
    if claim.exponent:
        centered = [value[0] - PREDICTED for value in values]
        return Look(len(centered), statistics.fmean(centered), statistics.stdev(centered))
    ratio = paired_ratio(*zip(*values, strict=True), resolutions=evidence.resolutions)
    return Look(ratio.n, math.log(ratio.value), ratio.deviation)


def pairing_gain(pairs: Sequence[tuple[float, float]]) -> float:
    """Compute the variance of the log ratio without pairing over that with it.

    Runs of equal seeds share data order, noise, initial weights and evaluation, and the correlation that follows is
    worth seeds: unpaired runs need this many times as many. NaN with fewer than three pairs, for a constant side, and
    without scatter.
    """
    if len(pairs) < FEWEST_SEEDS:
        return math.nan
    left, right = ([math.log(pair[side]) for pair in pairs] for side in (0, 1))
    apart = statistics.variance(left), statistics.variance(right)
    together = statistics.variance([a - b for a, b in zip(left, right, strict=True)])
    return sum(apart) / together if min(*apart, together) > ROUNDING**2 else math.nan


def counts(judged: list[Judged]) -> dict[str, int]:
    outcomes = [one.outcome for one in judged]
    return {outcome: outcomes.count(outcome) for outcome in OUTCOMES}

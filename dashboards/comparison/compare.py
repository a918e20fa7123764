"""What a comparison of cases found: each case over its seeds, and seed by seed against the first one."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import pandas as pd

from dashboards.comparison.verdicts import Verdict, hypotheses_of, judge, summary
from dashboards.reading.sweep_data import SweepRecord
from dashboards.sweep.findings import Findings, find, is_quality, shortened, title
from orchestration.sweep.hypotheses import Hypothesis, Measured
from soflow.statistics import LEVEL, POWER, Ratio, detectable_effect, holm, mean_interval, paired_ratio

COSTS = ("time/step_ms", "time/train_s", "memory/peak_mib")
"""What is compared beside quality."""


@dataclass(frozen=True)
class Measure:
    """A metric of a case: its values by seed, their mean and its 95 % interval (NaN for a single seed)."""

    values: dict[int, float]
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Case:
    """One configuration over its seeds.

    Attributes:
        trials: numbers of its finished trials by seed.
        lost: numbers of its other trials, which count nowhere.
        measures: by metric, as far as all finished trials reported it.
        against: by metric, this case over the first one, seed by seed; empty for that itself.
        p: of the first goal against the first case, corrected for all cases; NaN where there is no test.
    """

    name: str
    trials: dict[int, int]
    lost: list[int]
    measures: dict[str, Measure]
    against: dict[str, Ratio]
    p: float = math.nan


@dataclass(frozen=True)
class Comparison:
    """All cases, the first of which the others are held against.

    Attributes:
        quality: metrics of quality that were reported, the first goal first; empty if they must not be compared between
            cases.
        verdicts: of the hypotheses that were stated before.
        answer: what was found, in two sentences, or why nothing may be said.
    """

    record: SweepRecord
    findings: Findings
    cases: list[Case]
    quality: list[str]
    verdicts: list[Verdict]
    answer: list[str]

    @property
    def metrics(self) -> list[str]:
        """All that is told of cases: quality, costs, and what else hypotheses are about."""
        stated = [term.metric for verdict in self.verdicts for term in verdict.hypothesis.terms]
        return list(dict.fromkeys([*self.quality, *filter(is_quality, stated), *COSTS, *stated]))


def compare(record: SweepRecord, hypotheses: list[Hypothesis] | None = None) -> Comparison:
    """Compare the cases of a sweep that has some.

    Args:
        hypotheses: what to test; by default what was stated with the sweep.
    """
    findings, goal = find(record), record.goals[0]
    table = record.trials.assign(case=record.trials["case"].map(str))  # a name may look like a number
    table["seed"] = pd.to_numeric(table["seed"], errors="coerce")
    quality = [name for name in table if re.fullmatch(r"fid(_\d+nfe)?", name)] if findings.comparable else []
    quality.sort(key=lambda name: (name != goal, name))
    if hypotheses is None:
        hypotheses = hypotheses_of(record.param("hypotheses"))
    measured = {term.metric for hypothesis in hypotheses for term in hypothesis.terms}
    metrics = list(dict.fromkeys([*quality, *COSTS, *sorted(measured)]))
    names = list(dict.fromkeys(table.sort_values("trial")["case"]))
    compared = [metric for metric in metrics if findings.comparable or not is_quality(metric)]
    cases: list[Case] = []
    for name in names:
        cases.append(_case(name, table[table["case"] == name], metrics, compared, cases[0] if cases else None))
    if quality:
        ps = holm([case.against[goal].p if goal in case.against else math.nan for case in cases])
        cases = [Case(**vars(case) | {"p": p}) for case, p in zip(cases, ps, strict=True)]
    values = {Measured(name, case.name): found.values for case in cases for name, found in case.measures.items()}
    verdicts = judge(hypotheses, values, {each for each in hypotheses if not _may_be_judged(each, cases, findings)})
    answer = _answer(record, cases, goal) if findings.comparable else findings.answer
    if verdicts:
        answer = [*answer, summary(verdicts)]
    return Comparison(record, findings, cases, quality, verdicts, answer)


def _may_be_judged(hypothesis: Hypothesis, cases: list[Case], findings: Findings) -> bool:
    """Whether all FIDs that it is about were measured in one way."""
    about = {term.case for term in hypothesis.terms}
    trials = {number for case in cases if case.name in about for number in case.trials.values()}
    ways = sum(bool(trials & set(protocol.trials)) for protocol in findings.protocols)
    return ways <= 1 or not any(is_quality(term.metric) for term in hypothesis.terms)


def _case(name: str, rows: pd.DataFrame, metrics: list[str], compared: list[str], first: Case | None) -> Case:
    finished = rows[(rows["state"] == "finished") & rows["seed"].notna()]
    trials = {int(row["seed"]): int(row["trial"]) for _, row in finished.iterrows()}
    lost = [int(number) for number in rows["trial"] if number not in trials.values()]
    measures = {}
    for metric in metrics:
        values = {
            int(row["seed"]): float(row[metric])
            for _, row in finished.iterrows()
            if metric in row and math.isfinite(row[metric])
        }
        if values:
            measures[metric] = _measure(values)
    against = {}
    for metric in compared if first else ():
        ours, theirs = measures.get(metric), first.measures.get(metric)
        shared = sorted(set(ours.values) & set(theirs.values)) if ours and theirs else []
        pairs = [(ours.values[seed], theirs.values[seed]) for seed in shared]
        if pairs and all(value > 0 for pair in pairs for value in pair):
            against[metric] = paired_ratio(*zip(*pairs, strict=True))
    return Case(name, trials, lost, measures, against)


def _measure(values: dict[int, float]) -> Measure:
    numbers = list(values.values())
    if len(numbers) == 1:
        return Measure(values, numbers[0], math.nan, math.nan)
    return Measure(values, *mean_interval(numbers))


def _answer(record: SweepRecord, cases: list[Case], goal: str) -> list[str]:
    measured = [case for case in cases if goal in case.measures]
    if not measured:
        return ["No case has a trial that reached its last step."]
    best = min(measured, key=lambda case: case.measures[goal].mean)
    measure = best.measures[goal]
    floor = record.trials["fid_floor"].dropna() if "fid_floor" in record.trials else pd.Series(dtype=float)
    above = f", {measure.mean / floor.iloc[0]:.1f} times the real data's own {floor.iloc[0]:.3g}" if len(floor) else ""
    seeds = len(measure.values)
    several = f"{interval(measure)} over {seeds} seed{'s' if seeds > 1 else ''}{above}."
    if len(cases) == 1:
        return [f"{shortened(best.name)} has a mean {title(goal)} of {several}"]
    first = f"{shortened(best.name)} has the lowest mean {title(goal)} of {len(measured)} cases: {several}"
    found = [case for case in cases if case.p < LEVEL]
    reference = shortened(cases[0].name)
    told = [f"{shortened(case.name)} {_times(case.against[goal])}, p = {case.p:.2g}" for case in found]
    if found:
        second = f"Against {reference}, seed by seed and corrected for {len(cases) - 1} tests: {'; '.join(told)}."
    else:
        second = f"No case differs from {reference} beyond what seeds explain."
    n = min((case.against[goal].n for case in cases if goal in case.against), default=1)
    if n > 1:
        second += (
            f" With {n} seeds a test finds effects of {detectable_effect(n):.2g} standard deviations with "
            f"{POWER:.0%} power; smaller ones may exist."
        )
    return [first, second]


def _times(found: Ratio) -> str:
    return f"{found.value:.3g} times as high [{found.low:.3g}, {found.high:.3g}]"


def interval(measure: Measure) -> str:
    """A mean with its interval."""
    if math.isnan(measure.low):
        return f"{measure.mean:.4g}"
    return f"{measure.mean:.4g} [{measure.low:.4g}, {measure.high:.4g}]"


def times(found: Ratio) -> str:
    """A quotient with its interval."""
    if math.isnan(found.low):
        return f"× {found.value:.3g}"
    return f"× {found.value:.3g} [{found.low:.3g}, {found.high:.3g}]"

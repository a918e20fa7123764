"""Comparison of a sweep's cases: over their seeds, and seed by seed with the first case."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pandas as pd

from dashboards.comparison.cases import Case, Measure, build_cases
from dashboards.comparison.exponents import Exponent, fit
from dashboards.comparison.exponents import answer as exponents_answer
from dashboards.comparison.results import with_holm
from dashboards.comparison.verdicts import Verdict, judge, logged_hypotheses, summary, times
from dashboards.labels import p_value, percent, plural, shorten, title, with_interval
from dashboards.reading.mlflow_runs import listed
from dashboards.reading.protocols import Protocol, find_protocols, is_quality, not_comparable
from dashboards.reading.sweep_data import SweepData
from dashboards.sweep.answer import times_floor
from orchestration.sweep.hypotheses import Hypothesis, Measured
from orchestration.tracking.schema import CASE, FID, FID_FLOOR, PEAK_MIB, STEP_MS, TRAIN_S
from soflow.statistics import FEWEST_SEEDS, LEVEL, POWER, detectable_effect

COSTS = (STEP_MS, TRAIN_S, PEAK_MIB)
"""Metrics that are compared besides quality."""


@dataclass(frozen=True)
class Comparison:
    """Analysis of a comparison; the first case is the reference.

    Attributes:
        protocols: how FIDs were measured; a single one if all are comparable.
        quality: the first goal, which is tested, and the reported FIDs; empty if they must not be compared between
            cases, or no trial reported the goal.
        verdicts: results of the hypotheses that were stated before the run.
        exponents: fits of errors to what may predict them; p corrected together with that of the verdicts.
        answer: the findings in a few sentences, or why cases are not compared.
    """

    data: SweepData
    protocols: list[Protocol]
    cases: list[Case]
    quality: list[str]
    verdicts: list[Verdict]
    exponents: list[Exponent]
    answer: list[str]

    @property
    def metrics(self) -> list[str]:
        """Reported metrics of the cases: quality, costs, and other metrics of the hypotheses."""
        stated = [term.metric for verdict in self.verdicts for term in verdict.hypothesis.terms]
        metrics = dict.fromkeys([*self.quality, *filter(is_quality, stated), *COSTS, *stated])
        return [metric for metric in metrics if any(metric in case.measures for case in self.cases)]

    @property
    def illustrated(self) -> dict[str, int]:
        """Trials whose samples a report shows: the first seed of every case."""
        return {case.name: case.trials[min(case.trials)] for case in self.cases if case.trials}


def compare(data: SweepData, hypotheses: list[Hypothesis] | None = None) -> Comparison:
    """Analyze a comparison.

    Args:
        hypotheses: hypotheses to test; by default those stated with the sweep.
    """
    protocols, goal = find_protocols(data), data.goals[0]
    comparable = len(protocols) <= 1
    trials = data.trials.assign(case=data.trials[CASE].map(str))  # a name may look like a number
    trials["seed"] = pd.to_numeric(trials["seed"], errors="coerce")
    quality = []
    if goal in trials and (comparable or not is_quality(goal)):
        fids = sorted(name for name in trials if re.fullmatch(rf"{FID}(_\d+nfe)?", name) and name != goal)
        quality = [goal, *(fids if comparable else ())]
    if hypotheses is None:
        hypotheses = logged_hypotheses(data.param("hypotheses"))
    stated = {term.metric for hypothesis in hypotheses for term in hypothesis.terms}
    metrics = list(dict.fromkeys([*quality, *COSTS, *sorted(stated)]))
    compared = [metric for metric in metrics if comparable or not is_quality(metric)]
    resolutions = {
        metric: max((protocol.resolution(metric) for protocol in protocols), default=0.0) for metric in metrics
    }
    cases = build_cases(trials, metrics, compared, goal if quality else None, resolutions)
    values = {
        Measured(metric, case.name): measure.values for case in cases for metric, measure in case.measures.items()
    }
    excluded = {hypothesis for hypothesis in hypotheses if _mixes_protocols(hypothesis, cases, protocols)}
    results = with_holm([*judge(hypotheses, values, excluded, resolutions), *fit(data, cases)])
    verdicts = [result for result in results if isinstance(result, Verdict)]
    exponents = [result for result in results if isinstance(result, Exponent)]
    answer = [
        *exponents_answer(exponents),
        *(
            _answer(data, cases, goal)
            if comparable
            else [not_comparable(protocols, "Cases are not compared by quality")]
        ),
        *([summary(verdicts)] if verdicts else []),
        *_seeds_added(data),
    ]
    return Comparison(data, protocols, cases, quality, verdicts, exponents, answer)


def _seeds_added(data: SweepData) -> list[str]:
    """Warn of p-values that do not account for looks at the results."""
    added = listed(data.param("more_seeds"))
    if not added:
        return []
    return [
        f"Seeds were added after looks at the results ({'; '.join(added)}). The p-values here take their "
        "number as fixed in advance, so they are too low; python experiments/claims.py accounts for the looks."
    ]


def _mixes_protocols(hypothesis: Hypothesis, cases: list[Case], protocols: list[Protocol]) -> bool:
    """Check whether a hypothesis is about FIDs of more than one protocol."""
    names = {term.case for term in hypothesis.terms}
    trials = {number for case in cases if case.name in names for number in case.trials.values()}
    used = [protocol for protocol in protocols if trials & set(protocol.trials)]
    return len(used) > 1 and any(is_quality(term.metric) for term in hypothesis.terms)


def _answer(data: SweepData, cases: list[Case], goal: str) -> list[str]:
    measured = [case for case in cases if goal in case.measures]
    if not measured:
        return ["No case has a finished trial."]
    best = min(measured, key=lambda case: case.measures[goal].mean)
    measure, seeds = best.measures[goal], len(best.measures[goal].values)
    floors = data.trials[FID_FLOOR].dropna() if FID_FLOOR in data.trials else ()
    floor = times_floor(measure.mean, floors.iloc[0]) if len(floors) and goal == FID else ""
    lowest = (
        f"{'Lowest mean' if len(cases) > 1 else 'Mean'} {title(goal)}: {shorten(best.name)}, {interval(measure)} "
        f"({plural(seeds, 'seed')}{f', {len(measured)} cases' if len(cases) > 1 else ''})"
        f"{f'; {floor}' if floor else ''}."
    )
    return [lowest, _differences(cases, goal)] if len(cases) > 1 else [lowest]


def _differences(cases: list[Case], goal: str) -> str:
    """Word the significant differences from the first case, and the power of the test."""
    first = shorten(cases[0].name)
    significant = [case for case in cases if case.p < LEVEL]
    listed = "; ".join(
        f"{shorten(case.name)} {times(case.against[goal])}, p = {p_value(case.p)}" for case in significant
    )
    tests = sum(case.p == case.p for case in cases)
    sentence = f"Ratio to {first}, paired by seed, p Holm-corrected for {plural(tests, 'test')}: {listed}."
    if not significant:
        sentence = f"No case differs significantly from {first}."
    n = min((case.against[goal].n for case in cases if goal in case.against), default=1)
    if n < FEWEST_SEEDS:
        sentence += f" Fewer than {FEWEST_SEEDS} seeds are not tested."
    else:
        effect = detectable_effect(n, LEVEL / max(1, tests))  # corrected, as p is
        sentence += (
            f" With {n} seeds, the test detects effects of {effect:.2g} standard deviations with {percent(POWER)} "
            "power; smaller effects remain possible."
        )
    return sentence


def interval(measure: Measure) -> str:
    """Format a mean with its interval."""
    return with_interval(measure.mean, measure.low, measure.high, digits=4)

"""Claims about one-step generators, each tested by a small experiment."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from dashboards.comparison.compare import compare
from dashboards.comparison.exponents import PREDICTED
from dashboards.comparison.results import COLUMNS, NotTested, TestResult, with_holm
from dashboards.comparison.tables import EXPONENT_TEST_NOTE, OUTLIERS_NOTE, RATIO_NOTE, Table, as_markdown_table
from dashboards.comparison.verdicts import count_outcomes
from dashboards.labels import percent
from dashboards.reading.sweep_data import SweepData
from orchestration.sweep.hypotheses import read_hypothesis
from orchestration.tracking.schema import GIT_COMMIT
from orchestration.tracking.uri import TrackingError
from soflow.statistics import LEVEL

EXPONENT = re.compile(rf"k = {PREDICTED:g}: (.+) \((.+)\)")
"""Test of an exponent: the relation's name and the case."""


@dataclass(frozen=True)
class Claim:
    """A sentence, its source, and the experiment with the hypothesis that tests it: METRIC(CASE) < …, or
    "k = 0.5: RELATION (CASE)" for an exponent."""

    claim: str
    source: str
    experiment: str
    test: str
    published: str = ""


@dataclass(frozen=True)
class JudgedClaim:
    """A claim with the result of its test."""

    claim: Claim
    result: TestResult

    @property
    def row(self) -> list[str]:
        claim = self.claim
        return [claim.claim, claim.source, claim.published or "–", claim.experiment, *self.result.row()]


def read_claims(path: Path) -> list[Claim]:
    """Read claims from a YAML list of mappings with the fields of `Claim`."""
    return [Claim(**values) for values in yaml.safe_load(path.read_text())]


def judge_claims(claims: list[Claim], read: Callable[[str], SweepData]) -> list[JudgedClaim]:
    """Test all claims, corrected together.

    Args:
        read: reads the sweep of an experiment by its name; raises TrackingError if it was not run.
    """
    results: dict[Claim, TestResult] = {}
    for experiment in dict.fromkeys(claim.experiment for claim in claims):
        of_experiment = [claim for claim in claims if claim.experiment == experiment]
        try:
            results |= _judge_experiment(of_experiment, read(experiment))
        except TrackingError as error:
            results |= {claim: NotTested(claim.test, str(error)) for claim in of_experiment}
    corrected = with_holm([results[claim] for claim in claims])
    return [JudgedClaim(claim, result) for claim, result in zip(claims, corrected, strict=True)]


def _judge_experiment(claims: list[Claim], data: SweepData) -> dict[Claim, TestResult]:
    exponent_tests = {claim: match.groups() for claim in claims if (match := EXPONENT.fullmatch(claim.test))}
    others = [claim for claim in claims if claim not in exponent_tests]
    comparison = compare(data, [read_hypothesis(claim.test) for claim in others])
    results: dict[Claim, TestResult] = dict(zip(others, comparison.verdicts, strict=True))
    fits = {(exponent.relation.name, exponent.case): exponent for exponent in comparison.exponents}
    for claim, test in exponent_tests.items():
        results[claim] = fits.get(test) or NotTested(claim.test, "no trial reported both metrics often enough")
    return results


def counts(judged: list[JudgedClaim]) -> dict[str, int]:
    return count_outcomes(claim.result.outcome for claim in judged)


def claims_table(judged: list[JudgedClaim]) -> Table:
    """Build a row per claim: verdict, ratio with interval, test."""
    return [["claim", "source", "published", "experiment", *COLUMNS], *(claim.row for claim in judged)]


def sweeps_table(sweeps: dict[str, SweepData]) -> Table:
    """Build a row per experiment: number of trials and steps, duration, commit."""
    rows = [["experiment", "cases", "seeds", "trials", "lost", "steps", "minutes", "git commit"]]
    for name, data in sweeps.items():
        trials, info = data.trials, data.run.info if data.run else None
        minutes = f"{(info.end_time - info.start_time) / 60_000:.1f}" if info and info.end_time else "–"
        commit = data.run.data.tags.get(GIT_COMMIT, "–")[:12] if data.run else "–"
        lost = (trials["state"] != "finished").sum()
        numbers = (trials["case"].nunique(), trials["seed"].nunique(), len(trials), lost, trials["step"].sum())
        rows.append([name, *(f"{number:,}" for number in numbers), minutes, commit])
    return rows


def page(judged: list[JudgedClaim], facts: dict[str, str], sweeps: dict[str, SweepData]) -> str:
    """Format all claims as a Markdown page.

    Args:
        facts: date, hardware and code version.
        sweeps: the experiments that were run, by name.
    """
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in counts(judged).items())
    return f"""# Claims, tested small

Written by `python experiments/claims.py`, which runs every experiment at small scale and tests the claims of
`experiments/claims.yaml`. {len(judged)} claims: {outcomes}.

{as_markdown_table([["", ""], *([name, value] for name, value in facts.items())])}

Each claim is tested by the hypothesis beside it, which was stated before the run.
{RATIO_NOTE.format(family="claims on this page")} (family-wise error rate {percent(LEVEL)}).
{EXPONENT_TEST_NOTE}, corrected likewise.
{OUTLIERS_NOTE}.
The last column is the smallest ratio above 1, or its inverse, that the seeds would have shown with 80 % power: a claim
that is not decided may still hold by less than that. A claim refuted at this scale may hold at the published scale.

{as_markdown_table(claims_table(judged))}

## Experiments

Minutes are from the first trial to the last, evaluation included, preparation excluded. Lost trials diverged or failed;
no test uses them.

{as_markdown_table(sweeps_table(sweeps))}
"""

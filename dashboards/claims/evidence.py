"""What the seeds of a study measured, for each of its claims, read from its sweep."""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field

import pandas as pd

from dashboards.claims.ledger import Claim, Study
from dashboards.comparison.compare import compare
from dashboards.reading.sweep_data import SweepData
from orchestration.sweep.hypotheses import read_hypothesis
from orchestration.tracking.schema import CASE, GIT_COMMIT

ENDED = ("finished", "stopped", "failed")
"""States of trials that have ended."""


@dataclass(frozen=True)
class Evidence:
    """Measurements that a claim's test uses.

    Attributes:
        seeds: seeds that have ended in all its cases, lost ones included, without a gap.
        values: by seed, both sides of a ratio or one exponent; lost seeds are missing.
        resolutions: spacing of the values that each side of a ratio can have.
        reason: why there are no values; else empty.
    """

    seeds: tuple[int, ...] = ()
    values: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    resolutions: tuple[float, float] = (0.0, 0.0)
    reason: str = ""


@dataclass(frozen=True)
class Gathered:
    """What a study has measured so far.

    Attributes:
        evidence: by the claim's test.
        seconds: wall-clock seconds of a trial, by case: medians, because the time until an interrupted trial is resumed
            counts as well.
        at_a_time: number of trials that ran in parallel.
        hours: of all trials together, from these medians.
        commits: versions of the code that trained.
        is_unfinished: True if planned trials have not ended.
    """

    evidence: Mapping[str, Evidence]
    seconds: Mapping[str, float]
    at_a_time: int = 1
    trials: int = 0
    lost: int = 0
    steps: int = 0
    hours: float = 0.0
    commits: tuple[str, ...] = ()
    is_unfinished: bool = False


def gather(study: Study, data: SweepData) -> Gathered:
    """Read what a study's sweep has measured."""
    if not data.is_comparison:  # interrupted before its first trial
        return Gathered({}, {}, is_unfinished=True)
    ratios = [claim for claim in study.claims if not claim.exponent]
    comparison = compare(data, [read_hypothesis(claim.test) for claim in ratios])
    fits = {(exponent.relation.name, exponent.case): exponent for exponent in comparison.exponents}
    evidence = {}
    for claim, verdict in zip(ratios, comparison.verdicts, strict=True):
        reason = "" if verdict.pairs else verdict.reason
        seeds = ended_seeds(data, cases_of(claim))
        evidence[claim.test] = Evidence(seeds, dict(verdict.pairs), verdict.resolutions, reason)
    for claim in study.claims:
        if claim.exponent:
            fit = fits.get(claim.exponent)
            values = {seed: (k,) for seed, k in fit.by_seed.items()} if fit else {}
            reason = "" if fit else "no trial reported both metrics often enough"
            evidence[claim.test] = Evidence(ended_seeds(data, cases_of(claim)), values, reason=reason)
    trials, at_a_time = data.trials, data.param("max_concurrent", "1")
    ended, case = trials["state"].isin(ENDED), trials[CASE].map(str)
    seconds = pd.to_numeric(trials["wall_s"]).groupby(case).median()
    commit = data.run.data.tags.get(GIT_COMMIT) if data.run else None
    return Gathered(
        evidence,
        seconds={name: float(median) for name, median in seconds.items() if median == median},
        at_a_time=int(at_a_time) if at_a_time.isdecimal() else 1,
        trials=len(trials),
        lost=int((ended & (trials["state"] != "finished")).sum()),
        steps=int(trials["step"].sum()),
        hours=float(case[ended].map(seconds).sum()) / 3600,
        commits=(commit[:12],) if commit else (),
        is_unfinished=int(data.param("num_trials", "0")) > int(ended.sum()),
    )


def cases_of(claim: Claim) -> tuple[str, ...]:
    """List the cases that a claim's test compares."""
    if claim.exponent:
        return (claim.exponent[1],)
    return tuple(dict.fromkeys(term.case for term in read_hypothesis(claim.test).terms))


def ended_seeds(data: SweepData, cases: Collection[str]) -> tuple[int, ...]:
    """List the seeds that have ended in all these cases, from the first planned one to the first that has not."""
    trials = data.trials[data.trials["state"].isin(ENDED)]
    names, seeds = trials[CASE].map(str), pd.to_numeric(trials["seed"])
    ended = set.intersection(*({int(seed) for seed in seeds[names == case]} for case in cases))
    first = int(pd.to_numeric(data.trials["seed"]).min()) if len(data.trials) else 0
    return tuple(itertools.takewhile(ended.__contains__, itertools.count(first)))


def to_json(gathered: Mapping[str, Gathered], facts: Mapping[str, str]) -> str:
    """Format what all studies have measured, from which anybody can test the claims again."""
    studies = {name: asdict(study) for name, study in gathered.items()}
    return json.dumps({"facts": facts, "studies": studies}, indent=1, allow_nan=False)

"""What the seeds of a study measured, for each of its claims: read from its sweep, and pooled with earlier records."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pandas as pd

from dashboards.claims.ledger import Claim, Study
from dashboards.comparison.compare import compare
from dashboards.reading.sweep_data import SweepData
from orchestration.sweep.hypotheses import read_hypothesis
from orchestration.tracking.schema import CASE, GIT_COMMIT
from soflow.config_base import ConfigError

ENDED = ("finished", "stopped", "failed")
"""States of trials that have ended."""


@dataclass(frozen=True)
class Evidence:
    """What is known about a claim.

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
        seconds: mean wall-clock seconds of a trial, by case.
        at_a_time: number of trials that ran in parallel.
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

    @property
    def num_seeds(self) -> int:
        return max((len(evidence.seeds) for evidence in self.evidence.values()), default=0)

    @property
    def first_seed(self) -> int:
        return min((evidence.seeds[0] for evidence in self.evidence.values() if evidence.seeds), default=0)


def gather(study: Study, data: SweepData) -> Gathered:
    """Read what a study's sweep has measured."""
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
    walls, ended = pd.to_numeric(trials["wall_s"]), trials["state"].isin(ENDED)
    commit = data.run.data.tags.get(GIT_COMMIT) if data.run else None
    return Gathered(
        evidence,
        seconds={case: float(mean) for case, mean in walls.groupby(trials[CASE].map(str)).mean().items()},
        at_a_time=int(at_a_time) if at_a_time.isdecimal() else 1,
        trials=len(trials),
        lost=int((ended & (trials["state"] != "finished")).sum()),
        steps=int(trials["step"].sum()),
        hours=float(walls.sum()) / 3600,
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


def pooled(earlier: Gathered, later: Gathered) -> Gathered:
    """Pool two parts of a study; seeds of the later one that do not follow those of the earlier one are left out."""
    evidence = {}
    for test in {**earlier.evidence, **later.evidence}:
        before, after = earlier.evidence.get(test, Evidence()), later.evidence.get(test, Evidence())
        seeds = list(before.seeds or after.seeds)
        for seed in after.seeds:
            if seed == seeds[-1] + 1:
                seeds.append(seed)
        values = {seed: value for seed, value in (before.values | after.values).items() if seed in seeds}
        resolutions = tuple(map(max, before.resolutions, after.resolutions))
        evidence[test] = Evidence(tuple(seeds), values, resolutions, "" if values else after.reason or before.reason)
    return Gathered(
        evidence,
        seconds={**earlier.seconds, **later.seconds},
        at_a_time=later.at_a_time,
        trials=earlier.trials + later.trials,
        lost=earlier.lost + later.lost,
        steps=earlier.steps + later.steps,
        hours=earlier.hours + later.hours,
        commits=tuple(dict.fromkeys((*earlier.commits, *later.commits))),
        is_unfinished=later.is_unfinished,
    )


def to_json(gathered: Mapping[str, Gathered], facts: Mapping[str, str]) -> str:
    """Format what all studies have measured, from which the ledger can be judged again or continued."""
    return json.dumps({"facts": facts, "studies": {name: asdict(study) for name, study in gathered.items()}}, indent=1)


def read_record(path: Path) -> dict[str, Gathered]:
    """Read what `to_json` wrote: what every study had measured, by experiment.

    Raises:
        ConfigError: if the file is no record.
    """
    try:
        studies = json.loads(path.read_text())["studies"]
        return {name: _study(values) for name, values in studies.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"record = {path}: must be the claims.json of a ledger ({error!r})") from None


def _study(values: dict) -> Gathered:
    evidence = {
        test: Evidence(
            tuple(one["seeds"]),
            {int(seed): tuple(map(float, value)) for seed, value in one["values"].items()},
            tuple(one["resolutions"]),
            one["reason"],
        )
        for test, one in values["evidence"].items()
    }
    if any(not math.isfinite(number) for one in evidence.values() for pair in one.values.values() for number in pair):
        raise ValueError("a value is not finite")
    return Gathered(**values | {"evidence": evidence, "commits": tuple(values["commits"]), "is_unfinished": False})

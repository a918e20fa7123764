"""Which seeds to train next, so that the time decides as many claims as possible."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dashboards.claims.evidence import Gathered, cases_of
from dashboards.claims.judge import UNDECIDED, Judged
from dashboards.claims.ledger import Ledger, Study
from dashboards.claims.looks import p_values

DRAWS = 2000


@dataclass(frozen=True)
class Block:
    """Trials to train next in one experiment.

    Attributes:
        seeds: number of seeds that its cases then have; None to finish what was interrupted.
        cases: the cases that get new seeds; empty for all.
        hours: predicted duration; 0 if unknown.
        decided: expected number of claims that it decides.
    """

    experiment: str
    seeds: int | None = None
    cases: tuple[str, ...] = ()
    hours: float = 0.0
    decided: float = math.nan


def next_block(
    ledger: Ledger, judged: list[Judged], gathered: Mapping[str, Gathered], hours_left: float = math.inf
) -> Block | None:
    """Choose what to train next: first looks in the ledger's order, then what decides most claims per hour.

    Args:
        gathered: what the studies that were run have measured, by experiment.
        hours_left: a block that is predicted to take longer is not started.

    Returns:
        None if nothing is left that could be decided, or nothing that fits into the time.
    """
    if hours_left <= 0:
        return None
    for study in ledger.studies:
        if study.experiment not in gathered or gathered[study.experiment].is_unfinished:
            return Block(study.experiment)
    blocks = [
        block
        for study in ledger.studies
        if (block := _block(study, [one for one in judged if one.study == study], gathered[study.experiment]))
        and block.hours <= hours_left
    ]
    return max(blocks, key=lambda block: block.decided / max(block.hours, 1e-3), default=None)


def _block(study: Study, judged: list[Judged], gathered: Gathered) -> Block | None:
    """Describe the next look of a study; None if it has no further one, or no claim that the look could decide."""
    open_claims = [one for one in judged if one.outcome == UNDECIDED and one.reached < study.looks[-1]]
    if not open_claims:
        return None
    seeds = next(planned for planned in study.looks if planned > min(one.reached for one in open_claims))
    behind = [one for one in open_claims if one.reached < seeds]
    new = {case: seeds - one.reached for one in reversed(behind) for case in cases_of(one.claim)}
    cases = tuple(dict.fromkeys(case for one in behind for case in cases_of(one.claim)))
    hours = sum(new[case] * gathered.seconds.get(case, 0.0) for case in cases) / gathered.at_a_time / 3600
    return Block(study.experiment, seeds, cases, hours, sum(chance(one, seeds) for one in behind))


def chance(one: Judged, seeds: int) -> float:
    """Predict the probability that a claim is decided with this many seeds.

    The true mean and scatter are drawn from their posterior distribution given the seeds so far (with the prior
    1 / σ), and new values from these.
    """
    if one.answer is None:
        return 0.0
    last, more = one.looks[-1], seeds - one.reached
    generator = np.random.default_rng(0)
    sigma = last.deviation * np.sqrt((last.n - 1) / generator.chisquare(last.n - 1, DRAWS))
    true = generator.normal(last.mean, sigma / math.sqrt(last.n))
    new = generator.normal(true, sigma, (more, DRAWS))
    total = last.n + more
    mean = (last.n * last.mean + new.sum(axis=0)) / total
    squares = (last.n - 1) * last.deviation**2 + last.n * last.mean**2 + (new**2).sum(axis=0)
    error = np.sqrt((squares - total * mean**2) / (total - 1) / total)
    ns = (*(look.n for look in one.looks), total)
    ps = p_values(one.question, ns, len(one.looks), mean, error)
    return float((np.minimum(*ps) <= one.study.level).mean())

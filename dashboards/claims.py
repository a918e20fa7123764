"""Claims about one-step generators, each judged by the small study that can speak for or against it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from dashboards.comparison import compare
from dashboards.comparison_tables import Table, as_markdown_table
from dashboards.paired import LEVEL
from dashboards.records import SweepRecord
from dashboards.verdicts import COLUMNS, OUTCOMES, UNDECIDED, Verdict, row, together
from orchestration.hypotheses import read_hypothesis
from orchestration.spool import TrackingError


@dataclass(frozen=True)
class Claim:
    """A sentence, who says it, what it rests on, and the study and hypothesis that test it."""

    claim: str
    source: str
    study: str
    test: str
    published: str = ""


@dataclass(frozen=True)
class Judged:
    """A claim with what its study found; without a verdict, why there is none."""

    claim: Claim
    verdict: Verdict | None
    reason: str = ""

    @property
    def outcome(self) -> str:
        return self.verdict.outcome if self.verdict else UNDECIDED


def read_claims(path: Path) -> list[Claim]:
    """The claims of a YAML file, a list of mappings with the fields of `Claim`."""
    return [Claim(**values) for values in yaml.safe_load(path.read_text())]


def judge_claims(claims: list[Claim], record_of: Callable[[str], SweepRecord]) -> list[Judged]:
    """Judge all claims together, with a correction for all of them.

    Args:
        record_of: a study's sweep by the study's name; raises TrackingError if there is none.
    """
    found: dict[str, Judged] = {}
    for study in dict.fromkeys(claim.study for claim in claims):
        own = [claim for claim in claims if claim.study == study]
        try:
            comparison = compare(record_of(study), [read_hypothesis(claim.test) for claim in own])
        except TrackingError as error:
            found |= {claim.test: Judged(claim, None, str(error)) for claim in own}
            continue
        found |= {claim.test: Judged(claim, verdict) for claim, verdict in zip(own, comparison.verdicts, strict=True)}
    verdicts = iter(together([judged.verdict for judged in found.values() if judged.verdict]))
    return [Judged(each.claim, next(verdicts)) if each.verdict else each for each in found.values()]


def counts(judged: list[Judged]) -> dict[str, int]:
    return {outcome: sum(each.outcome == outcome for each in judged) for outcome in OUTCOMES}


def table(judged: list[Judged]) -> Table:
    """A row per claim: verdict, effect with interval, test; the first row has the headings."""
    rows = [["claim", "source", "published", "study", *COLUMNS]]
    for each in judged:
        told = [each.claim.claim, each.claim.source, each.claim.published or "–", each.claim.study]
        none = [each.claim.test, f"{UNDECIDED}: {each.reason}", *["–"] * (len(COLUMNS) - 2)]
        rows.append(told + (row(each.verdict) if each.verdict else none))
    return rows


def page(judged: list[Judged], facts: dict[str, str]) -> str:
    """All claims as a Markdown page.

    Args:
        facts: when, on what and with which code they were tested.
    """
    told = ", ".join(f"{count} {outcome}" for outcome, count in counts(judged).items())
    return f"""# Claims, tested small

Written by `python experiments/claims.py`, which runs the small scale of every study and judges the claims of
`experiments/claims.yaml`. {len(judged)} claims: {told}.

{as_markdown_table([["", ""], *([name, value] for name, value in facts.items())])}

A claim is tested by the hypothesis beside it, which its study stated before it ran. Left over right is the geometric
mean over pairs of equal seeds with its 95 % interval; p is that of the paired t-test of the logarithms, corrected by
Holm for all claims on this page, so that any of them is called wrongly with a probability of at most {LEVEL:.0%};
d is the mean of these logarithms over their standard deviation. The last column says from which quotient on, or one
over it, such seeds would have shown a difference with a probability of 80 %: a claim that is not decided may still be
true by less than that. What is refuted at this scale may hold at the published one.

{as_markdown_table(table(judged))}
"""

"""Claims about one-step generators, each judged by the small study that can speak for or against it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import yaml

from dashboards.comparison.compare import compare
from dashboards.comparison.exponents import PREDICTED, fit
from dashboards.comparison.tables import Table, as_markdown_table
from dashboards.comparison.verdicts import COLUMNS, OUTCOMES, UNDECIDED
from dashboards.reading.sweep_data import SweepRecord
from orchestration.sweep.hypotheses import read_hypothesis
from orchestration.tracking.uri import TrackingError
from soflow.statistics import LEVEL, holm

EXPONENT = re.compile(rf"k = {PREDICTED:g}: (.+) \((.+)\)")
"""A test of an exponent: the relation's name and the case."""


@dataclass(frozen=True)
class Claim:
    """A sentence, who says it, what it rests on, and the study that tests it: by one of its hypotheses, or by the
    exponent k of "k = 0.5: RELATION (CASE)"."""

    claim: str
    source: str
    study: str
    test: str
    published: str = ""


class Finding(Protocol):
    """What a study says of a claim: a `Verdict`, an `Exponent`, or `Nothing`."""

    @property
    def outcome(self) -> str:
        """One of OUTCOMES."""

    @property
    def uncorrected_p(self) -> float:
        """As if it were the only one; NaN if there is no test."""

    def among(self, p: float, ps: list[float]) -> Finding:
        """The same with its p as one of several corrected ones."""

    def figures(self) -> dict[str, float]:
        """What was found, by short names; empty if nothing was."""

    def row(self) -> list[str]:
        """Under the COLUMNS of verdicts."""


@dataclass(frozen=True)
class Nothing:
    """No finding, and why."""

    test: str
    reason: str
    outcome: str = UNDECIDED
    uncorrected_p: float = math.nan

    def among(self, p: float, ps: list[float]) -> Nothing:
        return self

    def figures(self) -> dict[str, float]:
        return {}

    def row(self) -> list[str]:
        return [self.test, f"{self.outcome}: {self.reason}", *["–"] * (len(COLUMNS) - 2)]


@dataclass(frozen=True)
class Judged:
    """A claim with what its study found."""

    claim: Claim
    found: Finding


def read_claims(path: Path) -> list[Claim]:
    """The claims of a YAML file, a list of mappings with the fields of `Claim`."""
    return [Claim(**values) for values in yaml.safe_load(path.read_text())]


def judge_claims(claims: list[Claim], record_of: Callable[[str], SweepRecord]) -> list[Judged]:
    """Judge all claims together, with a correction for all of them.

    Args:
        record_of: a study's sweep by the study's name; raises TrackingError if there is none.
    """
    found: dict[Claim, Finding] = {}
    for study in dict.fromkeys(claim.study for claim in claims):
        own = [claim for claim in claims if claim.study == study]
        try:
            found |= _judge_study(own, record_of(study))
        except TrackingError as error:
            found |= {claim: Nothing(claim.test, str(error)) for claim in own}
    ps = holm([found[claim].uncorrected_p for claim in claims])
    return [Judged(claim, found[claim].among(p, ps)) for claim, p in zip(claims, ps, strict=True)]


def _judge_study(claims: list[Claim], record: SweepRecord) -> dict[Claim, Finding]:
    """What one study says of each claim about it."""
    about_exponents = {claim: match for claim in claims if (match := EXPONENT.fullmatch(claim.test))}
    others = [claim for claim in claims if claim not in about_exponents]
    comparison = compare(record, [read_hypothesis(claim.test) for claim in others])
    found: dict[Claim, Finding] = dict(zip(others, comparison.verdicts, strict=True))
    fitted = {(each.relation.name, each.case): each for each in fit(comparison)} if about_exponents else {}
    for claim, match in about_exponents.items():
        nothing = Nothing(claim.test, "no trial reported both sides often enough")
        found[claim] = fitted.get((match[1], match[2]), nothing)
    return found


def counts(judged: list[Judged]) -> dict[str, int]:
    return {outcome: sum(each.found.outcome == outcome for each in judged) for outcome in OUTCOMES}


def table(judged: list[Judged]) -> Table:
    """A row per claim: verdict, effect with interval, test; the first row has the headings."""
    rows = [["claim", "source", "published", "study", *COLUMNS]]
    for each in judged:
        told = [each.claim.claim, each.claim.source, each.claim.published or "–", each.claim.study]
        rows.append(told + each.found.row())
    return rows


def studies_table(records: dict[str, SweepRecord]) -> Table:
    """A row per study that was run: how much was trained, and how long that took."""
    rows = [["study", "cases", "seeds", "trials", "lost", "steps", "minutes", "git commit"]]
    for study, record in records.items():
        trials, info = record.trials, record.run.info if record.run else None
        took = f"{(info.end_time - info.start_time) / 60_000:.1f}" if info and info.end_time else "–"
        commit = record.run.data.tags.get("git_commit", "–")[:12] if record.run else "–"
        lost = (trials["state"] != "finished").sum()
        numbers = (trials["case"].nunique(), trials["seed"].nunique(), len(trials), lost, trials["step"].sum())
        rows.append([study, *(f"{number:,}" for number in numbers), took, commit])
    return rows


def page(judged: list[Judged], facts: dict[str, str], records: dict[str, SweepRecord]) -> str:
    """All claims as a Markdown page.

    Args:
        facts: when, on what and with which code they were judged.
        records: the studies that were run, by name.
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

## What was run

Minutes are those from a study's first trial to its last, evaluation included; what it prepared before is not in them.
Trials that were lost diverged or failed, and count in no test.

{as_markdown_table(studies_table(records))}
"""

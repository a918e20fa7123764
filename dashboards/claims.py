"""Claims about one-step generators, each judged by the small study that can speak for or against it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from dashboards.comparison import compare
from dashboards.comparison_tables import Table, as_markdown_table
from dashboards.exponents import AS_PREDICTED, PREDICTED, Exponent, fit_each
from dashboards.paired import LEVEL, corrected
from dashboards.records import SweepRecord
from dashboards.verdicts import COLUMNS, CONFIRMED, OUTCOMES, REFUTED, UNDECIDED, Verdict, among, row
from orchestration.hypotheses import read_hypothesis
from orchestration.spool import TrackingError

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


@dataclass(frozen=True)
class Judged:
    """A claim with what its study found; with nothing found, why."""

    claim: Claim
    found: Verdict | Exponent | None
    reason: str = ""

    @property
    def outcome(self) -> str:
        if isinstance(self.found, Exponent) and not self.found.outcome.startswith(UNDECIDED):
            return CONFIRMED if self.found.outcome == AS_PREDICTED else REFUTED
        return self.found.outcome if isinstance(self.found, Verdict) else UNDECIDED

    @property
    def uncorrected_p(self) -> float:
        if isinstance(self.found, Verdict):
            return self.found.uncorrected_p
        return self.found.p if self.found else math.nan

    def figures(self) -> dict[str, float]:
        """What was found, by short names; empty if nothing was."""
        if isinstance(self.found, Exponent):
            return {"exponent": self.found.mean, "p": self.found.p, "seeds": len(self.found.by_seed)}
        if self.found is None or self.found.quotient is None:
            return {}
        return {"quotient": self.found.quotient.value, "p": self.found.p, "seeds": self.found.quotient.n}

    def row(self) -> list[str]:
        """Under the COLUMNS of verdicts."""
        if isinstance(self.found, Verdict):
            return row(self.found)
        if self.found is None:
            return [self.claim.test, f"{self.outcome}: {self.reason}", *["–"] * (len(COLUMNS) - 2)]
        told = self.found.outcome if self.outcome == UNDECIDED else f"{self.outcome}: {self.found.outcome}"
        p = "–" if math.isnan(self.found.p) else f"{self.found.p:.2g}"
        return [self.claim.test, told, f"k = {self.found.interval}", p, "–", str(len(self.found.by_seed)), "–"]


def read_claims(path: Path) -> list[Claim]:
    """The claims of a YAML file, a list of mappings with the fields of `Claim`."""
    return [Claim(**values) for values in yaml.safe_load(path.read_text())]


def judge_claims(claims: list[Claim], record_of: Callable[[str], SweepRecord]) -> list[Judged]:
    """Judge all claims together, with a correction for all of them.

    Args:
        record_of: a study's sweep by the study's name; raises TrackingError if there is none.
    """
    found: dict[Claim, Judged] = {}
    for study in dict.fromkeys(claim.study for claim in claims):
        own = [claim for claim in claims if claim.study == study]
        try:
            found |= _judge_study(own, record_of(study))
        except TrackingError as error:
            found |= {claim: Judged(claim, None, str(error)) for claim in own}
    return _together([found[claim] for claim in claims])


def _judge_study(claims: list[Claim], record: SweepRecord) -> dict[Claim, Judged]:
    """Each claim about one study as if it were the only one."""
    about_exponents = {claim: match for claim in claims if (match := EXPONENT.fullmatch(claim.test))}
    others = [claim for claim in claims if claim not in about_exponents]
    comparison = compare(record, [read_hypothesis(claim.test) for claim in others])
    judged = {claim: Judged(claim, verdict) for claim, verdict in zip(others, comparison.verdicts, strict=True)}
    fitted = {(each.relation.name, each.case): each for each in fit_each(comparison)} if about_exponents else {}
    for claim, match in about_exponents.items():
        exponent = fitted.get((match[1], match[2]))
        judged[claim] = Judged(claim, exponent, "" if exponent else "no trial reported both sides often enough")
    return judged


def _together(judged: list[Judged]) -> list[Judged]:
    """The same, each p corrected for all of them."""
    ps = corrected([each.uncorrected_p for each in judged])
    return [
        replace(each, found=among(each.found, p, ps))
        if isinstance(each.found, Verdict)
        else replace(each, found=each.found and replace(each.found, p=p))
        for each, p in zip(judged, ps, strict=True)
    ]


def counts(judged: list[Judged]) -> dict[str, int]:
    return {outcome: sum(each.outcome == outcome for each in judged) for outcome in OUTCOMES}


def table(judged: list[Judged]) -> Table:
    """A row per claim: verdict, effect with interval, test; the first row has the headings."""
    rows = [["claim", "source", "published", "study", *COLUMNS]]
    for each in judged:
        told = [each.claim.claim, each.claim.source, each.claim.published or "–", each.claim.study]
        rows.append(told + each.row())
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

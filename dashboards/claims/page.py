"""The page of a ledger: its picture, and a table of all verdicts in plain words."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping

from dashboards.claims.evidence import Gathered
from dashboards.claims.judge import CONFIRMED, EQUIVALENT, REFUTED, UNDECIDED, Judged, counts
from dashboards.comparison.exponents import MARGIN, PREDICTED
from dashboards.comparison.tables import OUTLIERS_NOTE, Table, as_markdown_table
from dashboards.labels import percent, plural
from soflow.statistics import LEVEL

COLUMNS = ("claim", "verdict", "in words", "d", "smallest effect", "detectable with all seeds", "published", "source")
MEANINGS = {
    CONFIRMED: "the claim's direction is shown, at this scale",
    REFUTED: "the opposite direction is shown, at this scale",
    EQUIVALENT: "the two sides differ by less than the smallest effect",
    UNDECIDED: "neither is shown with the seeds so far",
}


def summary(judged: list[Judged]) -> str:
    """Word how many claims have each verdict."""
    return ", ".join(f"{count} {outcome}" for outcome, count in counts(judged).items())


def verdicts_table(judged: list[Judged]) -> Table:
    """Build a row per claim under COLUMNS."""
    return [list(COLUMNS), *map(_row, judged)]


def _row(one: Judged) -> list[str]:
    claim = one.claim
    text = f"{claim.claim} {claim.scale[0].upper()}{claim.scale[1:]}." if claim.scale else claim.claim
    effect = f"± {MARGIN:g}" if one.is_exponent else f"× {one.study.smallest_of(claim):g}"
    detectable = f"× {one.detectable:.3g}" if math.isfinite(one.detectable) else "–"
    size = "–" if math.isnan(one.effect_size) else f"{one.effect_size:.2g}"
    published = "; ".join(map(str, claim.published)) or "–"
    return [text, one.outcome, one.sentence, size, effect, detectable, published, claim.source]


def designs_table(judged: list[Judged], gathered: Mapping[str, Gathered]) -> Table:
    """Build a row per study: its design, what was trained, and how it ended."""
    names = (
        "experiment",
        "question",
        "looks",
        "family-wise error",
        "claims",
        "decided",
        "cases",
        "trials",
        "lost",
        "steps",
        "hours",
    )
    rows = [[*names, "git commits"]]
    for study in dict.fromkeys(one.study for one in judged):
        of_study = [one for one in judged if one.study == study]
        decided = sum(one.outcome != UNDECIDED for one in of_study)
        row = [study.experiment, study.question, ", ".join(map(str, study.looks)), percent(study.family_error, 1)]
        row += [str(len(of_study)), str(decided)]
        if got := gathered.get(study.experiment):
            row += [str(len(got.seconds)), f"{got.trials:,}", f"{got.lost:,}", f"{got.steps:,}", f"{got.hours:.1f}"]
            row.append(", ".join(got.commits) or "–")
        else:
            row += ["–"] * 6
        rows.append(row)
    return rows


def tests_table(judged: list[Judged]) -> Table:
    """Build a row per claim: experiment and test."""
    return [
        ["claim", "experiment", "test"],
        *([one.claim.claim, one.study.experiment, one.claim.test] for one in judged),
    ]


def pairing(judged: list[Judged]) -> str:
    """Word what equal seeds are worth; empty if unknown."""
    gains = [one.gain for one in judged if not math.isnan(one.gain)]
    if not gains:
        return ""
    low, middle, high = (f"{value:.2g}" for value in (min(gains), statistics.median(gains), max(gains)))
    return (
        "Two cases of one seed share data order, noise, initial weights and evaluation. That divides the variance of "
        f"their log ratio by {middle} (median of {plural(len(gains), 'claim')}, {low} to {high}): without pairing, as "
        "many times as many seeds would be needed."
    )


def page(judged: list[Judged], facts: Mapping[str, str], gathered: Mapping[str, Gathered], picture: str) -> str:
    """Format a ledger as a Markdown page.

    Args:
        facts: date, hardware and code version.
        gathered: what the studies that were run have measured, by experiment.
        picture: the picture's file, relative to the page.
    """
    powers = ", ".join(sorted({percent(one.study.power) for one in judged}))
    meanings = "\n".join(f"- **{outcome}**: {meaning}" for outcome, meaning in MEANINGS.items())
    return f"""# Claims, tested small

Written by `python experiments/claims.py`, which runs every experiment at small scale and tests the claims of
`experiments/claims.yaml`. {len(judged)} claims: {summary(judged)}.

![Every claim's ratio with its interval, colored by verdict]({picture})

{meanings}

A claim refuted or equivalent at this scale may hold at the published one. Claims that depend on it say so.

{as_markdown_table([["", ""], *([name, value] for name, value in facts.items())])}

{as_markdown_table(verdicts_table(judged))}

Ratios are geometric means over pairs of equal seeds. d is the mean of their logarithms over its standard deviation.
Intervals are repeated 95 % intervals: those of all looks together contain the true ratio with a probability of 95 %.
p is corrected for all looks and for all claims. "Detectable" is a ratio, or its inverse, that all planned seeds tell
from 1 with the study's power ({powers}), given the scatter, and at least the smallest effect. An exponent k counts as
{PREDICTED:g} within ± {MARGIN:g}.
{OUTLIERS_NOTE}.

{pairing(judged)}

## Design

Every study starts with the first number of seeds of its looks. After each look, seeds are added for the cases of claims
that are not decided. At a look, Student's test of the log ratio is made against 1, and two one-sided tests against the
smallest effect; the lower p-value makes the call. Looking several times is paid for by alpha spending, with critical
values that are exact for few seeds. If log ratios are normal, a wrong call with p ≤ a is made with a probability of at
most a.

Every study states its family-wise error rate, together at most {percent(LEVEL)}, and every claim has an equal part of
its study's, so that many small questions in one study do not silence a large one in another. If log ratios are normal,
all verdicts together are wrong with a probability of at most {percent(LEVEL)}, whatever the dependence between claims.
`python benchmarks/verdicts.py` simulates this, and what becomes of it if they are not
([evidence](evidence.md#verdicts)).

{as_markdown_table(designs_table(judged, gathered))}

Hours are those of all trials together, several of which run at a time, from the median of each case. Lost trials
diverged or failed; no test uses them.

## Tests

{as_markdown_table(tests_table(judged))}
"""

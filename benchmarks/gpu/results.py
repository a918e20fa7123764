"""Results of the checks, and the file that keeps them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from soflow.files import write_atomic

PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"


@dataclass(frozen=True)
class Figure:
    """Measured number, with the largest value that passes."""

    name: str
    value: float
    limit: float | None = None
    """None for a number that is only reported."""

    @property
    def passes(self) -> bool:
        return self.limit is None or self.value <= self.limit  # NaN does not


@dataclass(frozen=True)
class Outcome:
    """Outcome of one check."""

    check: str
    verdict: str
    """PASSED, FAILED or NOT_RUN."""
    seconds: float
    figures: list[Figure] = field(default_factory=list)
    reason: str = ""
    """Origin of the limits of a check, or one line about why it has no figures."""


@dataclass(frozen=True)
class Results:
    """Outcomes of all checks on one machine, so far."""

    machine: dict[str, str]
    """Facts by name: GPU, versions, date."""
    outcomes: list[Outcome]

    @property
    def failed(self) -> bool:
        return any(outcome.verdict == FAILED for outcome in self.outcomes)


def save(results: Results, path: Path) -> None:
    """Write the results as JSON, atomically, so that an interruption loses no finished check."""
    write_atomic(path, json.dumps(asdict(results), indent=1) + "\n")


def load(path: Path) -> Results:
    """Read the file that `save` wrote."""
    content = json.loads(path.read_text())
    return Results(content["machine"], [_outcome(values) for values in content["outcomes"]])


def earlier(path: Path, machine: dict[str, str]) -> list[Outcome]:
    """Read the outcomes of an earlier run, if it was on the same machine; the date does not count."""
    if not path.exists():
        return []
    results = load(path)
    same = all(results.machine.get(name) == value for name, value in machine.items() if name != "date")
    return results.outcomes if same else []


def merged(outcomes: list[Outcome], before: list[Outcome], order: list[str]) -> list[Outcome]:
    """Add the outcomes of an earlier run for the checks that have no new one.

    Args:
        order: names of the checks in order; others, of packages that are not installed here, follow.
    """
    by_name = {outcome.check: outcome for outcome in (*before, *outcomes)}
    return [by_name[name] for name in dict.fromkeys((*order, *by_name)) if name in by_name]


def _outcome(values: dict[str, Any]) -> Outcome:
    return Outcome(**values | {"figures": [Figure(**figure) for figure in values["figures"]]})

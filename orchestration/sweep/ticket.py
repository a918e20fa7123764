"""A trial on its way from Optuna through Ray Tune to the workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from orchestration.sweep.cases import Case
from orchestration.tracking.schema import CASE
from soflow.config import RunConfig, override, parse, to_dict
from soflow.config_base import ConfigError


@dataclass(frozen=True)
class TrialTicket:
    """A trial's number in the study and its point: values by searched path."""

    number: int
    point: dict[str, Any]

    def to_tune(self) -> dict[str, Any]:
        """Convert to a Ray Tune configuration."""
        return {"number": self.number, "point": self.point}

    @classmethod
    def from_tune(cls, config: dict[str, Any]) -> TrialTicket:
        """Convert back from a Ray Tune configuration."""
        return cls(config["number"], config["point"])


def fault_of(base: RunConfig, point: dict[str, Any], cases: tuple[Case, ...] = ()) -> str:
    """Return why a point is no valid configuration; "" if it is valid."""
    try:
        trial_config(base, point, cases)
    except ConfigError as error:
        return str(error)
    return ""


def trial_config(base: RunConfig, point: dict[str, Any], cases: tuple[Case, ...] = ()) -> RunConfig:
    """Build a trial's configuration: the base with the changes of its case, then with its point.

    Raises:
        ConfigError: if the values do not go together.
    """
    values, point = to_dict(base), dict(point)
    if CASE in point:
        name = point.pop(CASE)
        changes = next(case.changes for case in cases if case.name == name)
        if changes.get("objective.name", base.objective.name) != base.objective.name:
            values["objective"] = {}
        values = override(values, changes)
    return parse(override(values, point))

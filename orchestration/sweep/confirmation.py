"""Confirmation of a search: its best configurations and the default again, on seeds that the search has not seen.

The lowest of many FIDs is low partly by luck, so it overstates how good its configuration is. New seeds do not.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pandas as pd

from orchestration.storage import SWEEP_FILE
from orchestration.sweep.cases import Case
from orchestration.sweep.config import SweepConfig
from orchestration.sweep.resume import saved_config
from orchestration.sweep.search_space import build
from orchestration.sweep.study_storage import load_study
from soflow.config import flatten, override, parse, to_dict

SUFFIX = "-confirmed"
"""Of the name of the sweep that confirms another."""
FIRST_SEED = 1000
"""Distance of the first new seed from the search's."""
DEFAULT = "default"


def confirmation(folder: Path) -> SweepConfig | None:
    """Return the comparison that confirms a finished search; None if no trial but the default finished.

    Args:
        folder: of the search, with its trials.csv, whose first rows are the best. Trials that break a constraint are
            left out.
    """
    config = saved_config(folder)
    ranked = pd.read_csv(folder / "trials.csv")
    good = ranked["state"] == "finished"
    finished = ranked.loc[good & ranked["feasible"] if "feasible" in ranked else good, "trial"]
    trials, space = load_study(config, folder).trials, build(config)
    points = ((number, space.point(trials[number].params)) for number in finished)
    changed = ((number, changes) for number, point in points if (changes := _changes(config, point)))
    best = itertools.islice(changed, config.confirm)
    cases = [Case(name=DEFAULT), *(Case(name=f"trial {number}", changes=changes) for number, changes in best)]
    if len(cases) == 1:
        return None
    goal = config.goals[0]
    values = to_dict(config) | {
        "name": _name(folder, cases, config.confirm_seeds),
        "seed": config.seed + FIRST_SEED,
        "cases": cases,
        "case_seeds": config.confirm_seeds,
        "hypotheses": [f"{goal}({case.name}) < {goal}({DEFAULT})" for case in cases[1:]],
        "goals": [goal],
        "early_stopping": {"kind": "none"},
        **dict.fromkeys(("num_trials", "search", "known_points", "resume")),
        **{"constraints": (), "seeds_per_trial": 1, "confirm": 0, "more_seeds": ()},
    }
    return SweepConfig.model_validate(values)


def _name(folder: Path, cases: list[Case], seeds: int) -> str:
    """Return the name of the confirmation of these cases; an earlier one may have had others, or other seeds."""

    def is_ours(path: Path) -> bool:
        if not (path / SWEEP_FILE).exists():
            return True
        earlier = saved_config(path)
        return list(earlier.cases) == cases and earlier.case_seeds == seeds

    suffixes = (f"{SUFFIX}-{number}" if number > 1 else SUFFIX for number in itertools.count(1))
    return next(name for name in (f"{folder.name}{suffix}" for suffix in suffixes) if is_ours(folder.with_name(name)))


def _changes(config: SweepConfig, point: dict[str, Any]) -> dict[str, Any]:
    """Return what a point changes of the default configuration, by path."""
    base = to_dict(config.run)
    before, after = flatten(base), flatten(to_dict(parse(override(base, point))))
    return {path: value for path, value in after.items() if before.get(path) != value}

"""Confirmation of a search: its best configurations and the default again, on seeds that the search has not seen.

The lowest of many FIDs is low partly by luck, so it overstates how good its configuration is. New seeds do not.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pandas as pd

from orchestration.storage import SWEEP_FILE
from orchestration.sweep.cases import Case
from orchestration.sweep.config import SweepConfig
from orchestration.sweep.resume import saved_config
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
    cases = [Case(name=DEFAULT)]
    for number in finished:
        if (changes := _changes(config, folder, int(number))) and len(cases) <= config.confirm:
            cases.append(Case(name=f"trial {number}", changes=changes))
    if len(cases) == 1:
        return None
    goal = config.goals[0]
    values = to_dict(config) | {
        "name": _name(folder, cases),
        "seed": config.seed + FIRST_SEED,
        "cases": cases,
        "case_seeds": config.confirm_seeds,
        "hypotheses": [f"{goal}({case.name}) < {goal}({DEFAULT})" for case in cases[1:]],
        "goals": [goal],
        "early_stopping": {"kind": "none"},
        **dict.fromkeys(("num_trials", "search", "known_points", "resume")),
        **{"constraints": (), "seeds_per_trial": 1, "confirm": 0},
    }
    return SweepConfig.model_validate(values)


def _name(folder: Path, cases: list[Case]) -> str:
    """Return the name of the confirmation of these cases; more trials may have changed them since an earlier one."""
    for number in itertools.count(1):
        path = folder.with_name(f"{folder.name}{SUFFIX}{f'-{number}' if number > 1 else ''}")
        if not (path / SWEEP_FILE).exists() or list(saved_config(path).cases) == cases:
            return path.name
    raise AssertionError("itertools.count does not end")


def _changes(config: SweepConfig, folder: Path, number: int) -> dict:
    """Return what a trial changes of the default configuration, by path."""
    from orchestration.sweep.search_space import build

    trial = load_study(config, folder).trials[number]
    base = to_dict(config.run)
    changed = flatten(to_dict(parse(override(base, build(config).point(trial.params)))))
    return {path: value for path, value in changed.items() if flatten(base).get(path) != value}

"""The comparison that confirms a search: its cases, seeds and hypotheses."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from orchestration.storage import SWEEP_FILE
from orchestration.sweep import search_space
from orchestration.sweep.config import SweepConfig
from orchestration.sweep.confirmation import confirmation
from orchestration.sweep.resume import saved_config
from orchestration.sweep.study import SweepStudy
from orchestration.sweep.study_storage import load_study
from orchestration.sweep.ticket import trial_config
from soflow.config import to_dict
from soflow.config_files import to_yaml
from soflow.files import write_atomic

SEARCH = ("objective.r_end=0.001:0.05:log", "objective.guidance_strength=1:3")


def finished_search(folder: Path, states: list[str], **fields) -> tuple[SweepConfig, SweepStudy]:
    """Make the study and the ranking of a search whose trials, from the best on, ended in these states."""
    values = {"name": "s", "storage": folder, "search": SEARCH, "num_trials": len(states), "confirm": 2, "seed": 7}
    config = SweepConfig.model_validate(values | fields)
    (folder / "s").mkdir()
    (folder / "s" / SWEEP_FILE).write_text(to_yaml(config))
    study = SweepStudy(config, folder / "s", search_space.build(config))
    for number in range(len(states)):
        study.next_trial(set(range(number)))
    numbers = list(reversed(range(len(states))))
    pd.DataFrame({"trial": numbers, "state": states}).to_csv(folder / "s" / "trials.csv", index=False)
    return config, study


def test_the_best_and_the_default_are_trained_on_new_seeds(tmp_path):
    config, study = finished_search(tmp_path, ["finished"] * 4 + ["stopped"])
    confirming = confirmation(tmp_path / "s")
    assert [case.name for case in confirming.cases] == ["default", "trial 4", "trial 3"]
    assert confirming.hypotheses == ("fid(trial 4) < fid(default)", "fid(trial 3) < fid(default)")
    assert (confirming.name, confirming.num_trials) == ("s-confirmed", 9)
    assert (confirming.seed, confirming.case_seeds) == (1007, 3)
    assert (confirming.confirm, confirming.early_stopping.kind, confirming.storage) == (0, "none", tmp_path)
    for case in confirming.cases:
        found = to_dict(trial_config(confirming.run, {"case": case.name}, confirming.cases))
        number = int(case.name.removeprefix("trial ")) if case.changes else None
        point = {} if number is None else study.ticket(number).point
        assert found == to_dict(trial_config(config.run, point)) | {"seed": 1007}


def test_the_default_is_not_confirmed_against_itself(tmp_path):
    finished_search(tmp_path, ["stopped", "stopped", "finished"])  # the last one is trial 0, the base configuration
    assert confirmation(tmp_path / "s") is None


def test_a_name_must_leave_room_for_the_confirmation_s():
    assert SweepConfig(name="n" * 187, confirm=2)
    with pytest.raises(ValueError, match="must have at most 187 bytes, not 188, with confirm"):
        SweepConfig(name="n" * 188, confirm=2)


def test_cases_are_not_confirmed():
    with pytest.raises(ValueError, match="confirm = 1: must be 0 with cases, which case_seeds repeats"):
        SweepConfig.model_validate({"cases": ("a", "b"), "confirm": 1, "early_stopping": {"kind": "none"}})


def test_a_study_has_its_sweep_s_name_and_metrics_also_after_a_move(tmp_path):
    config, study = finished_search(tmp_path, ["finished"], goals=("fid", "time/train_s"))
    assert (study.study.study_name, study.study.metric_names) == ("s", ["fid", "time/train_s"])
    assert (study.reports.study_name, study.reports.metric_names) == ("s-stopping", ["fid"])
    (tmp_path / "s").rename(tmp_path / "t")
    assert load_study(config, tmp_path / "t").study_name == "s"


def test_trials_that_break_a_constraint_are_not_confirmed(tmp_path):
    finished_search(tmp_path, ["finished"] * 4)
    table = "trial,state,feasible\n3,finished,False\n2,finished,True\n1,finished,True\n0,finished,True\n"
    (tmp_path / "s" / "trials.csv").write_text(table)
    assert [case.name for case in confirmation(tmp_path / "s").cases] == ["default", "trial 2", "trial 1"]


def test_another_ranking_is_confirmed_under_another_name(tmp_path):
    finished_search(tmp_path, ["finished"] * 4)
    first = confirmation(tmp_path / "s")
    (tmp_path / first.name).mkdir()
    (tmp_path / first.name / SWEEP_FILE).write_text(to_yaml(first))
    assert confirmation(tmp_path / "s").name == "s-confirmed"  # the same is resumed
    more_seeds = saved_config(tmp_path / "s").model_copy(update={"confirm_seeds": 4})
    write_atomic(tmp_path / "s" / SWEEP_FILE, to_yaml(more_seeds))
    assert confirmation(tmp_path / "s").name == "s-confirmed-2"
    (tmp_path / "s" / "trials.csv").write_text("trial,state\n2,finished\n3,finished\n")
    assert confirmation(tmp_path / "s").name == "s-confirmed-2"

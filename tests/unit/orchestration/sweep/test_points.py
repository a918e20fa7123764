"""Points that are no valid configuration, or were tried before: drawn again, counted, and refused if too many."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from optuna.trial import TrialState

from dashboards.reading.sweep_data import read_sweep
from orchestration.sweep.checks import check_study
from orchestration.sweep.config import SweepConfig
from orchestration.sweep.points import as_many_as_points, valid_points
from orchestration.sweep.ray_search import OptunaSearcher
from orchestration.sweep.samplers import SAMPLERS
from orchestration.sweep.search_space import build
from orchestration.sweep.study import SweepStudy
from orchestration.sweep.study_storage import open_storage
from orchestration.sweep.ticket import fault_of
from soflow.config_base import ConfigError
from tests.sweep_store import SweepStore

ANNEAL = {
    "objective": {"name": "alpha_flow"},
    "search": ("objective.anneal_start=0:1", "objective.anneal_end=0:1"),
}
"""Half of its points are invalid: the start must not exceed the end."""


def new_study(folder: Path, **values) -> SweepStudy:
    config = SweepConfig.model_validate(values)
    space = build(config)
    check_study(config, folder, False, space)
    return SweepStudy(as_many_as_points(config, space), folder, space)


def run_all(study: SweepStudy, limit: int = 1000) -> list[dict]:
    """The points of all trials, each of which is completed at once."""
    started: dict[int, dict] = {}
    while (ticket := study.next_trial(set(started))) and len(started) < limit:
        started[ticket.number] = ticket.point
        study.complete(ticket.number, {"step": 1, "metrics": {"fid": 1.0 + sum(map(str(ticket.point).count, "3579"))}})
    return list(started.values())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_invalid_points_are_drawn_again_and_told_to_optuna(tmp_path, sampler):
    trials = 14 if sampler == "gp" else 25  # a fit of the Gaussian process at each takes a while
    study = new_study(tmp_path, **ANNEAL, sampler=sampler, num_trials=trials)
    points = run_all(study)
    assert len(points) == trials
    assert all(point["objective.anneal_start"] <= point["objective.anneal_end"] for point in points)
    rejected = study.rejected()
    # Each point is invalid with probability ½ until a sampler learns; the first 12 all valid: 2^-12.
    assert rejected
    for trial in rejected:
        assert "must not exceed anneal_end" in trial.user_attrs["rejected"]
        assert trial.state == TrialState.PRUNED
        assert trial.constraints == ({"rejected": 1.0} if SAMPLERS[sampler].constraints else {})
    assert [trial.number for trial in study.trials() if trial in rejected] == []


@pytest.mark.parametrize(
    "values",
    [
        {"objective": {"name": "shortcut"}, "search": ("objective.smallest_steps=4:64",)},
        {"network": {"name": "U-Net-XS"}, "search": ("network.name=DiT-XXS/4,U-Net-XS", "network.dropout=0:0.3")},
        {
            "objective": {"name": "meanflow"},
            "search": (
                "network.gradient_checkpointing=true,false",
                "objective.jvp=subset,separate,with_gradient",
                "objective.weight_power=0:1",
            ),
        },
    ],
)
def test_every_trial_has_a_valid_point(tmp_path, values):
    study = new_study(tmp_path, **values, num_trials=30)
    points = run_all(study)
    assert len(points) == study.config.num_trials
    assert not any(fault_of(study.config.run, point) for point in points)


def test_a_resumed_sweep_draws_the_points_of_an_uninterrupted_one(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = run_all(new_study(tmp_path / "a", **ANNEAL, num_trials=20))
    first = run_all(new_study(tmp_path / "b", **ANNEAL, num_trials=20), limit=7)
    open_storage.cache_clear()
    config = SweepConfig.model_validate(ANNEAL | {"num_trials": 20})
    resumed = SweepStudy(config, tmp_path / "b", build(config))
    interrupted = len(resumed.trials()) - len(first)  # the one whose ticket was not taken
    assert interrupted == 1
    assert first + run_all(resumed)[-13:] == whole


def test_a_space_with_hardly_a_valid_point_is_refused_with_the_rule(tmp_path):
    # 1.5 % of the points are valid. That 10 or more of 200 are, enough to start, has probability 0.1 %.
    search = ("objective.anneal_start=0.97:1", "objective.anneal_end=0:1")
    refusal = r"^search: [\d.]+% of 200 random points are valid, fewer than 5%; \d+ are refused by: .*must not exceed"
    with pytest.raises(ConfigError, match=refusal):
        new_study(tmp_path, **(ANNEAL | {"search": search}))


def test_an_invalid_known_point_is_refused(tmp_path):
    point = "objective.anneal_start=0.9,objective.anneal_end=0.1"
    with pytest.raises(ConfigError, match=r"^known_points = .*anneal_start = 0.9 must not exceed anneal_end = 0.1"):
        new_study(tmp_path, **ANNEAL, known_points=(point,))


def test_a_value_that_is_never_valid_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match=r"^search of objective\.label_drop: .*label_drop = 0 must be above 0"):
        new_study(tmp_path, search=("objective.guidance_strength=1:3", "objective.label_drop=0,0.1"))


def test_a_finite_space_is_tried_once(tmp_path, capsys):
    search = ("objective.interpolant=linear,trigonometric",)
    study = new_study(tmp_path, search=search, num_trials=14)
    assert "the search space has 2 valid points: 2 trials instead of 14; --seeds-per-trial" in capsys.readouterr().out
    assert [point["objective.interpolant"] for point in run_all(study)] == ["linear", "trigonometric"]
    assert OptunaSearcher(study).is_complete


def test_a_sweep_can_be_extended_into_a_finite_space(tmp_path, capsys):
    """Its earlier trials count as well, of which the first had the base's interpolant."""
    run_all(new_study(tmp_path, search=("objective.r_end=0.001:0.05",), num_trials=4))
    open_storage.cache_clear()
    config = SweepConfig.model_validate({"search": ("objective.interpolant=linear,trigonometric",), "num_trials": 20})
    space = build(config)
    trials = check_study(config, tmp_path, True, space)
    extended = SweepStudy(as_many_as_points(config, space, trials), tmp_path, space)
    assert "the search space has 2 valid points, 1 untried: 5 trials instead of 20" in capsys.readouterr().out
    assert [point["objective.interpolant"] for point in run_all(extended)] == ["trigonometric"]
    assert OptunaSearcher(extended).is_complete


def test_trials_of_a_finite_space_differ_also_where_it_is_not_exhausted(tmp_path):
    search = ("objective.interpolant=linear,trigonometric", "objective.gap_schedule=constant,linear,cosine,exponential")
    study = new_study(tmp_path, search=search, num_trials=7)
    points = [str(point) for point in run_all(study)]
    assert Counter(points).most_common(1)[0][1] == 1
    assert len(points) == 7
    assert all("has this point" in trial.user_attrs["rejected"] for trial in study.rejected())


def test_known_points_may_repeat(tmp_path):
    rate = "optimizer.learning_rate"
    points = (f"{rate}=0.003", f"{rate}=0.003", f"{rate}=0.001")
    study = new_study(tmp_path, search=(f"{rate}=0.003,0.001",), known_points=points, num_trials=5)
    assert [point[rate] for point in run_all(study)] == [0.003, 0.003, 0.001]


def test_conditional_dimensions_are_counted_once():
    config = SweepConfig(search=("objective.gap_schedule=constant,linear",))
    assert valid_points(config, build(config)) == [{"objective.gap_schedule": name} for name in ("constant", "linear")]
    config = SweepConfig(search=("objective.gap_schedule=constant,linear", "objective.r_init=0.1,0.2"))
    points = valid_points(config, build(config))
    assert points is not None
    assert len(points) == 3  # r_init has no effect with the constant schedule
    assert valid_points(SweepConfig(), build(SweepConfig())) is None


def test_a_report_counts_only_accepted_trials(tmp_path):
    store = SweepStore(tmp_path)
    parent = store.sweep("annealed", [("finished", [3.0])] * 6, **ANNEAL, sampler="random")
    data = read_sweep(store.uri, parent)
    assert len(data.trials) == 6
    assert not data.notes

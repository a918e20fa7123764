"""The study behind a sweep: what is suggested, how every trial ends, and that a restart changes nothing of it."""

from __future__ import annotations

import math
from pathlib import Path

import optuna
import pytest
from helpers import REPOSITORY
from optuna.trial import TrialState

from orchestration.storage import STUDY_FILE, SWEEP_FILE
from orchestration.sweep.checks import check_study
from orchestration.sweep.config import SweepConfig
from orchestration.sweep.pruning import StudyPruning
from orchestration.sweep.ranking import ranking
from orchestration.sweep.ray_search import OptunaSearcher
from orchestration.sweep.resume import saved_config
from orchestration.sweep.samplers import SAMPLERS
from orchestration.sweep.search_space import build
from orchestration.sweep.study import SweepStudy
from orchestration.sweep.study_storage import load_study, open_storage
from orchestration.sweep.ticket import TrialTicket
from soflow.config import to_dict
from soflow.config_base import ConfigError
from soflow.config_files import to_yaml

NUMERIC = ("objective.r_end=0.001:0.05:log", "objective.velocity_mix=0.1:1")
NUM = 12  # beyond the ten random trials, where samplers learn from results
ROSTER = [name for name in SAMPLERS if name != "random"]


def new_study(folder: Path, **values) -> SweepStudy:
    config = SweepConfig.model_validate(values)
    folder.mkdir(exist_ok=True)
    (folder / SWEEP_FILE).write_text(to_yaml(config))
    return SweepStudy(config, folder, build(config))


def reopened(study: SweepStudy) -> SweepStudy:
    """Open a study as a new process would."""
    open_storage.cache_clear()
    config = saved_config(study.folder)
    return SweepStudy(config, study.folder, build(config))


def check(config: SweepConfig, folder: Path, resuming: bool) -> None:
    check_study(config, folder, resuming, build(config))


def states_of(study: SweepStudy) -> dict[int, TrialState]:
    return {trial.number: trial.state for trial in load_study(study.config, study.folder).get_trials(deepcopy=False)}


def result(status: str, fid: float, step: int = 10, reason: str = "", **metrics: float) -> dict:
    """As Tune hands it to searchers."""
    flat = {f"metrics/{name}": value for name, value in ({"fid": fid} | metrics).items()}
    return {"fid": fid, "step": step, "status": status, "reason": reason, **flat}


def quality(point: dict) -> float:
    """Something that depends on a point and that a sampler can learn."""
    return sum(math.sin(3 * value) for value in point.values() if isinstance(value, float))


def test_each_end_has_its_state(tmp_path):
    study = new_study(tmp_path)
    search = OptunaSearcher(study)
    scheduler = StudyPruning(search)
    search.study.config = study.config.model_copy(update={"max_concurrent": 4})
    for trial in "abcd":
        search.suggest(trial)
    scheduler.must_stop(0, result("running", 3.0, 5))
    search.on_trial_complete("a", result("finished", 2.0))
    scheduler.must_stop(1, result("running", 4.0, 5))
    search.on_trial_complete("b", result("running", 4.0, 5))  # stopped by the scheduler
    search.on_trial_complete("c", result("failed", math.nan, 0, "diverged"))
    search.on_trial_complete("d", error=True)
    assert states_of(study) == {
        0: TrialState.COMPLETE,
        1: TrialState.PRUNED,
        2: TrialState.FAIL,
        3: TrialState.FAIL,
    }
    trials = study.trials()
    assert trials[0].value == 2.0
    assert trials[0].intermediate_values == {5: 3.0, 10: 2.0}
    assert trials[1].intermediate_values == {5: 4.0}
    assert trials[2].user_attrs["reason"] == "diverged"
    assert trials[3].user_attrs["reason"] == "the trial's process was lost"


def test_a_goal_without_a_finite_value_fails_the_trial(tmp_path):
    study = new_study(tmp_path, goals=["fid", "time/train_s"])
    search = OptunaSearcher(study)
    search.suggest("a")
    search.on_trial_complete("a", result("finished", math.nan, **{"time/train_s": 1.0}))
    search.suggest("b")
    search.on_trial_complete("b", result("finished", 1.0))
    assert set(states_of(study).values()) == {TrialState.FAIL}
    reasons = [trial.user_attrs["reason"].removeprefix("not reported or not finite: ") for trial in study.trials()]
    assert reasons == ["fid", "time/train_s"]


def test_known_points_come_first(tmp_path):
    first = OptunaSearcher(new_study(tmp_path / "default")).suggest("a")
    objective = SweepConfig().objective
    assert first["number"] == 0
    assert first["point"] == {
        f"objective.{name}": getattr(objective, name)
        for name in ("flow_matching_fraction", "gap_schedule", "r_init", "r_end", "guidance_strength", "velocity_mix")
    }
    paper = new_study(tmp_path / "default", max_concurrent=4).next_trial({0}).point
    assert paper["objective.flow_matching_fraction"] == 0.75
    assert paper["objective.velocity_mix"] == 0.25
    assert paper["objective.guidance_strength"] == objective.guidance_strength  # the paper's is outside the space

    given = [{"objective.r_end": 0.01}, {"objective.r_end": 0.02, "objective.gap_schedule": "cosine"}]
    study = new_study(tmp_path / "given", known_points=given)
    points = [study.next_trial(set(range(number))).point for number in range(2)]
    assert [point["objective.r_end"] for point in points] == [0.01, 0.02]
    assert points[1]["objective.gap_schedule"] == "cosine"


def test_known_points_of_an_earlier_search_space_do_not_hinder_an_extension(tmp_path):
    study = new_study(tmp_path, known_points=({"objective.r_end": 0.01},), num_trials=2)
    for number in range(2):
        study.next_trial(set(range(number)))
        study.complete(number, result("finished", 1.0))
    changes = {"num_trials": 3, "search": ("objective.velocity_mix=0:1",)}
    more = SweepConfig.model_validate(to_dict(study.config) | changes)
    check(more, tmp_path, resuming=True)
    open_storage.cache_clear()
    assert list(SweepStudy(more, tmp_path, build(more)).next_trial({0, 1}).point) == ["objective.velocity_mix"]


@pytest.mark.parametrize("known", ["objective.r_end=1", "objective.r_end=x", "objective.weight_eps=1", "r"])
def test_a_known_point_outside_the_space_is_refused(tmp_path, known):
    with pytest.raises(ConfigError, match=r"^known_points = .*(outside|must be a searched path)"):
        check(SweepConfig(known_points=(known,)), tmp_path, resuming=False)


def test_what_has_no_effect_is_not_suggested(tmp_path):
    study = new_study(tmp_path, num_trials=40, sampler="random")
    points = [study.next_trial(set(range(number))).point for number in range(40)]
    for trial, point in zip(study.trials()[2:], points[2:], strict=True):
        constant = point["objective.gap_schedule"] == "constant"
        assert ("objective.r_init" in trial.params) != constant
        if constant:
            assert point["objective.r_init"] == study.space.base["objective.r_init"]
    assert {point["objective.gap_schedule"] for point in points} >= {"constant", "cosine"}
    for search in (["objective.r_init=0.1:1"], ["objective.gap_schedule=constant,linear", "objective.r_end=0.5:0.8"]):
        config = SweepConfig.model_validate({"search": search, "objective": {"gap_schedule": "constant"}})
        with pytest.raises(ConfigError, match=r"^search of objective.r_(init: has no effect|end: .* r_init = 0.1)"):
            check(config, tmp_path / "other", resuming=False)


@pytest.mark.parametrize("sampler", ROSTER)
def test_a_resumed_sequence_is_the_undisturbed_one(tmp_path, sampler):
    """Each trial from a new process's view of the study: the same as all from one."""

    def points(name: str, restarts: bool) -> list[dict]:
        values = {"sampler": sampler, "seed": 3, "num_trials": NUM, "max_concurrent": 1}
        if sampler == "cmaes":
            values["search"] = NUMERIC
        study, found = new_study(tmp_path / name, **values), []
        for number in range(NUM):
            study = reopened(study) if restarts else study
            found.append(study.next_trial(set(range(number))).point)
            study.complete(number, result("finished", quality(found[-1])))
        assert study.next_trial(set(range(NUM))) is None
        return found

    undisturbed = points("one", restarts=False)
    assert points("again", restarts=True) == undisturbed
    assert len({str(point) for point in undisturbed}) >= NUM - 2  # evolution may repeat a parent


def test_another_seed_gives_another_sequence(tmp_path):
    one, other = (new_study(tmp_path / str(seed), seed=seed, known_points=[]).next_trial(set()) for seed in (1, 2))
    assert one != other


def test_a_resumed_sweep_starts_with_its_unfinished_trials(tmp_path):
    study = new_study(tmp_path, num_trials=4, max_concurrent=3)
    search = OptunaSearcher(study)
    first, _, third = (search.suggest(name) for name in ("a", "b", "c"))
    search.on_trial_complete("b", result("finished", 1.0))

    resumed = OptunaSearcher(reopened(study))
    assert [resumed.suggest("d"), resumed.suggest("e")] == [first, third]
    assert resumed.suggest("f")["number"] == 3
    assert resumed.is_complete
    assert resumed.suggest("one too many") is None
    for name in "def":
        resumed.on_trial_complete(name, result("finished", 2.0))
    assert resumed.suggest("beyond") is None
    assert set(states_of(study).values()) == {TrialState.COMPLETE}
    assert OptunaSearcher(reopened(study)).is_complete


def test_a_finished_trial_is_replayed_where_its_end_was_not_recorded(tmp_path):
    study = new_study(tmp_path, num_trials=3, max_concurrent=1)
    search = OptunaSearcher(study)
    first = search.suggest("a")
    search.on_trial_complete("a", result("finished", 1.0))
    resumed = OptunaSearcher(reopened(study), replay={0})
    assert resumed.suggest("b") == first
    resumed.on_trial_complete("b", result("finished", 1.0))
    assert [resumed.suggest("c")["number"], len(study.trials())] == [1, 2]
    assert states_of(study)[0] == TrialState.COMPLETE


def test_a_kill_while_suggesting_or_writing_leaves_a_study_to_go_on_with(tmp_path):
    study = new_study(tmp_path, num_trials=5)
    undisturbed = [study.next_trial(set(range(number))).point for number in range(4)]
    study = new_study(tmp_path / "killed", num_trials=5)
    for number in range(3):
        study.next_trial(set(range(number)))
    study.study.ask()  # the trial is there, its parameters are not
    journal = tmp_path / "killed" / STUDY_FILE
    with journal.open("a") as file:
        file.write('{"op_code":5,"wor')
    journal.with_name(journal.name + ".lock").symlink_to(journal)
    study = reopened(study)
    assert study.next_trial({0, 1, 2}) == TrialTicket(3, undisturbed[3])
    assert study.next_trial(set(range(4))).number == 4


def test_a_sweep_is_extended(tmp_path):
    study = new_study(tmp_path, num_trials=2)
    for number in range(2):
        study.next_trial(set(range(number)))
        study.complete(number, result("finished", 1.0))
    more = study.config.model_copy(update={"num_trials": 3, "search": ("objective.r_end=0.0005:0.03:log",)})
    check(more, tmp_path, resuming=True)
    (tmp_path / SWEEP_FILE).write_text(to_yaml(more))
    ticket = reopened(study).next_trial({0, 1})
    assert (ticket.number, list(ticket.point)) == (2, ["objective.r_end"])
    faults = {
        "num_trials = 1: the sweep has 3 trials already": {"num_trials": 1},
        "search of objective.gap_schedule: .* but not choices": {"search": ("objective.gap_schedule=constant,cosine",)},
        "search of objective.r_end: .* or :log": {"search": ("objective.r_end=0.001:0.05",)},
    }
    for message, change in faults.items():
        with pytest.raises(ConfigError, match=f"^{message}"):
            check(more.model_copy(update=change), tmp_path, resuming=True)


def test_a_study_in_a_database_has_the_sweep_s_name(tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    study = new_study(tmp_path / "mine", study_storage=url)
    study.next_trial(set())
    study.complete(0, result("finished", 1.0))
    assert optuna.load_study(study_name="mine", storage=url).best_value == 1.0
    check(study.config, tmp_path / "mine", resuming=True)
    check(study.config, tmp_path / "other", resuming=False)
    with pytest.raises(ConfigError, match=r"^name = mine: .* has a study of this name; choose another"):
        check(study.config, tmp_path / "mine", resuming=False)
    (tmp_path / "renamed" / "trials" / "0000" / "reports").mkdir(parents=True)
    (tmp_path / "renamed" / "trials" / "0000" / "reports" / "00000010.json").touch()
    with pytest.raises(ConfigError, match=r"^resume = renamed: has trials, but .*study.db has no study renamed; a swe"):
        check(study.config, tmp_path / "renamed", resuming=True)
    for bad in ("nothing", "sqlite:////nowhere/at/all.db"):
        with pytest.raises(ConfigError, match=f"^study_storage = {bad}: cannot be opened"):
            check(study.config.model_copy(update={"study_storage": bad}), tmp_path / "x", resuming=False)


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "nsga3", "gp", "random", "qmc"])
def test_several_goals_and_constraints(tmp_path, sampler):
    goals, constraints = ["fid", "memory/peak_mib"], ["time/train_s<=1.5"]
    study = new_study(tmp_path, num_trials=13, goals=goals, constraints=constraints, sampler=sampler, search=NUMERIC)
    for number in range(13):
        point = study.next_trial(set(range(number))).point
        study.report(number, 5, result("running", 1.0, 5))
        if number % 5 == 4:
            study.prune(number, result("running", 1.0, 5))
            continue
        values = {"memory/peak_mib": 1 / (1 + number), "time/train_s": float(number % 3)}
        study.complete(number, result("finished", quality(point), **values))
    trials = study.trials()
    assert trials[0].values == [quality(study.space.point(trials[0].params)), 1.0]
    assert [trial.constraints["time/train_s<=1.5"] for trial in trials[:3]] == [-1.5, -0.5, 0.5]
    assert {trial.number % 3 for trial in study.study.best_trials} <= {0, 1}
    assert study.reported(3).intermediate_values == {5: 1.0, 10: trials[3].values[0]}
    assert [trial.state for trial in study.reports.trials] == [trial.state for trial in trials]
    assert load_study(study.config, tmp_path).directions == study.study.directions
    table = ranking(trials, study.config, study.space, tmp_path).set_index("trial")
    kept = [number for number in range(13) if number % 5 < 4 and number % 3 < 2]  # finished, within the constraint
    assert sorted(table.index[table["feasible"]]) == kept
    best = {trial.number for trial in study.study.best_trials}
    assert set(table.index[table["pareto"]]) == best


def test_a_plug_in_is_a_choice_among_others(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "docs" / "examples"))
    config = SweepConfig(search=("objective.gap_schedule=constant,my_lab:square_root",), num_trials=2)
    (dimension,) = build(config).dimensions
    assert dimension.choices == ("constant", "my_lab:square_root")
    alone = SweepConfig(search=("objective.gap_schedule=my_lab:square_root",), num_trials=1)
    assert build(alone).dimensions[0].choices == ("my_lab:square_root",)

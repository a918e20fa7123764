"""Points of a checkpoint sweep: the grid, one form per point, Optuna's choices, and bad lists in one line."""

from __future__ import annotations

import pytest
from helpers import tiny_config
from optuna.trial import create_trial

from orchestration.checkpoint_sweep.config import CheckpointSweepConfig, Point
from orchestration.checkpoint_sweep.space import GUIDANCE, LENGTHS, Space, space_of
from orchestration.terminal.command_line import validate
from soflow.config_base import ConfigError
from soflow.training.build import build_objective


def config_of(tmp_path, **values) -> CheckpointSweepConfig:
    return validate(CheckpointSweepConfig, {"checkpoint": str(tmp_path)} | values)


def space(tmp_path, lengths=LENGTHS, run=None, **values) -> Space:
    run = run or tiny_config()
    return space_of(config_of(tmp_path, **values), run, build_objective(run, 10), lengths)


def test_defaults_depend_on_the_checkpoint(tmp_path):
    assert space(tmp_path).ema == ("trained", *LENGTHS)
    assert space(tmp_path).guidance == GUIDANCE
    plain = space(tmp_path, lengths=(), run=tiny_config(dataset={"conditional": False}))
    assert (plain.ema, plain.guidance, plain.sampler) == (("trained",), (1.0,), ("renoise",))
    assert len(space(tmp_path).grid()) == 6 * 4 * 3
    unlabeled = tiny_config(objective={"label_drop": 0, "guidance_strength": 1})
    assert space(tmp_path, run=unlabeled).guidance == (1.0,)


def test_a_grid_has_every_combination_once(tmp_path):
    """One step has no sampler, no guidance no interval, and equal times are those of no list."""
    values = {"ema": ["trained", 0.1], "guidance": [1, 2], "guidance_interval": ["0,1", "0.2,0.8"], "nfe": [1, 2]}
    grid = space(tmp_path, **values, sampler=["renoise", "compose"], times=["0.3"]).grid()
    assert len(grid) == len(set(grid))
    # One step is at t = 1 only, and two steps at t = 1 and 0.5 or 0.3: both intervals differ for these.
    assert len(grid) == 2 * (2 + 3 * 2 * 2)
    assert [point.ema for point in grid] == sorted((point.ema for point in grid), key=["trained", "0.1"].index)
    assert {point.sampler for point in grid if point.nfe == 1} == {"compose"}
    assert {point.times for point in grid if point.nfe == 1} == {()}


def test_the_defaults_are_always_measured(tmp_path):
    chosen = space(tmp_path, ema=[0.1], guidance=[2], nfe=[1, 2])
    assert set(chosen.defaults) <= set(chosen.grid())
    assert chosen.defaults == (Point(nfe=1, sampler="compose"), Point(nfe=2, sampler="renoise"))


def test_heun_has_no_times(tmp_path):
    grid = space(tmp_path, ema=["trained"], guidance=[1], nfe=[2], sampler=["heun", "compose"], times=["0.3"]).grid()
    found = {(point.sampler, point.times) for point in grid}
    assert found == {("renoise", ()), ("heun", ()), ("compose", ()), ("compose", (0.3,))}  # the first is the default


def quadratic(point: Point) -> dict[str, float]:
    length = 0.3 if point.ema == "trained" else float(point.ema)
    return {"fid": 1 + (length - 0.12) ** 2 * 100 + (point.guidance - 1.4) ** 2, "evaluations": point.nfe}


def searched(space: Space, count: int, goals=("fid",)) -> list[tuple[Point, dict[str, float]]]:
    done = [(point, quadratic(point)) for point in space.defaults]
    while len(done) < count:
        point = space.suggest(done, goals, len(done))
        done.append((point, quadratic(point)))
    return done


def test_optuna_finds_the_best_between_the_numbers(tmp_path):
    """Within 40 points of a smooth bowl, closer than the corners of the lists and than the defaults."""
    chosen = space(tmp_path, ema=["trained", 0.05, 0.25], guidance=[1, 2], nfe=[1])
    done = searched(chosen, 40)
    best, metrics = min(done, key=lambda pair: pair[1]["fid"])
    assert metrics["fid"] < 1.1
    assert best.ema not in ("trained", "0.05", "0.25")
    lengths = [float(point.ema) for point, _ in done if point.ema != "trained"]
    assert all(0.05 <= length <= 0.25 for length in lengths)
    assert all(1 <= point.guidance <= 2 for point, _ in done)
    assert searched(chosen, 40) == done  # an interrupted search continues as it would have


def test_several_goals_are_searched_at_once(tmp_path):
    chosen = space(tmp_path, guidance=[1, 2], nfe=[1, 2, 4])
    done = searched(chosen, 25, ("fid", "evaluations"))[3:]
    assert len({point.nfe for point, _ in done}) == 3  # each is missed by 22 draws with a probability of (2/3)^22


def test_points_outside_the_space_do_not_count(tmp_path):
    chosen = space(tmp_path, ema=["trained"], guidance=[1, 1.5], nfe=[1])
    outside = [(Point(guidance=3.0), {"fid": 0.0}), (Point(ema="0.1"), {"fid": 0.0})]
    assert 1 <= chosen.suggest([*outside, *searched(chosen, 3)], ("fid",), 3).guidance <= 1.5


BAD = [
    ({"ema": ["long"]}, "ema.0 = long: must be trained, a relative length such as 0.1, or a decay"),
    ({"ema": ["0.5"]}, "ema.0 = 0.5: must be above 0 and at most 0.2887"),
    ({"ema": []}, "ema: must list at least one value"),
    ({"guidance": [-1]}, "guidance.0 = -1: .*greater than or equal to 0"),
    ({"guidance_interval": ["0.9,0.1"]}, "guidance_interval = 0.9,0.1: must list the least t first"),
    ({"guidance_interval": ["0.1 0.9"]}, "guidance_interval.0 = 0.1 0.9: must be numbers separated by commas"),
    ({"guidance_interval": ["0.1"]}, "guidance_interval.0 = 0.1: must be two numbers, LOW,HIGH"),
    ({"nfe": [0]}, "nfe.0 = 0: "),
    ({"times": ["0.3,0.5"], "nfe": [3]}, "times = 0.3,0.5: must decrease"),
    ({"times": ["0.3"], "nfe": [1, 4]}, r"times: of 2 steps, but nfe = \[1, 4\] does not list 2"),
    ({"sampler": ["heun"], "nfe": [1, 3]}, r"nfe = \[1, 3\]: must be even or 1 with sampler = heun"),
    ({"sampler": ["euler"]}, "sampler.0 = euler: must be 'renoise', 'compose' or 'heun'"),
    ({"goals": ["is"]}, "goals.0 = is: must be "),
    ({"resources": {"num_workers": 2}}, "resources.num_workers = 2: must be 1"),
    ({"checkpoint": "nowhere"}, "checkpoint = nowhere: there is no such file or folder"),
]


@pytest.mark.parametrize(("values", "message"), BAD, ids=[message[:30] for _, message in BAD])
def test_bad_values_are_one_line(tmp_path, values, message):
    with pytest.raises(ConfigError, match=message) as caught:
        config_of(tmp_path, **values)
    assert "\n" not in str(caught.value)


def test_an_interval_without_any_step_is_no_guidance(tmp_path):
    grid = space(tmp_path, ema=["trained"], guidance=[1, 2], guidance_interval=["0.2,0.8"], nfe=[1, 2]).grid()
    assert [(point.nfe, point.guidance) for point in grid] == [(1, 1.0), (2, 1.0), (2, 2.0)]


def test_points_without_guidance_count_whatever_the_intervals(tmp_path):
    chosen = space(tmp_path, guidance=[1, 2], guidance_interval=["0.2,0.8"], nfe=[2])
    distributions = chosen._distributions()
    params = chosen._params(chosen.defaults[0], distributions)
    create_trial(params=params, distributions=distributions, value=1.0)  # raises for a point outside the space

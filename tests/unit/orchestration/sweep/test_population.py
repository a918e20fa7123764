"""Population-based training: who goes on from whom, at which point, and that it goes on with the other's weights."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import CPU, tiny_config

from orchestration.config import SweepConfig
from orchestration.sweep import search_space
from orchestration.sweep.population import FACTORS, REDRAWN, check_population, decide, is_exchange
from orchestration.workers.follow import FollowedRun
from soflow.config import override, parse, to_dict
from soflow.config_base import ConfigError
from soflow.config_files import read_yaml
from soflow.data import open_source
from soflow.training import checkpoints
from soflow.training.trainer import Trainer
from tests.unit.soflow.training.test_run_recovery import OneWorker, numbers

W, M, MIX = "objective.guidance_strength", "objective.velocity_mix", "objective.flow_matching_fraction"
SEARCH = (f"{W}=1:3", f"{M}=0.1:1", f"{MIX}=0.1:0.9")


def population(**values) -> SweepConfig:
    return SweepConfig.model_validate({"early_stopping": {"kind": "pbt"}, "search": SEARCH} | values)


def points(number_of_trials: int) -> dict[int, dict[str, float]]:
    return {number: {W: 1.5 + 0.1 * number, M: 0.4, MIX: 0.05 * number} for number in range(number_of_trials)}


def test_the_worst_quarter_goes_on_from_the_best():
    config = population(num_trials=9)
    space, values = search_space.build(config), {number: float((number * 5) % 9) for number in range(9)}
    found = decide(config, space, 400, values, points(9))
    assert set(found) == {5, 7}  # of values 7 and 8
    assert {exchange.donor for exchange in found.values()} <= {0, 2}  # of values 0 and 1
    assert all(exchange.step == 400 for exchange in found.values())
    assert found == decide(config, space, 400, values, points(9))
    lost = decide(config, space, 400, values | {0: math.inf}, points(9))
    assert set(lost) == {0, 7}
    assert set(decide(config, space, 400, {3: 1.0, 4: 2.0}, points(9))) == {4}
    assert decide(config, space, 400, {3: 1.0}, points(9)) == {}


def test_guidance_is_multiplied_or_drawn_anew_and_all_else_is_the_donors():
    config = population(num_trials=2)
    space, draws, redrawn = search_space.build(config), 0, 0
    for step in range(1, 1501):
        (exchange,) = decide(config, space, step, {0: 1.0, 1: 2.0}, points(2)).values()
        assert exchange.point[MIX] == points(2)[0][MIX]
        for path, low, high in ((W, 1, 3), (M, 0.1, 1)):
            value, before = exchange.point[path], points(2)[0][path]
            assert low <= value <= high
            draws += 1
            redrawn += all(value != pytest.approx(before * factor, rel=1e-12) for factor in FACTORS)
    # Five standard deviations of the binomial distribution: 0.25 ± 0.04.
    assert redrawn / draws == pytest.approx(REDRAWN, abs=5 * math.sqrt(REDRAWN * (1 - REDRAWN) / draws))


def test_trials_wait_at_multiples_of_the_grace_period_but_not_at_the_end():
    training = {"total_steps": 800, "report_every": 100}
    config = population(training=training, early_stopping={"kind": "pbt", "grace_reports": 2})
    assert [step for step in range(0, 801, 100) if is_exchange(config, step)] == [200, 400, 600]
    others = population(training=training, early_stopping={"kind": "asha", "grace_reports": 2})
    assert not any(is_exchange(others, step) for step in range(801))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"search": (f"{MIX}=0.1:0.9",)}, "none of which is searched as a range"),
        ({"num_trials": 1}, "num_trials = 1: pbt needs two trials or more"),
        ({"seeds_per_trial": 2}, "seeds_per_trial = 2: must be 1 with pbt"),
        ({"early_stopping": {"kind": "pbt", "compare": "equal_progress"}}, "must be equal_steps with pbt"),
    ],
)
def test_what_cannot_be_a_population_is_refused(values, message):
    config = population(**values)
    with pytest.raises(ConfigError, match=message):
        check_population(config, search_space.build(config))


def test_a_trial_goes_on_with_the_others_weights_at_its_own_point(tmp_path):
    group = OneWorker(tmp_path / "cache")
    training = {"total_steps": 8, "report_every": 2}
    configs = [tiny_config(training=training, objective={"guidance_strength": w}) for w in (1.5, 2.5)]
    runs = [FollowedRun(config, tmp_path / str(number), 1) for number, config in enumerate(configs)]
    for run in runs:
        (run.next_report(group), run.next_report(group))
    donor, recipient = (run.folder for run in runs)
    third = parse(override(to_dict(configs[0]), {W: 1.8}))
    checkpoints.take_over(donor, recipient, 4)
    (first,) = [FollowedRun(third, recipient, 1, step=4, taken_over=4).next_report(group)]

    trainer = Trainer(third, open_source(third.dataset), CPU)
    trainer.load_state_dict(checkpoints.load(checkpoints.path_of(donor, 4)))
    trainer.advance(2)
    state = checkpoints.load(checkpoints.path_of(recipient, 6))
    for name, parameter in trainer.network.state_dict().items():
        assert torch.equal(state["network"][name], parameter), name
    assert parse(read_yaml(recipient / "config.yaml")) == third
    assert parse(state["config"]) == third
    assert sorted(path.name for path in (recipient / "reports").glob("*")) == [
        f"step-{step:08d}.json" for step in (2, 4, 6)
    ]

    # Lost with its process, the report is read; going back behind it is possible as long as the files are there.
    asked = len(group.requests)
    again = FollowedRun(third, recipient, 1, step=4, taken_over=4)
    assert numbers(again.next_report(group).metrics) == numbers(first.metrics)
    assert len(group.requests) == asked
    checkpoints.path_of(recipient, 6).unlink()
    group.worker = type(group.worker)(str(group.worker.cache), CPU, 0, 1)
    assert again.next_report(group).step == 8
    # The donor's own file is its own still.
    assert parse(checkpoints.load(checkpoints.path_of(donor, 4))["config"]) == configs[0]

"""Distillation: its targets by hand and on Gaussian data, and which checkpoints may teach which run."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from helpers import (
    CPU,
    NUM_CLASSES,
    SmoothNetwork,
    count_calls,
    given_draws,
    gradients,
    objective_config,
    random_batch,
    relative_error,
    slope,
    tiny_config,
)
from torch import Tensor, nn

from soflow.config import RunConfig, parse, to_dict
from soflow.config_base import ConfigError
from soflow.data import open_source
from soflow.guidance import decay
from soflow.interpolants import INTERPOLANTS, Interpolant, per_sample
from soflow.objectives.base import Draws
from soflow.objectives.distillation import Distillation, Teacher
from soflow.objectives.flow_matching import FlowMatching
from soflow.objectives.soflow import SoFlow
from soflow.parameterizations import PARAMETERIZATIONS
from soflow.training import checkpoints
from soflow.training.build import build_objective
from soflow.training.teacher import attach_teacher, load_teacher
from soflow.training.trained import load_sampler
from soflow.training.trainer import Trainer
from tests.unit.soflow.test_exact_solution import LABELS, NULL, SHAPE, ExactNetwork, S, T, check, coefficients

PAIRS = list(itertools.product(INTERPOLANTS, PARAMETERIZATIONS))


def teaching(network: nn.Module, **fields) -> Teacher:
    """A flow-matching teacher that need not be read from a file."""
    return Teacher(FlowMatching(objective_config("flow_matching", **fields), NUM_CLASSES, True), network)


def distillation(teacher: Teacher, conditional: bool = True, **fields) -> Distillation:
    objective = Distillation(objective_config("distillation", **fields), NUM_CLASSES, conditional)
    objective.teacher = teacher
    return objective


def batch() -> tuple[Tensor, Tensor, Draws]:
    """Data, labels and draws of eight samples, four in each part, with dropped labels in both."""
    data, labels = random_batch((8, 1, 2, 2))
    noise = torch.randn(data.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    t = torch.tensor([0.95, 0.3, 0.81, 0.6, 0.9, 0.5, 0.83, 0.7], dtype=torch.float64)
    l = t - torch.tensor([0, 0, 0, 0, 0.3, 0.001, 0.01, 0.1], dtype=torch.float64)
    s = l * torch.tensor([1, 1, 1, 1, 0.2, 0.9, 0.0, 1.0], dtype=torch.float64)
    drop = torch.tensor([0, 1, 0, 1, 0, 1, 0, 0]).bool()
    return data, labels, given_draws(noise, t, l, s, drop, num_flow_matching=4)


# Targets.


class Constant(nn.Module):
    """F = label / 4 − 1 everywhere, 1.5 for the null label."""

    def forward(self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor) -> Tensor:
        return per_sample(labels.to(x.dtype) / 4 - 1, x).expand_as(x)


TARGETS = [
    # settings, the teacher's share of the target for label y at time t with the decay c(t)
    ({}, lambda y, c: y / 4 - 1),
    ({"guidance_strength": 3.0, "guidance_decay_time": 1.0}, lambda y, c: 3 * (y / 4 - 1) - 2 * 1.5),
    ({"guidance_strength": 3.0}, lambda y, c: (y / 4 - 1) + 2 * c * (y / 4 - 2.5)),
    ({"guidance_strength": 3.0, "velocity_mix": 0.25}, lambda y, c: 0.25 * ((y / 4 - 1) + 2 * c * (y / 4 - 2.5))),
    ({"velocity_mix": 0.25}, lambda y, c: y / 4 - 1),  # without guidance there is nothing to mix, as in SoFlow
]


@pytest.mark.parametrize(("settings", "share"), TARGETS, ids=[str(settings) for settings, _ in TARGETS])
def test_targets_of_a_constant_teacher(settings, share):
    data, _, draws = batch()
    labels, student = torch.arange(8), SmoothNetwork()
    objective = distillation(teaching(Constant()), **settings)
    target = objective.target_velocity(student, data, draws.noise, data, labels, draws)
    expected = per_sample(share(labels.double(), decay(draws.t, 0.8)), data).expand_as(data)
    if settings.keys() >= {"guidance_strength", "velocity_mix"}:
        expected = expected + 0.75 * student(data, draws.t, draws.t, labels)
    expected = torch.where(per_sample(draws.drop, data), 1.5, expected)
    torch.testing.assert_close(target, expected.detach(), rtol=1e-14, atol=1e-14)
    assert not target.requires_grad
    found = objective.targets(student, data, draws.noise, labels, draws)
    assert torch.equal(found["v_mix"], target)
    alone = settings | {"velocity_mix": 1.0}
    unmixed = distillation(teaching(Constant()), **alone)
    expected = unmixed.target_velocity(student, data, draws.noise, data, labels, draws)
    assert torch.equal(found["v_g"], expected)


def test_without_labels_the_target_is_the_velocity_under_the_null_label():
    data, _, draws = batch()
    objective = distillation(teaching(Constant()), conditional=False, guidance_strength=3.0)
    target = objective.target_velocity(SmoothNetwork(), data, draws.noise, data, torch.full((8,), NUM_CLASSES), draws)
    assert (target == 1.5).all()


def pair(interpolant: Interpolant, x_t: Tensor, v: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Data and noise that meet in x_t with the conditional velocity v."""
    alpha, beta, d_alpha, d_beta = (per_sample(value, x_t) for value in coefficients(interpolant, t))
    determinant = alpha * d_beta - d_alpha * beta
    return (d_beta * x_t - beta * v) / determinant, (alpha * v - d_alpha * x_t) / determinant


@pytest.mark.parametrize(("interpolant", "parameterization"), PAIRS)
def test_it_is_soflow_on_pairs_whose_conditional_velocity_is_the_teacher_s(interpolant, parameterization):
    fields = {"interpolant": interpolant, "parameterization": parameterization}
    network, taught = SmoothNetwork(), SmoothNetwork(width=8)
    teacher = teaching(taught, interpolant=interpolant, parameterization="trigonometric")
    objective = distillation(teacher, **fields)
    data, labels, draws = batch()
    losses = objective.losses(network, data, labels, draws)

    x_t = objective.interpolant.x_t(data, draws.noise, draws.t)
    v = torch.pi / 2 * taught(x_t, draws.t, draws.t, objective.drop_labels(labels, draws.drop)).detach()
    x_0, x_1 = pair(objective.interpolant, x_t, v, draws.t)
    soflow = SoFlow(objective_config("soflow", guidance_strength=1.0, **fields), NUM_CLASSES, conditional=True)
    same = given_draws(x_1, draws.t, draws.l, draws.s, draws.drop, num_flow_matching=4)
    expected = soflow.losses(network, x_0, labels, same)
    # The pair is off by rounding 1e-16, which the quotient amplifies by up to (t − s)/(t − l) = 83 at most.
    torch.testing.assert_close(losses.loss, expected.loss, rtol=1e-11, atol=1e-13)
    for name, values in expected.terms.items():
        torch.testing.assert_close(losses.terms[name], values, rtol=1e-11, atol=0)
    wanted = gradients(network, expected.loss.sum())
    for name, gradient in gradients(network, losses.loss.sum()).items():
        assert relative_error(gradient, wanted[name]) < 1e-11, name


@pytest.mark.parametrize(
    ("settings", "student", "teacher"),
    [
        ({}, [8, 4], [8]),
        ({"guidance_strength": 2.0}, [8, 4], [16]),
        ({"guidance_strength": 2.0, "velocity_mix": 0.5}, [8, 8, 4], [16]),
    ],
)
def test_what_it_costs(settings, student, teacher):
    network, taught = SmoothNetwork(), SmoothNetwork()
    objective = distillation(teaching(taught), **settings)
    calls = count_calls(network), count_calls(taught)
    objective.losses(network, *batch())
    assert calls == (student, teacher)


@pytest.mark.parametrize("name", ["soflow", "meanflow", "flow_matching"])
def test_any_objective_s_velocity_can_teach(name):
    data, labels, draws = batch()
    taught = SmoothNetwork()
    teacher = Teacher(build_objective(tiny_config(name), NUM_CLASSES), taught)
    target = distillation(teacher).target_velocity(SmoothNetwork(), data, data, data, labels, draws)
    given = labels.masked_fill(draws.drop, NUM_CLASSES)
    assert torch.equal(target, taught(data, draws.t, draws.t, given).detach())


# Gaussian data, whose marginal velocity and solution are known.


def exact_teacher(interpolant: str) -> Teacher:
    parameterization = PARAMETERIZATIONS["euler"]
    return teaching(ExactNetwork(INTERPOLANTS[interpolant], parameterization), interpolant=interpolant)


@pytest.mark.parametrize(("interpolant", "parameterization"), PAIRS)
def test_errors_of_the_exact_solution_vanish_for_any_data_and_noise(interpolant, parameterization):
    fields = {"interpolant": interpolant, "parameterization": parameterization}
    objective = distillation(exact_teacher(interpolant), conditional=False, **fields)
    network = ExactNetwork(objective.interpolant, objective.parameterization)
    data, noise = torch.randn(2, 6, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gaps, errors = [0.04, 0.02, 0.01, 0.005, 0.0025, 1e-4], []
    for gap in gaps:
        losses = objective.losses(network, data, LABELS, given_draws(noise, T, T - gap, S))
        errors.append(losses.terms["consistency"].mean().sqrt().item())
    # One Euler step of length gap along a curved trajectory: the error over the gap is first order in it.
    assert slope(gaps, errors) == pytest.approx(1, abs=0.05)
    assert errors[-1] < 1e-3
    losses = objective.losses(network, data, LABELS, given_draws(noise, T, T, T, num_flow_matching=6))
    assert losses.terms["flow_matching"].max().sqrt() < 1e-13  # rounding of numbers up to 3
    # Without the teacher the scatter of v_t is left over, whatever the gap.
    soflow = SoFlow(objective_config("soflow", **fields), NULL, conditional=False)
    losses = soflow.losses(network, data, LABELS, given_draws(noise, T, T - 1e-4, S))
    assert losses.terms["consistency"].mean().sqrt() > 0.1


@pytest.mark.soak
def test_it_learns_the_teacher_s_solution():
    wide = {"time_mean": (0.0, -1.0, 1.0), "time_std": (1.5, 1.5, 1.5)}
    gap = {"r_init": 0.5, "r_end": 0.01}
    settings = {"flow_matching_fraction": 0.5, "weight_power": 0.5} | wide | gap
    check(distillation(exact_teacher("linear"), conditional=False, **settings))


# The teacher's checkpoint.


@pytest.fixture(scope="module")
def digits():
    return open_source(tiny_config().dataset)


def trained(digits, folder: Path, name: str = "flow_matching", /, steps: int = 3, **sections) -> Path:
    """The folder of a run after a few steps."""
    config = tiny_config(name, **sections)
    trainer = Trainer(config, digits, CPU)
    trainer.advance(steps)
    folder.mkdir(exist_ok=True)
    checkpoints.save(
        trainer.state_dict() | {"config": to_dict(config), "num_classes": digits.num_classes}, folder, steps
    )
    return folder


def student(teacher: Path | None, **sections) -> RunConfig:
    return tiny_config("distillation", objective={"teacher": teacher}, **sections)


DIGITS = (1, 8, 8)


def test_the_teacher_is_the_averaged_network_of_the_newest_checkpoint(digits, tmp_path):
    folder = trained(digits, tmp_path)
    older = (folder / "checkpoint-00000003.pt").read_bytes()
    trained(digits, tmp_path, steps=5)
    (folder / "checkpoint-00000003.pt").write_bytes(older)
    state = checkpoints.load(checkpoints.path_of(folder, 5))
    before = torch.get_rng_state()
    for path in (folder, checkpoints.path_of(folder, 5)):
        teacher = load_teacher(student(path), NUM_CLASSES)
        assert not teacher.network.training
        assert not any(parameter.requires_grad for parameter in teacher.network.parameters())
        found = teacher.network.state_dict()
        assert all(torch.equal(found[name], value) for name, value in state["ema"].items())
        assert not all(torch.equal(found[name], value) for name, value in state["network"].items())
    assert torch.equal(torch.get_rng_state(), before)  # a resumed run reads it at another time


def test_the_teacher_is_no_part_of_the_student(digits, tmp_path):
    folder = trained(digits, tmp_path / "teacher")
    config = tiny_config("distillation", objective={"teacher": folder})
    trainer = Trainer(config, digits, CPU)
    names = set(trainer.module.state_dict())
    trainer.advance(2)
    assert set(trainer.module.state_dict()) == names
    assert trainer.state_dict().keys() == Trainer(tiny_config(), digits, CPU).state_dict().keys()

    taught = trainer.objective.teacher.network.state_dict()
    state = checkpoints.load(checkpoints.path_of(folder, 3))
    assert all(torch.equal(taught[name], value) for name, value in state["ema"].items())

    path = checkpoints.save(trainer.state_dict() | {"config": to_dict(config), "num_classes": 10}, tmp_path, 2)
    checkpoints.path_of(folder, 3).unlink()
    loaded, objective, network = load_sampler(path, CPU)
    assert loaded == config
    one = torch.ones(4)
    images = objective.solution(network, torch.randn(4, *DIGITS), one, 0 * one, torch.arange(4))
    assert images.isfinite().all()


NO_NULL_LABEL = {"label_drop": 0, "guidance_strength": 1}
UNFIT = [
    # the teacher's run, the student's data, the message
    ({"objective": {"interpolant": "trigonometric"}}, {}, "its interpolant is trigonometric .* linear"),
    (
        {},
        {"dataset": {"name": "fashion_mnist"}},
        r"its shape of samples is \(1, 8, 8\) and must be this run's, \(1, 28, 28\)",
    ),
    ({"dataset": {"conditional": False}}, {}, "was trained without labels .*conditional = false"),
    *(
        ({"objective": NO_NULL_LABEL}, ours, "its null label is untrained; .*objective.label_drop = 0")
        for ours in ({}, {"dataset": {"conditional": False}})
    ),
    (
        {},
        {"dataset": {"augmentation": 0.1}, "network": {"name": "U-Net-XS"}},
        "was trained on plain images .*dataset.augmentation = 0",
    ),
]


@pytest.mark.parametrize(("theirs", "ours", "message"), UNFIT)
def test_a_run_of_another_kind_cannot_teach(theirs, ours, message, digits, tmp_path):
    folder = trained(digits, tmp_path, steps=1, **theirs)
    with pytest.raises(ConfigError, match=message) as caught:
        load_teacher(student(folder, **ours), NUM_CLASSES)
    assert str(caught.value).startswith(f"objective.teacher = {checkpoints.path_of(folder, 1)}: ")
    assert "\n" not in str(caught.value)


def test_a_student_that_drops_no_label_can_learn_from_a_teacher_without_null_label(digits, tmp_path):
    folder = trained(digits, tmp_path, steps=1, objective=NO_NULL_LABEL)
    config = tiny_config("distillation", objective={"teacher": folder} | NO_NULL_LABEL)
    assert Trainer(config, digits, CPU).advance(2)["loss/consistency"] > 0


def test_a_teacher_of_other_classes_is_refused_before_the_first_step(digits, tmp_path):
    folder = trained(digits, tmp_path, steps=1)
    config = tiny_config("distillation", objective={"teacher": folder})
    with pytest.raises(ConfigError, match="its number of classes is 10 and must be this run's, 100"):
        attach_teacher(build_objective(config, 100), config, CPU)


@pytest.mark.parametrize("conditional", [False, True])
def test_a_run_without_labels_can_learn_from_either_kind(conditional, digits, tmp_path):
    folder = trained(digits, tmp_path, dataset={"conditional": conditional})
    config = tiny_config("distillation", objective={"teacher": folder}, dataset={"conditional": False})
    assert Trainer(config, digits, CPU).advance(2)["loss/consistency"] > 0


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (None, "objective.teacher = None: must be a trained run to distill, its folder or one of its checkpoint-"),
        ("nowhere.pt", "objective.teacher = {folder}/nowhere.pt: no such checkpoint"),
        ("nowhere", "objective.teacher = {folder}/nowhere: no such checkpoint"),
        ("empty", "objective.teacher = {folder}/empty: contains no checkpoint-*.pt"),
        ("damaged.pt", "objective.teacher = {folder}/damaged.pt: is damaged or not a checkpoint"),
        ("other.pt", "objective.teacher = {folder}/other.pt: is no checkpoint of a run, it contains no 'config'"),
    ],
)
def test_a_missing_teacher_is_one_line(path, message, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged.pt").write_bytes(b"no archive")
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(ConfigError) as caught:
        load_teacher(student(path and tmp_path / path), NUM_CLASSES)
    assert str(caught.value).startswith(message.format(folder=tmp_path))
    assert "\n" not in str(caught.value)


def test_a_relative_teacher_is_recorded_as_an_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tiny_config("distillation", objective={"teacher": "runs/one"})
    assert config.objective.teacher == tmp_path / "runs/one"
    monkeypatch.chdir("/")
    assert parse(to_dict(config)) == config

"""ESC: plug-in velocity, gradual times and batches of few classes; without all of them it is MeanFlow."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import numpy as np
import pytest
import torch
from helpers import (
    CPU,
    NUM_CLASSES,
    SmoothNetwork,
    draw,
    given_draws,
    gradients,
    objective_config,
    random_batch,
    relative_error,
    tiny_config,
)
from torch import Tensor

from soflow.conditioning import join
from soflow.data import open_source
from soflow.data.loading import ClassOrder, EpochOrder
from soflow.objectives.base import Draws
from soflow.objectives.esc import ESC
from soflow.objectives.meanflow import MeanFlow
from soflow.schedules import zero_probability
from soflow.training.trainer import Trainer

GUIDED = {"guidance_omega": 0.8, "guidance_kappa": 0.5, "guidance_interval": (0.2, 0.9)}


def esc(conditional: bool = True, **fields) -> ESC:
    return ESC(objective_config("esc", **fields), NUM_CLASSES, conditional)


# Gradual times.


@pytest.mark.parametrize(
    ("progress", "end", "expected"),
    [(0, 0.1, 1), (0.05, 0.1, 2 / 3), (0.1 * math.sqrt(0.5), 0.1, 0.5), (0.1, 0.1, 0), (1, 0.1, 0), (0, 0, 0)],
)
def test_probability_of_the_longest_interval_falls_as_the_arc_cosine(progress, end, expected):
    assert zero_probability(progress, end) == pytest.approx(expected, abs=1e-12)


def test_draws_are_meanflows_but_for_longer_intervals_and_a_mask():
    objective = esc(anneal_end=0.1, marginal_fraction=0.25)
    mean_flow = MeanFlow(objective_config("meanflow"), NUM_CLASSES, True)
    shape, batch = (4096, 1, 1, 1), 4096
    for progress, probability in ((0.0, 1.0), (0.05, 2 / 3), (0.2, 0.0)):
        expected = draw(mean_flow, shape, progress, torch.Generator().manual_seed(3))
        draws = draw(objective, shape, progress, torch.Generator().manual_seed(3))
        for name in ("noise", "t", "l", "drop", "guided", "weight"):
            assert torch.equal(getattr(draws, name), getattr(expected, name)), name
        n = expected.num_flow_matching
        assert torch.equal(draws.s[:n], draws.t[:n])
        changed = draws.s[n:] != expected.s[n:]
        assert torch.equal(draws.s[n:], expected.s[n:].masked_fill(changed, 0.0))
        # Binomial frequencies: five standard deviations.
        for frequency, p, count in ((changed, probability, batch - n), (draws.marginal, 0.25, batch)):
            assert abs(frequency.double().mean().item() - p) <= 5 * math.sqrt(p * (1 - p) / count)


# The plug-in velocity.


def plug_in_velocity(x_t: Tensor, t: Tensor, images: Tensor) -> Tensor:
    """Σ_j w_j (ε_j − x_j), w_j ∝ N(x_t; (1 − t) x_j, t²), of one sample, one image after another."""
    densities, velocities = [], []
    for x in images:
        noise = (x_t - (1 - t) * x) / t
        densities.append(torch.exp(-noise.square().sum() / 2))
        velocities.append(noise - x)
    total = sum(densities)
    return sum(density / total * velocity for density, velocity in zip(densities, velocities, strict=True))


def a_batch(marginal: list[int]) -> tuple[Tensor, Tensor, Draws]:
    """Eight samples, of classes 3 and 7 in turn, at times where several images are likely; the last two dropped."""
    data, _ = random_batch((8, 1, 2, 2))
    t = torch.tensor([0.95, 0.3, 0.81, 0.6, 0.95, 0.5, 0.83, 0.7], dtype=torch.float64)
    s = torch.where(torch.arange(8) < 3, t, t / 2)
    noise = torch.randn(8, 1, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    drop = torch.arange(8) >= 6
    labels, mask = torch.tensor([3, 7] * 4), torch.tensor(marginal).bool()
    draws = dataclasses.replace(given_draws(noise, t, t, s, drop, 3), marginal=mask, batch=(data, labels))
    return data, labels, draws


def expected_velocity(data: Tensor, labels: Tensor, draws: Draws, images: Tensor, classes: Tensor) -> Tensor:
    rows = []
    for i, t in enumerate(draws.t):
        x_t = (1 - t) * data[i] + t * draws.noise[i]
        possible = images if draws.drop[i] else images[classes == labels[i]]
        rows.append(plug_in_velocity(x_t, t, possible) if draws.marginal[i] else draws.noise[i] - data[i])
    return torch.stack(rows)


def test_plug_in_velocity_is_the_mean_over_the_images_of_the_class():
    data, labels, draws = a_batch([1, 1, 0, 1, 0, 1, 1, 1])
    found = esc().conditional_velocity(data, labels, draws)
    expected = expected_velocity(data, labels, draws, data, labels)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    changed = (found - (draws.noise - data)).flatten(1).abs().amax(1) > 0.01
    assert changed.tolist() == draws.marginal.tolist()  # at these times one image never has all the weight


def test_plug_in_velocity_covers_the_whole_batch_from_every_share():
    data, labels, draws = a_batch([1] * 8)
    expected = esc().conditional_velocity(data, labels, draws)
    for rank in range(3):
        rows = slice(rank, None, 3)
        found = esc().conditional_velocity(data[rows], labels[rows], draws.share(rank, 3))
        torch.testing.assert_close(found, expected[rows], rtol=1e-13, atol=1e-13)


def test_without_labels_all_images_count():
    data, labels, draws = a_batch([1] * 8)
    null = torch.full_like(labels, NUM_CLASSES)
    draws = dataclasses.replace(draws, batch=(data, null))
    found = esc(conditional=False).conditional_velocity(data, null, draws)
    everywhere = dataclasses.replace(draws, drop=torch.ones(8, dtype=torch.bool))
    torch.testing.assert_close(found, expected_velocity(data, labels, everywhere, data, labels), rtol=1e-12, atol=1e-12)


def test_images_augmented_in_another_way_do_not_count():
    data, labels, draws = a_batch([1] * 8)
    mirrored = torch.tensor([0.0, 0, 0, 0, 1, 1, 1, 1], dtype=torch.float64)[:, None]
    joined = join(labels, mirrored)
    found = esc().conditional_velocity(data, joined, dataclasses.replace(draws, batch=(data, joined)))
    for half in (slice(0, 4), slice(4, 8)):
        part = dataclasses.replace(draws.share(0, 1), **{n: getattr(draws, n)[half] for n in ("noise", "t", "drop")})
        expected = expected_velocity(data[half], labels[half], part, data[half], labels[half])
        torch.testing.assert_close(found[half], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("t", [1e-30, 1e-4, 1 - 1e-6, 1.0])
def test_plug_in_velocity_is_accurate_in_float32_at_all_times(t):
    data, labels, draws = a_batch([1] * 8)
    time = torch.full((8,), t, dtype=torch.float64)
    draws = dataclasses.replace(draws, t=time)
    exact = esc().conditional_velocity(data, labels, draws)
    found = esc().conditional_velocity(data.float(), labels, in_float32(draws))
    # At small t the image itself has all the weight, which leaves v_t; at t = 1 all images of the class are equal.
    assert relative_error(found, exact) < 1e-5
    expected = {1e-30: draws.noise - data, 1.0: draws.noise - _class_means(data, labels, draws.drop)}
    if t in expected:
        torch.testing.assert_close(exact, expected[t], rtol=1e-12, atol=1e-12)


def in_float32(draws: Draws) -> Draws:
    assert draws.batch is not None
    batch = draws.batch[0].float(), draws.batch[1]
    return dataclasses.replace(draws, noise=draws.noise.float(), t=draws.t.float(), batch=batch)


@pytest.mark.parametrize("t", [0.01, 0.3, 0.9, 0.999])
def test_plug_in_velocity_of_latents_is_accurate_in_float32(t):
    """ImageNet's 4,096 numbers; the second image differs little from the first, and the third is the first again."""
    data, _ = random_batch((16, 4, 32, 32), seed=2)
    data[1], data[2] = data[0] + 0.01 * data[3], data[0]
    noise = torch.randn(data.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    time, labels = torch.full((16,), t, dtype=torch.float64), torch.zeros(16, dtype=torch.int64)
    marginal, batch = torch.ones(16, dtype=torch.bool), (data, labels)
    draws = dataclasses.replace(given_draws(noise, time, time, time), marginal=marginal, batch=batch)
    exact = esc().conditional_velocity(data, labels, draws)
    found = esc().conditional_velocity(data.float(), labels, in_float32(draws))
    # Dot products of 4,096 terms are rounded by about 1e-5, α / β = 99 multiplies it at t = 0.01, and the weight that
    # changes by 1e-3 is of images 0.01 apart, over t: 1e-3.
    assert relative_error(found, exact) < 2e-3


def _class_means(data: Tensor, labels: Tensor, drop: Tensor) -> Tensor:
    means = [data.mean(0) if drop[i] else data[labels == label].mean(0) for i, label in enumerate(labels)]
    return torch.stack(means)


def test_plug_in_velocity_has_the_mean_of_the_conditional_one():
    """E[v | x_t] is what both estimate: their difference has mean 0, and theirs is the smaller variance."""
    images, _ = random_batch((6, 1, 2, 2))
    generator, batch = torch.Generator().manual_seed(0), 20_000
    data = images[torch.randint(6, (batch,), generator=generator)]
    noise = torch.randn(data.shape, generator=generator, dtype=torch.float64)
    t = torch.full((batch,), 0.7, dtype=torch.float64)
    marginal, labels = torch.ones(batch, dtype=torch.bool), torch.zeros(batch, dtype=torch.int64)
    draws = dataclasses.replace(given_draws(noise, t, t, t), marginal=marginal, batch=(images, labels[:6]))
    found, conditional = esc().conditional_velocity(data, labels, draws), noise - data
    difference = found - conditional
    assert (difference.mean(0).abs() < 5 * difference.std(0) / math.sqrt(batch)).all()  # five standard errors
    assert (found.var(0) < 0.9 * conditional.var(0)).all()


# Loss and gradient.


@pytest.mark.parametrize("jvp", ["with_gradient", "separate", "subset"])
@pytest.mark.parametrize("guidance", [{"guidance_kappa": 0.0}, GUIDED], ids=["plain", "guided"])
def test_gradient_is_meanflows_with_the_plug_in_velocity(guidance, jvp):
    """MeanFlow on noise and data with the same x_t and x_1 − x_0 equal to the plug-in velocity."""
    network, (data, labels, draws) = SmoothNetwork(), a_batch([1, 1, 0, 1, 0, 1, 1, 1])
    v, t = expected_velocity(data, labels, draws, data, labels), draws.t.view(-1, 1, 1, 1)
    x_t = (1 - t) * data + t * draws.noise
    mean_flow = MeanFlow(objective_config("meanflow", jvp=jvp, **guidance), NUM_CLASSES, True)
    moved = dataclasses.replace(draws, noise=x_t + (1 - t) * v)
    expected = mean_flow.losses(network, x_t - t * v, labels, moved)
    losses = esc(jvp=jvp, **guidance).losses(network, data, labels, draws)
    torch.testing.assert_close(losses.loss, expected.loss, rtol=1e-11, atol=0)
    found = gradients(network, losses.loss.sum())
    for name, gradient in gradients(network, expected.loss.sum()).items():
        assert relative_error(found[name], gradient) < 1e-10, name


def test_without_its_changes_it_is_meanflow():
    network, (data, labels) = SmoothNetwork(), random_batch((8, 1, 2, 2))
    mean_flow = MeanFlow(objective_config("meanflow"), NUM_CLASSES, True)
    losses = []
    for objective in (mean_flow, esc(marginal_fraction=0, anneal_end=0)):
        draws = draw(objective, data.shape, 0.0, torch.Generator().manual_seed(0))
        assert not objective.uses_batch
        losses.append(objective.losses(network, data, labels, draws).loss)
    assert torch.equal(*losses)


# Batches.


def test_batches_have_equal_parts_of_few_classes():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(5), [10, 20, 30, 40, 100]))
    order = ClassOrder(labels, images_per_class=8, batch_size=32, seed=0)
    uses = Counter[int]()
    for step in range(2000):
        indices = order.indices(step)
        uses.update(indices.tolist())
        parts = [labels[indices[part::4]] for part in range(4)]
        assert all(len(set(part)) == 1 for part in parts)  # every fourth image, as a worker of four gets them
        counts = Counter(part[0] for part in parts)
        # Points are 50 images apart, so n images have at most n / 50 of them, rounded up.
        assert all(counts[label] <= -(-size // 50) for label, size in enumerate([10, 20, 30, 40, 100]))
    assert np.array_equal(ClassOrder(labels, 8, 32, seed=0).indices(7), order.indices(7))
    assert not np.array_equal(ClassOrder(labels, 8, 32, seed=1).indices(7), order.indices(7))
    # Every image has the chance 32 / 200 in every step. A class of n images has at most 0.25 of variance in the number
    # of its points, each worth 8 images: five standard deviations of its share of 64,000 images.
    for label, size in enumerate([10, 20, 30, 40, 100]):
        images = sum(uses[i] for i in np.flatnonzero(labels == label))
        assert abs(images - 64_000 * size / 200) < 5 * 8 * math.sqrt(0.25 * 2000)


@pytest.mark.parametrize(("images_per_class", "batch_size", "classes"), [(32, 64, 2), (8, 80, 10), (64, 16, 1)])
def test_balanced_classes_come_once_in_a_batch(images_per_class, batch_size, classes):
    labels = np.arange(1000) % 10
    order = ClassOrder(labels, images_per_class, batch_size, seed=0)
    for step in range(50):
        indices = order.indices(step)
        assert len(indices) == len(set(indices.tolist())) == batch_size
        assert len(set(labels[indices])) == classes


def test_an_image_comes_again_only_after_all_others_of_its_class():
    labels = np.repeat([0, 1], [4, 12])
    order = ClassOrder(labels, images_per_class=8, batch_size=30, seed=0)  # four parts, one or more of either class
    for step in range(200):
        indices = order.indices(step)
        assert len(indices) == 30
        for label in (0, 1):
            counts = Counter({int(i): 0 for i in np.flatnonzero(labels == label)})
            counts.update(int(i) for i in indices if labels[i] == label)
            # The last two of the 32 are left out, which may be of the same class.
            assert max(counts.values()) - min(counts.values()) <= 2


def test_every_image_is_as_likely_where_parts_differ_in_size():
    """Three parts of 34, 33 and 33 images; the smaller class always has one of them."""
    labels = np.repeat([0, 1], [60, 120])
    order, steps = ClassOrder(labels, images_per_class=33, batch_size=100, seed=0), 3000
    small = np.array([(labels[order.indices(step)] == 0).sum() for step in range(steps)])
    assert set(small.tolist()) == {33, 34}
    # 34 images with a chance of 1/3: five standard deviations of the mean.
    assert small.mean() == pytest.approx(100 / 3, abs=5 * math.sqrt(2 / 9 / steps))


def batch_labels(images_per_class: int | None, conditional: bool = True) -> list[set[int]]:
    objective, dataset = {"images_per_class": images_per_class}, {"conditional": conditional}
    config = tiny_config("esc", objective=objective, dataset=dataset)
    inputs = Trainer(config, open_source(config.dataset), CPU).inputs
    return [set(inputs.batch(step)[1].tolist()) for step in range(4)]


def test_the_trainer_draws_its_batches_from_few_classes():
    assert all(len(classes) == 2 for classes in batch_labels(4))
    assert all(len(classes) > 2 for classes in batch_labels(None))


def test_without_labels_batches_are_of_all_images():
    assert batch_labels(4, conditional=False) == [{NUM_CLASSES}] * 4
    config = tiny_config("esc", dataset={"conditional": False})
    assert type(Trainer(config, open_source(config.dataset), CPU).inputs.order) is EpochOrder

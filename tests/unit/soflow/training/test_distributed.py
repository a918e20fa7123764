"""Two workers compute what one does: gradients, weights, metrics and evaluation images, for every objective."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import CPU, tiny_config
from torch import distributed

from soflow.data.in_memory import InMemorySource
from soflow.evaluation.generated import generate
from soflow.evaluation.moments import Workers
from soflow.objectives.registry import OBJECTIVES
from soflow.training.trainer import NonFiniteLoss, Trainer

pytestmark = pytest.mark.slow  # starts processes

WORKERS = 2
MICRO_BATCHES, UNET, AUGMENTED = "micro-batches", "U-Net-XS", "augmented"


def cases() -> dict[str, tuple[str, dict, int]]:
    """Objective, its settings and the batch size: parts that do not divide evenly, and workers without one of them."""
    found = {f"{name}, defaults": (name, {}, 10) for name in OBJECTIVES}
    for fraction, batch in ((0.75, 10), (0.75, 4), (0.25, 4), (0.0, 6), (1.0, 6)):  # 7 + 3, 3 + 1, 1 + 3, 0 + 6, 6 + 0
        settings = {"flow_matching_fraction": fraction}
        found[f"soflow, {fraction} of {batch}"] = ("soflow", settings | {"guidance_strength": 3}, batch)
        found[f"meanflow, {fraction} of {batch}"] = ("meanflow", settings, batch)
    for jvp in ("with_gradient", "separate"):
        found[f"meanflow, {jvp}"] = ("meanflow", {"jvp": jvp}, 10)
    trigonometric = {"interpolant": "trigonometric", "parameterization": "trigonometric"}
    found["soflow, trigonometric, no guidance"] = ("soflow", trigonometric | {"guidance_strength": 1}, 10)
    found[f"{UNET}, weights for augmentation unused"] = ("soflow", {}, 4)
    found[f"{UNET}, {AUGMENTED}"] = ("soflow", {}, 4)
    for name in ("soflow", "meanflow", "esc"):
        found[f"{name}, two {MICRO_BATCHES} per worker"] = (name, {}, 10)  # 3 + 2 on each
    return found


def disturb(network: torch.nn.Module) -> None:
    """Random weights everywhere: a fresh network is zero in most places, and so are its gradients."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=random, dtype=parameter.dtype)


def source() -> InMemorySource:
    """Twenty images of noise, shaped as digits are."""
    random = np.random.default_rng(0)
    return InMemorySource(random.integers(0, 256, (20, 1, 8, 8), np.uint8), np.arange(20) % 10, num_classes=10)


def steps(
    name: str,
    settings: dict,
    batch: int,
    rank: int,
    world_size: int,
    micro_batches: int,
    network: str,
    augmentation: float,
) -> dict[str, torch.Tensor]:
    """Gradients of the first step, weights after three, and the losses reported."""
    sections = {"training": {"batch_size": batch}, "network": {"name": network}}
    config = tiny_config(name, objective=settings, dataset={"augmentation": augmentation}, **sections)
    trainer = Trainer(config, source(), CPU, rank, world_size, micro_batches)
    disturb(trainer.network)
    metrics = trainer.advance(1)
    result = {f"gradient/{name}": p.grad.clone() for name, p in trainer.network.named_parameters() if p.requires_grad}
    metrics |= {f"{key}/later": value for key, value in trainer.advance(2).items()}
    result |= {f"weight/{name}": p.detach().clone() for name, p in trainer.network.named_parameters()}
    return result | {key: torch.tensor(value) for key, value in metrics.items() if key.startswith("loss/")}


def _network(case: str) -> str:
    """Choose a network with attention for the objectives' defaults; the parts of a batch do not depend on it."""
    if UNET in case:
        return UNET
    return "tests.networks:one_block" if case.endswith("defaults") else "tests.networks:Perceptron"


def all_cases(rank: int, world_size: int) -> dict[str, dict[str, torch.Tensor]]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # networks, draws and sums, so that only rounding of 1e-16 is left
    try:
        return {
            case: steps(
                *inputs,
                rank,
                world_size,
                2 if MICRO_BATCHES in case and world_size > 1 else 1,
                _network(case),
                0.5 if AUGMENTED in case else 0.0,
            )
            for case, inputs in cases().items()
        }
    finally:
        torch.set_default_dtype(before)


def images(sampler: str, rank: int, world_size: int, batch_size: int = 5) -> dict[str, torch.Tensor]:
    """A worker's share of evaluation images of weights that make some: 5 batches, the last of them smaller."""
    config = tiny_config(evaluation={"num_samples": 22, "batch_size": batch_size})
    trainer = Trainer(config, source(), CPU, rank, world_size)
    network = trainer.averaged_network()
    disturb(network)
    workers = Workers(CPU, rank, world_size)
    batches = list(generate(trainer.objective, network, trainer.codec, config, 4, sampler, workers, [1] * 10))
    return {name: torch.cat([getattr(batch, name) for batch in batches]) for name in ("places", "labels", "images")}


def divergence(rank: int, world_size: int) -> str:
    config = tiny_config(optimizer={"learning_rate": 1e30})
    try:
        Trainer(config, source(), CPU, rank, world_size).advance(4)
    except NonFiniteLoss as error:
        return str(error)
    return "converged"


SAMPLERS = ("renoise", "compose", "heun")


def everything(rank: int = 0, world_size: int = 1) -> dict:
    return {
        "cases": all_cases(rank, world_size),
        "images": {sampler: images(sampler, rank, world_size) for sampler in SAMPLERS},
        "divergence": divergence(rank, world_size),
    }


def worker(rank: int, directory: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{directory / 'rendezvous'}",
        rank=rank,
        world_size=WORKERS,
        timeout=timedelta(seconds=60),
    )
    try:
        torch.save(everything(rank, WORKERS), directory / f"{rank}.pt")
    finally:
        distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Everything from one worker, and from each of two: this process and another."""
    directory = tmp_path_factory.mktemp("workers")
    other = torch.multiprocessing.get_context("spawn").Process(target=worker, args=(1, directory))
    other.start()
    try:
        single = everything()  # while the other one imports
        worker(0, directory)
        other.join(60)
        assert other.exitcode == 0
    finally:
        other.kill()
    return single, [torch.load(directory / f"{rank}.pt", weights_only=True) for rank in range(WORKERS)]


@pytest.mark.parametrize("case", cases())
def test_two_workers_take_the_steps_of_one(case, results):
    single, several = results
    expected = single["cases"][case]
    gradients = [name for name in expected if name.startswith("gradient/")]
    assert all(expected[name].abs().max() > 0 for name in gradients)
    assert any(name.startswith("loss/") for name in expected)
    for found in (result["cases"][case] for result in several):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            # float64 sums in another order; Adam divides by gradients, so weights inherit their relative error.
            # Augmentation resamples in float32, from a border as wide as a worker's images need: it rounds differently.
            difference = ((found[name] - value).abs().max() / value.abs().max()).item()
            assert difference < (1e-4 if AUGMENTED in case else 1e-10), (name, difference)


def test_workers_hold_the_same_bits(results):
    _, (first, second) = results
    for case, values in first["cases"].items():
        for name, value in values.items():
            assert torch.equal(value, second["cases"][case][name]), (case, name)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_evaluation_images_do_not_depend_on_the_number_of_workers(sampler, results):
    single, several = results
    expected = single["images"][sampler]
    assert expected["places"].tolist() == list(range(22))
    assert len({image.numpy().tobytes() for image in expected["images"]}) == 22
    assert expected["images"].float().std() > 10  # gray levels: something is on them
    shares = [found["images"][sampler] for found in several]
    assert [len(share["places"]) for share in shares] == [12, 10]
    together = {name: torch.cat([share[name] for share in shares]) for name in expected}
    order = together["places"].argsort()
    for name, values in expected.items():
        assert torch.equal(together[name][order], values)


def test_all_workers_stop_at_the_same_diverging_step(results):
    single, several = results
    assert "at step 2;" in single["divergence"]
    assert [found["divergence"] for found in several] == [single["divergence"]] * WORKERS

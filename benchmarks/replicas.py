"""Would training several seeds at once in one process, with stacked weights, give more seeds per hour?

Steps of SoFlow without guidance, with and without `torch.func`: R networks one after another, and R networks whose
weights are stacked, under `vmap`. Both take the same batches and random numbers, and their gradients must agree.
Prints the ratio of times per seed: medians over rounds with an interval, the sides taking turns.

$ python benchmarks/replicas.py --threads 1
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, grad_and_value, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from soflow.config import parse
from soflow.cost.synthetic import synthetic_source
from soflow.objectives.base import Draws
from soflow.statistics import median_coverage, median_interval
from soflow.training.trainer import Trainer

PER_SAMPLE = ("noise", "t", "l", "s", "drop", "weight")
TOLERANCE = 1e-5
"""Largest difference of stacked and separate gradients, relative to their norm: float32 in another order."""


def trainers(network: str, batch: int, number: int) -> list[Trainer]:
    """Build trainers of different seeds."""
    objective = {"guidance_strength": 1.0}
    values = {"objective": objective, "network": {"name": network}, "training": {"batch_size": batch}}
    configs = [parse(values | {"seed": seed}) for seed in range(number)]
    built = [Trainer(config, synthetic_source(config.dataset), torch.device("cpu")) for config in configs]
    for trainer in built:
        trainer.advance(2)
    return built


class Separate:
    """R networks, each with its own loss, gradient and optimizer."""

    def __init__(self, built: list[Trainer]):
        self.objective = built[0].objective
        self.networks = [trainer.network for trainer in built]
        self.optimizers = [torch.optim.AdamW(network.parameters(), lr=1e-4) for network in self.networks]

    def gradients(self, data: list[Tensor], labels: list[Tensor], draws: list[Draws]) -> None:
        for network, images, classes, numbers in zip(self.networks, data, labels, draws, strict=True):
            network.zero_grad()
            (self.objective.losses(network, images, classes, numbers).loss @ numbers.weight).backward()

    def step(self, *batch: list) -> None:
        self.gradients(*batch)
        for optimizer in self.optimizers:
            optimizer.step()


class Stacked:
    """R networks whose weights are stacked, with one optimizer, which works element by element."""

    def __init__(self, built: list[Trainer]):
        self.objective, self.network = built[0].objective, built[0].network
        weights, self.buffers = stack_module_state([trainer.network for trainer in built])
        self.weights = {name: weight.detach().clone() for name, weight in weights.items()}
        self.optimizer = torch.optim.AdamW(self.weights.values(), lr=1e-4)

    def gradients(self, data: list[Tensor], labels: list[Tensor], draws: list[Draws]) -> dict[str, Tensor]:
        def loss(weights: dict, buffers: dict, images: Tensor, classes: Tensor, numbers: dict[str, Tensor]) -> Tensor:
            def network(*arguments: Tensor) -> Tensor:
                return functional_call(self.network, (weights, buffers), arguments)

            own = replace(draws[0], **numbers)
            return self.objective.losses(network, images, classes, own).loss @ own.weight

        numbers = {name: torch.stack([getattr(one, name) for one in draws]) for name in PER_SAMPLE}
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernel has no batching rule: vmap would loop over networks
            gradients, _ = vmap(grad_and_value(loss))(
                self.weights, self.buffers, torch.stack(data), torch.stack(labels), numbers
            )
        return gradients

    def step(self, *batch: list) -> None:
        for name, gradient in self.gradients(*batch).items():
            self.weights[name].grad = gradient
        self.optimizer.step()


def batches(built: list[Trainer], batch: int) -> tuple[list[Tensor], list[Tensor], list[Draws]]:
    """Make a batch for each network, with the random numbers of its loss."""
    shape, generator = built[0].source.batch(np.arange(1))[0].shape[1:], torch.Generator().manual_seed(0)
    data = [torch.randn((batch, *shape), generator=generator) for _ in built]
    labels = [torch.randint(10, (batch,), generator=generator) for _ in built]
    draws = [
        trainer.objective.draw(torch.randn_like(images), 0.5, generator)
        for trainer, images in zip(built, data, strict=True)
    ]
    return data, labels, draws


def largest_difference(separate: Separate, stacked: Stacked, batch: tuple) -> float:
    separate.gradients(*batch)
    found = stacked.gradients(*batch)
    differences = []
    for index, network in enumerate(separate.networks):
        for name, weight in network.named_parameters():
            if weight.grad is not None and weight.grad.norm() > 0:
                differences.append(float((found[name][index] - weight.grad).norm() / weight.grad.norm()))
    return max(differences)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="DiT-XXS/2")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {options.threads} threads, ", end=""
    )
    print(f"{options.network}, batch {options.batch}; ratio above 1: stacked is faster")
    for number in (1, 2, 4, 8):
        built = trainers(options.network, options.batch, number)
        separate, stacked, batch = Separate(built), Stacked(built), batches(built, options.batch)
        difference = largest_difference(separate, stacked, batch)
        assert difference < TOLERANCE, difference
        ratios = []
        for _ in range(options.rounds):
            seconds = []
            for side in (separate, stacked):
                begin = time.perf_counter()
                for _ in range(max(1, 8 // number)):
                    side.step(*batch)
                seconds.append(time.perf_counter() - begin)
            ratios.append(seconds[0] / seconds[1])
        low, high = median_interval(ratios)
        covered = f"{100 * median_coverage(options.rounds):.1f} %"
        print(f"{number} seeds: {statistics.median(ratios):.2f} ({low:.2f} to {high:.2f}, {covered}); ", end="")
        print(f"gradients differ by {difference:.1e}", flush=True)


if __name__ == "__main__":
    main()

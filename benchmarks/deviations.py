"""Effect on FID of each deviation from the authors that docs/deviations.md lists, as that page's table of measurements.

Per deviation and seed, one network is trained on digits as here and one as the authors do, with equal initial weights,
data, noise and, where the deviation permits, times. Both are sampled in one step from the same 2,000 noises. For the
labels, one trained network is sampled with balanced and ten times with random labels.

    python benchmarks/deviations.py --seeds 3 --steps 300
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from soflow.config import parse
from soflow.data import open_source
from soflow.evaluation.fidelity import Batch, Evaluator
from soflow.objectives.alpha_flow import AlphaFlow
from soflow.objectives.base import Draws, Losses, normal
from soflow.objectives.improved_meanflow import ImprovedMeanFlow
from soflow.objectives.soflow import SoFlow
from soflow.randomness import generator
from soflow.sampling import sample
from soflow.times import logit_normal
from soflow.training.trainer import Trainer

NUM_SAMPLES, NUM_RANDOM = 2000, 10  # samples; draws of random labels per network
BALANCED = torch.arange(NUM_SAMPLES) % 10
CPU, CACHE = torch.device("cpu"), Path("results/cache")


class AuthorsSoFlow(SoFlow):
    """SoFlow with ⌊λB⌋/B in place of λ: every sample has weight 1/B."""

    def draw(self, noise: Tensor, progress: float, random: torch.Generator) -> Draws:
        draws = super().draw(noise, progress, random)
        return replace(draws, weight=torch.full_like(draws.weight, 1 / len(noise)))


class AuthorsTimes(AlphaFlow):
    """α-Flow whose samples with r = t have a single draw as time, not the larger of two."""

    def draw(self, noise: Tensor, progress: float, random: torch.Generator) -> Draws:
        draws = super().draw(noise, progress, random)
        n = draws.num_flow_matching
        single = logit_normal(self.config.time_mean[0], self.config.time_std[0], normal(n, random))
        t, l, s = (torch.cat([single, time[n:]]) for time in (draws.t, draws.l, draws.s))
        return replace(draws, t=t, l=l, s=s)


class AuthorsDrop(AlphaFlow):
    """α-Flow that drops labels within the guidance interval only, and guides those samples, too."""

    def draw(self, noise: Tensor, progress: float, random: torch.Generator) -> Draws:
        draws, (begin, end) = super().draw(noise, progress, random), self.config.guidance_interval
        active = (begin <= draws.t) & (draws.t <= end)
        return replace(draws, drop=draws.drop & active, guided=active)

    def guided_velocity(
        self, network: nn.Module, x_t: Tensor, v_t: Tensor, output: Tensor | None, labels: Tensor, draws: Draws
    ) -> Tensor:
        return super().guided_velocity(network, x_t, v_t, output, self.drop_labels(labels, draws.drop), draws)


class AuthorsTangent(ImprovedMeanFlow):
    """Improved MeanFlow whose tangent has the sample's label where the network gets the null label."""

    def losses(self, network: nn.Module, data: Tensor, labels: Tensor, draws: Draws) -> Losses:
        self.labels = labels
        return super().losses(network, data, labels, draws)

    def tangent(self, network: nn.Module, x_t: Tensor, v_g: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        return self.marginal_velocity(network, x_t, self.labels, draws)


GUIDANCE = {"guidance_omega": 0.2, "guidance_kappa": 0.92, "guidance_interval": (0.0, 0.8)}  # of α-Flow's L/2
UNET = {"network": {"name": "U-Net-XS"}, "dataset": {"conditional": False}, "training": {"batch_size": 32}}
DEVIATIONS: dict[str, tuple[dict[str, dict], type | None]] = {
    "λ": ({"objective": {"name": "soflow"}}, AuthorsSoFlow),
    "α-Flow's times": ({"objective": {"name": "alpha_flow"}}, AuthorsTimes),
    "α-Flow's dropped labels": ({"objective": {"name": "alpha_flow"} | GUIDANCE}, AuthorsDrop),
    "tangent": ({"objective": {"name": "improved_meanflow"}}, AuthorsTangent),
    "null row": (UNET | {"objective": {"name": "soflow", "guidance_strength": 1.0, "velocity_mix": 1.0}}, None),
}
"""Settings, and the objective as the authors have it, or None to keep the null row at its initial value, zero."""


def untrained(settings: dict[str, dict], seed: int, steps: int) -> Trainer:
    """Make a trainer on digits that has taken no step yet."""
    training = settings.get("training", {}) | {"total_steps": steps}
    config = parse({"network": {"name": "DiT-XXS/4"}} | settings | {"seed": seed, "training": training})
    return Trainer(config, open_source(config.dataset), CPU)


def pair(settings: dict[str, dict], kind: type | None, seed: int, steps: int) -> tuple[float, float]:
    """Train as here and as the authors do, and return the FIDs."""
    here, theirs = (untrained(settings, seed, steps) for _ in range(2))
    if kind:
        theirs.objective.__class__ = kind  # the same fields, other methods
    else:
        theirs.network.label_table.weight.requires_grad_(False)
    here.advance(steps)
    theirs.advance(steps)
    return fid(here, BALANCED), fid(theirs, BALANCED)


def fid(trainer: Trainer, labels: Tensor) -> float:
    """Compute FID of one-step samples with these labels [N]; their noise depends on the seed only."""
    config, network = trainer.config, trainer.averaged_network()
    noise = normal((len(labels), *config.dataset.sample_shape), generator(CPU, config.seed, "deviations"))
    given = labels if config.dataset.conditional else torch.full_like(labels, trainer.source.num_classes)
    images = trainer.codec.decode(sample(trainer.objective, network, noise, given, 1, "compose", iter(())))
    return Evaluator(trainer.source, config, CPU, CACHE).fid([Batch(torch.arange(len(labels)), images, labels)])


def row(name: str, pairs: list[tuple[float, float]]) -> str:
    """Make a row: mean FID here and as the authors do, geometric mean of the ratios and the ratio of each seed."""
    here, theirs = (statistics.mean(values) for values in zip(*pairs, strict=True))
    ratios = [b / a for a, b in pairs]
    listed = ", ".join(f"{ratio:.3f}" for ratio in ratios)
    return f"| {name} | {here:.2f} | {theirs:.2f} | {statistics.geometric_mean(ratios):.3f} | {listed} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    print("| deviation | FID here | FID as the authors | ratio | ratio of each seed |\n|---|---|---|---|---|")
    for name, (settings, kind) in DEVIATIONS.items():
        print(row(name, [pair(settings, kind, seed, options.steps) for seed in range(options.seeds)]), flush=True)
    pairs, spread = [], []
    for seed in range(options.seeds):
        trainer = untrained({}, seed, options.steps)
        trainer.advance(options.steps)
        labels = torch.randint(10, (NUM_RANDOM, NUM_SAMPLES), generator=torch.Generator().manual_seed(seed))
        draws = [fid(trainer, drawn) for drawn in labels]
        pairs.append((fid(trainer, BALANCED), statistics.mean(draws)))
        spread.append(statistics.stdev(draws) / statistics.mean(draws))
    print(row("labels", pairs))
    print(f"\nRelative standard deviation between draws of labels: {statistics.mean(spread):.3f}")


if __name__ == "__main__":
    main()

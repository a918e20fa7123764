"""What every objective offers: its random draws, its losses, its solution map and its velocity."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from soflow.conditioning import with_null
from soflow.interpolants import Interpolant
from soflow.precision import Precision
from soflow.profiling.phases import phase

FULL = Precision("fp32")


@dataclass(frozen=True)
class Draws:
    """The random numbers of one optimiser step and each sample's part in the loss.

    Drawn for the whole batch on every worker, which then takes its share: so the numbers, and with them the run, do
    not depend on how many workers there are. All but the noise is drawn on the host, which so knows the sizes of all
    parts without waiting for the device. The samples of the flow-matching part (t = l = s) come first.
    """

    noise: Tensor
    """x_1, [B, C, H, W]."""
    t: Tensor
    l: Tensor
    s: Tensor
    """Times [B], s ≤ l ≤ t. Objectives without a middle time set l = t."""
    drop: Tensor
    """[B] bool, samples that get the null label."""
    weight: Tensor
    """[B]: the loss is the sum of the samples' losses with these weights, which over the whole batch sum to 1."""
    num_flow_matching: int
    """Size of the leading part with s = t."""
    gap_ratio: float = 0.0
    """(t − l) / (t − s) as scheduled in the other part, for objectives with a middle time."""
    dropout_seed: int = 0
    """Seed of this worker's dropout masks."""
    guided: Tensor | None = None
    """[B] bool, samples whose velocity is guided; by default all whose label is not dropped."""

    def __post_init__(self) -> None:
        if self.guided is None:
            object.__setattr__(self, "guided", ~self.drop)

    def share(self, rank: int, world_size: int) -> Draws:
        """Every world_size-th sample from `rank` on: an even share of both parts, still in order."""
        own = slice(rank, None, world_size)
        return Draws(
            noise=self.noise[own],
            t=self.t[own],
            l=self.l[own],
            s=self.s[own],
            drop=self.drop[own],
            weight=self.weight[own],
            num_flow_matching=len(range(rank, self.num_flow_matching, world_size)),
            gap_ratio=self.gap_ratio,
            dropout_seed=self.dropout_seed + rank,
            guided=self.guided[own],
        )

    @functools.cached_property
    def guided_indices(self) -> Tensor:
        """[n] indices of the guided samples."""
        return self.guided.nonzero().squeeze(1)

    @functools.cached_property
    def num_guided_flow_matching(self) -> int:
        """How many of the guided samples are in the flow-matching part."""
        return int(self.guided[: self.num_flow_matching].sum())

    def to(self, device: torch.device) -> Draws:
        """The same on a device; what depends on the number of guided samples is found on the host first."""
        moved = {
            field.name: value.to(device, non_blocking=True)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        draws = replace(self, **moved)
        draws.__dict__["num_guided_flow_matching"] = self.num_guided_flow_matching
        draws.__dict__["guided_indices"] = self.guided_indices.to(device, non_blocking=True)
        return draws


@dataclass(frozen=True)
class Losses:
    """Per-sample results of one batch."""

    loss: Tensor
    """[B], what is minimised, before the samples' weights. Its value may mean nothing (see each objective)."""
    terms: dict[str, Tensor]
    """Named quantities worth watching, each [n] over the samples that it exists for."""


class Objective(ABC):
    """One way to train F_θ.

    Args:
        config: the objective's section of the configuration.
        num_classes: the null label's index.
        conditional: whether labels are used at all; if not, guidance is off.
        precision: of all network calls but those of a quotient.
        quotient_precision: of the two calls whose difference is divided by t − l, where there are such.
        dropout: whether the network has any, so that calls which belong together must share their masks.
    """

    interpolant: Interpolant
    default_nfe: tuple[int, ...] = (1, 2)
    """Numbers of network evaluations to measure unless the configuration names others."""
    default_sampler: str = "renoise"
    attention: str = "fused where available"
    """Which attention kernels a step uses."""

    def __init__(
        self,
        config,
        num_classes: int,
        conditional: bool,
        precision: Precision = FULL,
        quotient_precision: Precision = FULL,
        dropout: bool = False,
    ):
        self.config, self.num_classes, self.conditional = config, num_classes, conditional
        self.forward, self.forward_precise, self.dropout = precision, quotient_precision, dropout

    @abstractmethod
    def draw(self, noise: Tensor, progress: float, generator: torch.Generator) -> Draws:
        """Random numbers for a batch with this noise [B, C, H, W] at progress k/K, on the generator's device."""

    @abstractmethod
    def losses(self, network: nn.Module, data: Tensor, labels: Tensor, draws: Draws) -> Losses:
        """Per-sample losses for data [B, C, H, W] in [−1, 1] and labels [B]."""

    @abstractmethod
    def solution(self, network: nn.Module, x: Tensor, t: Tensor, s: Tensor, labels: Tensor) -> Tensor:
        """f_θ(x, t, s): the state at times s [B] of the trajectory through x [B, ...] at times t [B]."""

    @abstractmethod
    def velocity(self, network: nn.Module, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """v_θ(x, t): the marginal velocity at x [B, ...] and times t [B]."""

    def targets(self, network: nn.Module, x_t: Tensor, v_t: Tensor, labels: Tensor, draws: Draws) -> dict[str, Tensor]:
        """The velocities [B, ...] that guidance makes of v_t, by the papers' names v_g and v_mix; without gradient."""
        return {}

    def output_of_parts(
        self, network: nn.Module, x_t: Tensor, labels: Tensor, draws: Draws, apart: int, rest: Precision
    ) -> Tensor:
        """F_θ(x_t, t, s, label) [B, ...]: in one call, unless the rest of the batch has to be apart.

        Args:
            labels: as the network sees them [B].
            apart: size of the leading part.
            rest: precision of the other part, which shares its dropout masks with whatever is called later under
                `same_dropout`.
        """
        if apart < len(x_t) and self.forward.name == rest.name and not self.dropout:
            apart = 0
        t, s, outputs = draws.t, draws.s, []
        with phase("forward"):
            if apart:
                outputs.append(self.forward(network, x_t[:apart], t[:apart], s[:apart], labels[:apart]))
            if apart < len(x_t):
                with self.same_dropout(draws):
                    outputs.append(rest(network, x_t[apart:], t[apart:], s[apart:], labels[apart:]))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    @torch.no_grad()
    def guidance_outputs(
        self,
        network: nn.Module,
        x_t: Tensor,
        output: Tensor | None,
        labels: Tensor,
        draws: Draws,
        null: bool,
        label: bool,
    ) -> tuple[Tensor | float, Tensor | float]:
        """F_θ(x_t, t, t, null) and F_θ(x_t, t, t, label) of the n guided samples, [n, ...] each, in one call.

        Args:
            output: F_θ(x_t, t, s, label) [B, ...] without gradient, which in the leading part, where s = t, is what is
                wanted; None if it is not known.
            labels: as they are [B], before any is dropped.
            null, label: which of the two are wanted; 0 comes back for the other.
        """
        own, known = draws.guided_indices, 0 if output is None else draws.num_guided_flow_matching
        wanted = [(own, self.null_labels(labels))] if null else []
        if label:
            wanted.append((own[known:], labels))
        rows = torch.cat([indices for indices, _ in wanted])
        found = x_t[:0]
        if len(rows):
            t, given = draws.t[rows], torch.cat([values[indices] for indices, values in wanted])
            with phase("guidance"):
                found = self.forward(network, x_t[rows], t, t, given)
        of_null, of_label = found[: len(own)] if null else 0.0, found[len(own) if null else 0 :]
        if label and known:
            of_label = torch.cat([output[own[:known]], of_label])
        return of_null, of_label if label else 0.0

    def draw_drop(self, batch: int, generator: torch.Generator) -> Tensor:
        """[B] bool: where the label gives way to the null label."""
        chance = self.config.label_drop if self.conditional else 0.0
        return torch.rand(batch, generator=generator, device=generator.device) < chance

    def given_labels(self, labels: Tensor, drop: Tensor) -> Tensor:
        """The labels that the network sees: the null label where `drop`."""
        return with_null(labels, self.num_classes, drop)

    def null_labels(self, labels: Tensor) -> Tensor:
        """The null label for every sample."""
        return with_null(labels, self.num_classes)

    @contextmanager
    def same_dropout(self, draws: Draws) -> Iterator[None]:
        """Inside, the network draws the same dropout masks every time; outside, random numbers go on as before."""
        if not self.dropout:
            yield
            return
        device = draws.t.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(draws.dropout_seed)
            yield


def normal(shape: tuple[int, ...] | int, generator: torch.Generator) -> Tensor:
    """Standard normal draws on the generator's device."""
    return torch.randn(shape, generator=generator, device=generator.device)


def mean_square(x: Tensor) -> Tensor:
    """Mean of squares over each sample's elements, [B, ...] to [B]."""
    return x.square().flatten(1).mean(1)

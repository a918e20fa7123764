"""Interface of the objectives: random draws, losses, solution map and velocity."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from soflow.conditioning import with_null
from soflow.interpolants import Interpolant
from soflow.precision import Precision
from soflow.profiling.phases import phase

FULL = Precision("fp32")


@dataclass(frozen=True)
class Draws:
    """Random numbers of one optimizer step, and the weight of each sample in the loss.

    Every worker draws them for the whole batch and then takes its share, so neither the numbers nor the run depend on
    the number of workers. All but the noise is drawn on the host, so that the numbers of flow-matching and guided
    samples are known without waiting for the device. The flow-matching samples (t = l = s) come first.
    """

    noise: Tensor
    """x_1, [B, C, H, W]."""
    t: Tensor
    l: Tensor
    s: Tensor
    """Times [B], s ≤ l ≤ t. Objectives without a middle time set l = t."""
    drop: Tensor
    """[B] bool, samples whose label is replaced by the null label."""
    weight: Tensor
    """[B], weights of the per-sample losses; they sum to 1 over the whole batch."""
    num_flow_matching: int
    """Number of leading samples with s = t."""
    gap_ratio: float = 0.0
    """Scheduled (t − l) / (t − s) of the other samples, for objectives with a middle time."""
    dropout_seed: int = 0
    """Seed of this worker's dropout masks."""
    guided: Tensor | None = None
    """[B] bool, samples whose velocity is guided. Default: all samples whose label is not dropped."""
    marginal: Tensor | None = None
    """[B] bool, samples that learn the batch's marginal velocity in place of the conditional one, for ESC."""
    batch: tuple[Tensor, Tensor] | None = None
    """Data and labels of the whole batch, on the device, for objectives with `uses_batch`."""

    def share(self, rank: int, world_size: int) -> Draws:
        """Take every world_size-th sample starting at `rank`: an even share of both kinds of samples, in order."""
        share = slice(rank, None, world_size)
        return Draws(
            noise=self.noise[share],
            t=self.t[share],
            l=self.l[share],
            s=self.s[share],
            drop=self.drop[share],
            weight=self.weight[share],
            num_flow_matching=len(range(rank, self.num_flow_matching, world_size)),
            gap_ratio=self.gap_ratio,
            dropout_seed=self.dropout_seed + rank,
            guided=self.guided_mask[share],
            marginal=None if self.marginal is None else self.marginal[share],
            batch=self.batch,
        )

    @property
    def guided_mask(self) -> Tensor:
        """`guided`, or its default."""
        return ~self.drop if self.guided is None else self.guided

    @functools.cached_property
    def guided_indices(self) -> Tensor:
        """Indices [n] of the guided samples."""
        return self.guided_mask.nonzero().squeeze(1)

    @functools.cached_property
    def num_guided_flow_matching(self) -> int:
        """Number of guided samples among the flow-matching samples."""
        return int(self.guided_mask[: self.num_flow_matching].sum())

    def to(self, device: torch.device) -> Draws:
        """Copy to a device; compute the indices of guided samples on the host first."""
        # Computed on the device, their number would force a synchronization.
        moved: dict[str, Any] = {
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
    """Minimized loss [B], before weighting. Only its gradient may be meaningful (see each objective)."""
    terms: dict[str, Tensor]
    """Named errors to log, each [n] for the samples that it is defined for."""


class Objective(ABC):
    """Training objective of F_θ.

    Args:
        config: section of the configuration for this objective.
        num_classes: index of the null label.
        conditional: train with labels; without them guidance is off.
        precision: precision of all network calls and gradients, except the values in a finite difference over t − l.
        quotient_precision: precision of these values, if the objective has them.
        dropout: true if the network has dropout; calls that are compared then share their dropout masks.
    """

    interpolant: Interpolant
    default_nfe: tuple[int, ...] = (1, 2)
    """NFE values to evaluate unless the configuration sets others."""
    default_sampler: str = "renoise"
    attention: str = "fused where available"
    """Attention kernels used in an optimizer step."""

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
        """Draw the random numbers of a batch with noise [B, C, H, W] at progress k/K, on the generator's device."""

    @abstractmethod
    def losses(self, network: nn.Module, data: Tensor, labels: Tensor, draws: Draws) -> Losses:
        """Compute per-sample losses for data [B, C, H, W] in [−1, 1] and labels [B]."""

    @abstractmethod
    def solution(self, network: nn.Module, x: Tensor, t: Tensor, s: Tensor, labels: Tensor) -> Tensor:
        """Compute f_θ(x, t, s): the state at times s [B] of the trajectory through x [B, ...] at times t [B]."""

    @abstractmethod
    def velocity(self, network: nn.Module, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """Compute the marginal velocity v_θ(x, t) at x [B, ...] and times t [B]."""

    @property
    def uses_batch(self) -> bool:
        """True if a sample's loss depends on the other samples of the batch, which then are in `Draws.batch`."""
        return False

    def approximates_derivative(self, network: nn.Module) -> bool:
        """Return true if the loss contains a derivative of the network that is compiled or a finite difference."""
        return False

    def derivative_error(self, network: nn.Module, data: Tensor, labels: Tensor, draws: Draws) -> float:
        """Measure the relative error of that derivative."""
        raise NotImplementedError

    def targets(self, network: nn.Module, x_t: Tensor, v_t: Tensor, labels: Tensor, draws: Draws) -> dict[str, Tensor]:
        """Compute the guided target velocities [B, ...] by their names in the papers, v_g and v_mix; no gradient."""
        return {}

    def network_output(
        self, network: nn.Module, x_t: Tensor, labels: Tensor, draws: Draws, n: int, rest: Precision
    ) -> Tensor:
        """Compute F_θ(x_t, t, s, label) [B, ...], with gradients in the objective's precision: nothing amplifies them.

        Args:
            labels: network input [B], after label drop.
            n: number of leading samples, whose values are in the objective's precision.
            rest: precision of the values of the remaining samples. They share dropout masks with later calls in
                `same_dropout`. With dropout, value and gradient are those of one call, in this precision, as the masks
                may depend on it.
        """

        def call(precision: Precision, rows: slice) -> Tensor:
            return precision(network, x_t[rows], draws.t[rows], draws.s[rows], labels[rows])

        everything, leading, others = slice(None), slice(n), slice(n, None)
        with phase("forward"):
            if n == len(x_t):
                return call(self.forward, everything)
            if self.dropout:
                outputs = [call(self.forward, leading)] if n else []
                with self.same_dropout(draws):
                    return torch.cat([*outputs, call(rest, others)])
            output = call(self.forward, everything)
            if rest.name == self.forward.name:
                return output
            with torch.no_grad():
                value = call(rest, others)
            return torch.cat([output[leading], _Replaced.apply(output[others], value)])

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
        """Compute F_θ(x_t, t, t, null) and F_θ(x_t, t, t, label) [n, ...] of the n guided samples in one call.

        Args:
            output: F_θ(x_t, t, s, label) [B, ...] without gradient, or None if not yet computed. It is reused for the
                flow-matching samples, where s = t.
            labels: original labels [B], before label drop.
            null, label: outputs to compute; 0 is returned in place of the other.
        """
        guided, n_reused = draws.guided_indices, 0 if output is None else draws.num_guided_flow_matching
        requests = [(guided, self.null_labels(labels))] if null else []
        if label:
            requests.append((guided[n_reused:], labels))
        rows = torch.cat([indices for indices, _ in requests])
        outputs = x_t[:0]
        if len(rows):
            t, network_labels = draws.t[rows], torch.cat([values[indices] for indices, values in requests])
            with phase("guidance"):
                outputs = self.forward(network, x_t[rows], t, t, network_labels)
        of_null, of_label = outputs[: len(guided)] if null else 0.0, outputs[len(guided) if null else 0 :]
        # The flow-matching samples come first, so the reused outputs precede the computed ones.
        if label and n_reused and output is not None:
            of_label = torch.cat([output[guided[:n_reused]], of_label])
        return of_null, of_label if label else 0.0

    def draw_drop(self, batch: int, generator: torch.Generator) -> Tensor:
        """Draw the mask [B] bool of samples whose label is replaced by the null label."""
        probability = self.config.label_drop if self.conditional else 0.0
        return torch.rand(batch, generator=generator, device=generator.device) < probability

    def drop_labels(self, labels: Tensor, drop: Tensor) -> Tensor:
        """Replace labels [B] by the null label where the mask `drop` [B] is true."""
        return with_null(labels, self.num_classes, drop)

    def null_labels(self, labels: Tensor) -> Tensor:
        """Replace all labels [B] by the null label."""
        return with_null(labels, self.num_classes)

    @contextmanager
    def same_dropout(self, draws: Draws) -> Iterator[None]:
        """Draw the same dropout masks every time inside the block, without changing the random state outside."""
        if not self.dropout:
            yield
            return
        device = draws.t.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(draws.dropout_seed)
            yield


class _Replaced(torch.autograd.Function):
    """Value of the second argument, with gradients for the first."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def normal(shape: tuple[int, ...] | int, generator: torch.Generator) -> Tensor:
    """Draw standard normal numbers on the generator's device."""
    return torch.randn(shape, generator=generator, device=generator.device)


def normals(shape: tuple[int, ...], generator: torch.Generator) -> Iterator[Tensor]:
    """Yield tensors of standard normal numbers without end."""
    while True:
        yield normal(shape, generator)


def mean_square(x: Tensor) -> Tensor:
    """Compute the mean of squares over each sample's elements, [B, ...] to [B]."""
    return x.square().flatten(1).mean(1)

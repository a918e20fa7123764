"""ESC, explicit shortcut models: MeanFlow with a plug-in velocity and long intervals first (arXiv 2512.11831).

The paper's r is s here. ESC has MeanFlow's target v_g − (t − s) du/dt and changes what enters it:

- Plug-in velocity. The conditional velocity v_t of one image is a noisy estimate of the marginal velocity at x_t. With
  a probability of `plug_in_fraction` a sample gets the marginal velocity of the batch in its place: the mean of the
  conditional velocities to all images x_j of its class, each weighted by the density of x_t given x_j,

      v = Σ_j w_j (α' x_j + β' ε_j),    ε_j = (x_t − α x_j) / β,    w = softmax_j(−‖ε_j‖² / 2).

  It replaces v_t in the target and in the tangent of du/dt.
- Batches of few classes, `classes_per_batch`, so that these means are over many images.
- Gradual times. With a probability that falls from 1 to 0 until k/K = `terminal_end`, a sample with s < t gets s = 0.

The paper also divides each sample's loss by exp(λ_t) and adds λ_t, with λ_t learned from t. With the adaptive weight of
p = 1 this has no effect: the weighted loss is close to 1 for every sample, so that λ_t tends to log 1 = 0. It is left
out.

Differences from the authors' public code, from which the settings here were read:

- The weights w cover the batch of all workers, theirs one worker's, so a run does not depend on the number of workers.
- The weights are restricted to the sample's class; a sample without label has all images. In their best runs a worker's
  batch has one class, also for the samples without label; in their other runs the weights ignore the class.
- A batch has the classes of `classes_per_batch` random images, and each of them an equal number of images; theirs one
  uniformly drawn class per worker.
- The weight of a sample is MeanFlow's, 1 / (‖e‖² + ε)^p. Theirs is for the loss ‖e‖⁴: up to ε the same at p = 1.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from soflow.conditioning import split
from soflow.interpolants import per_sample
from soflow.objectives.base import FULL, Draws
from soflow.objectives.meanflow import MeanFlow
from soflow.schedules import terminal_probability

SMALLEST_BETA = 1e-6
"""Lower bound of β in divisions; below it, the image's own weight is 1 and the velocity is v_t."""


class ESC(MeanFlow):
    """MeanFlow whose conditional velocity is replaced by the marginal velocity of the batch for some samples."""

    uses_batch = True

    def draw(self, noise: Tensor, progress: float, generator: torch.Generator) -> Draws:
        draws, config, batch = super().draw(noise, progress, generator), self.config, len(noise)
        chances = (terminal_probability(progress, config.terminal_end), config.plug_in_fraction)
        terminal, plug_in = (torch.rand(batch, generator=generator, device=generator.device) < p for p in chances)
        terminal[: draws.num_flow_matching] = False
        return replace(draws, s=draws.s.masked_fill(terminal, 0.0), plug_in=plug_in)

    @torch.no_grad()
    def conditional_velocity(self, data: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        v_t = super().conditional_velocity(data, labels, draws)
        if self.config.plug_in_fraction == 0 or draws.plug_in is None:
            return v_t
        images, image_labels = draws.batch or (data, labels)
        alpha, beta = self.interpolant.alpha(draws.t), self.interpolant.beta(draws.t).clamp(min=SMALLEST_BETA)
        with FULL.context(data.device):
            images = images.to(draws.noise.dtype)
            weights = posterior(data, draws.noise, alpha / beta, images, same_class(labels, draws.drop, image_labels))
            mean = (weights @ images.flatten(1)).view_as(data)
        # As ε_j = ε + (α / β) (x − x_j) for the sample's own image x and noise ε.
        slope = self.interpolant.d_alpha(draws.t) - self.interpolant.d_beta(draws.t) * alpha / beta
        plugged = v_t + per_sample(slope, v_t) * (mean - data)
        return torch.where(per_sample(draws.plug_in, v_t), plugged, v_t)


def posterior(data: Tensor, noise: Tensor, ratio: Tensor, images: Tensor, possible: Tensor) -> Tensor:
    """Compute the probabilities [B, N] that x_t = α data + β noise came from each of N equally likely images.

    From differences to the sample's own image, whose logarithm is 0, so that nothing large cancels.

    Args:
        data, noise: [B, ...].
        ratio: α / β, [B].
        images: [N, ...].
        possible: [B, N] bool, images that count; at least one per sample.
    """
    own, epsilon, others = (values.flatten(1) for values in (data.to(noise.dtype), noise, images))
    squared = torch.cdist(own, others, compute_mode="donot_use_mm_for_euclid_dist").square()
    aligned = (epsilon * own).sum(1, keepdim=True) - epsilon @ others.T
    logits = -ratio[:, None] * aligned - ratio.square()[:, None] * squared / 2
    return logits.masked_fill(~possible, -torch.inf).softmax(1)


def same_class(labels: Tensor, drop: Tensor, image_labels: Tensor) -> Tensor:
    """Return [B, N] bool: images with a sample's class, or any if it is dropped, and its augmentation parameters."""
    (classes, augmentation), (image_classes, image_augmentation) = split(labels), split(image_labels)
    same = (classes[:, None] == image_classes) | drop[:, None]
    if augmentation is not None and image_augmentation is not None:
        same &= (augmentation[:, None] == image_augmentation).all(2)
    return same

"""ESC, explicit shortcut models: MeanFlow with a plug-in velocity and long intervals first (arXiv 2512.11831).

The paper's r is s here. ESC has MeanFlow's target v_g − (t − s) du/dt and changes what enters it:

- Plug-in velocity. The conditional velocity v_t of one image is a noisy estimate of the marginal velocity at x_t. With
  a probability of `marginal_fraction` a sample gets the marginal velocity of the batch in its place: the mean of the
  conditional velocities to all images x_j of its class, each weighted by the density of x_t given x_j,

      v = Σ_j w_j (α' x_j + β' ε_j),    ε_j = (x_t − α x_j) / β,    w = softmax_j(−‖ε_j‖² / 2).

  It replaces v_t in the target and in the tangent of du/dt.
- Batches of few classes, each with `images_per_class` images, so that these means are over many images.
- Gradual times. A sample with s < t gets s = 0 with a probability that falls from 1 to 0 until k/K = `anneal_end`.

The paper also divides each sample's loss by exp(λ_t) and adds λ_t, with λ_t learned from t. With the adaptive weight of
p = 1 the loss is close to 1 for every sample. The best λ_t is then log 1 = 0 and changes nothing, and is left out.

Images with other augmentation parameters do not count, because the network learns the velocity given these parameters.
Where they are continuous, a sample has only its own image and learns v_t.

Differences from the authors' public code, from which the settings here were read:

- The weights w cover the batch of all workers, theirs one worker's, so a run does not depend on the number of workers.
- The weights are restricted to the sample's class; a sample without label has all images. In their best runs a worker's
  batch has one class, also for the samples without label; in their other runs the weights ignore the class.
- A batch has several classes, drawn in proportion to their images; theirs one uniformly drawn class per worker.
- The weight of a sample is MeanFlow's, 1 / (‖e‖² + ε)^p. Theirs is for the loss ‖e‖⁴, which at p = 1 and up to ε gives
  gradients twice as long, before they clip them to a norm of 1.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from soflow.conditioning import split
from soflow.interpolants import per_sample
from soflow.objectives.base import FULL, Draws
from soflow.objectives.meanflow import MeanFlow
from soflow.schedules import zero_probability

SMALLEST_BETA = 1e-6
"""Lower bound of β in divisions; below it, the image's own weight is 1 and the velocity is v_t."""


class ESC(MeanFlow):
    """MeanFlow whose conditional velocity is replaced by the marginal velocity of the batch for some samples."""

    @property
    def uses_batch(self) -> bool:
        return self.config.marginal_fraction > 0

    def draw(self, noise: Tensor, progress: float, generator: torch.Generator) -> Draws:
        draws, config, batch = super().draw(noise, progress, generator), self.config, len(noise)
        chances = (zero_probability(progress, config.anneal_end), config.marginal_fraction)
        zero, marginal = (torch.rand(batch, generator=generator, device=generator.device) < p for p in chances)
        zero[: draws.num_flow_matching] = False
        return replace(draws, s=draws.s.masked_fill(zero, 0.0), marginal=marginal)

    @torch.no_grad()
    def conditional_velocity(self, data: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        v_t = super().conditional_velocity(data, labels, draws)
        if not self.uses_batch:
            return v_t
        assert draws.batch is not None
        assert draws.marginal is not None
        images, image_labels = draws.batch[0].to(draws.noise.dtype), draws.batch[1]
        alpha, beta = self.interpolant.alpha(draws.t), self.interpolant.beta(draws.t).clamp(min=SMALLEST_BETA)
        with FULL.context(data.device):
            weights = posterior(data, draws.noise, alpha / beta, images, same_class(labels, draws.drop, image_labels))
            mean = (weights @ images.flatten(1)).view_as(data)
        # As ε_j = ε + (α / β) (x − x_j) for the sample's own image x and noise ε.
        slope = self.interpolant.d_alpha(draws.t) - self.interpolant.d_beta(draws.t) * alpha / beta
        v = v_t + per_sample(slope, v_t) * (mean - data)
        return torch.where(per_sample(draws.marginal, v_t), v, v_t)


def posterior(data: Tensor, noise: Tensor, ratio: Tensor, images: Tensor, possible: Tensor) -> Tensor:
    """Compute the probabilities [B, N] that x_t = α data + β noise came from each of N equally likely images.

    From differences to the sample's own image, because ‖ε_j‖² itself is of order (α / β)² where β is small.

    Args:
        data, noise: [B, ...].
        ratio: α / β, [B].
        images: [N, ...].
        possible: [B, N] bool, images that count, among them the sample's own.
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

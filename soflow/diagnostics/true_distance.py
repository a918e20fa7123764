"""How far is the learned map from the true one? f_θ(x, t, s) − f(x, t, s), where the data's own flow is known.

Data of known Gaussian components has a velocity in closed form, E[v_t | x_t = x], for every interpolant that sets
x_t = α_t x_0 + β_t x_1: each component's is affine in x, and they mix by their probabilities given x. With its label
given a sample belongs to one component, whose flow has a closed form as well; without, the mixture's velocity is
integrated finely. The target is the data's own flow, so training must be without guidance.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from soflow.autodiff import directional_derivative
from soflow.data.gaussians import Components
from soflow.diagnostics.base import Probe, Subject, over_pairs, probes, root_mean_square
from soflow.diagnostics.target_variance import probes_with_draws
from soflow.interpolants import Interpolant, per_sample

STEPS = 64
"""Runge-Kutta steps of a mixture's integration, whatever the distance between t and s; four velocities each."""


@torch.no_grad()
def measure(subject: Subject) -> dict[str, float]:
    """Root mean squares per element.

    "rms": of f_θ(x_1, 1, 0) minus the true f, in units of the data. "mean" and each pair's own, e.g. "t1.00_s0.00":
    the same for noised data at time t. "violation": mean over these pairs of how far f_θ is from solving the true
    velocity's equation, ‖∂_x f_θ · v + ∂_t f_θ‖, in units of the data per unit of time. "true_loss": mean q² of the
    true solution at the end of training, where the objective has a consistency loss; that loss takes the conditional
    velocity for the true one and so is not 0 for the true solution (SoFlow, arXiv 2512.15657).

    Raises:
        ValueError: if the subject's data has no closed form.
    """
    if subject.components is None:
        raise ValueError("true_distance needs data whose components are known")
    objective, network = subject.objective, subject.network

    def flow_of(probe: Probe) -> TrueFlow:
        return TrueFlow(subject.components, objective.interpolant, probe.labels)

    def distance(probe: Probe, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return objective.solution(network, x, t, s, probe.labels) - flow_of(probe).solution(x, t, s)

    def violation(probe: Probe, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        v = flow_of(probe).velocity(x, t)
        _, derivative = directional_derivative(
            lambda x, t: objective.solution(network, x, t, s, probe.labels), (x, t), (v, torch.ones_like(t))
        )
        return derivative

    of_noise = [distance(probe, probe.noise, probe.times(1), probe.times(0)) for probe in probes(subject, NAME)]
    return {
        "rms": root_mean_square(of_noise),
        **over_pairs(subject, NAME, distance),
        "violation": over_pairs(subject, NAME, violation)["mean"],
        **true_loss(subject),
    }


NAME = "true_distance"


def true_loss(subject: Subject) -> dict[str, float]:
    """Mean of q² = ((f(x_t, t, s) − f(x_l, l, s)) / (t − l))² at x_l = x_t + (l − t) v_t, for draws as in training."""
    interpolant, quotients = subject.objective.interpolant, []
    for probe, draws in probes_with_draws(subject):
        own = (draws.l < draws.t).nonzero().squeeze(1)
        data, noise, t, l, s = (each[own].double() for each in (probe.data, probe.noise, draws.t, draws.l, draws.s))
        flow = TrueFlow(subject.components, interpolant, probe.labels[own])
        x_t = interpolant.x_t(data, noise, t)
        x_l = x_t + per_sample(l - t, x_t) * interpolant.v_t(data, noise, t)
        quotients.append((flow.solution(x_t, t, s) - flow.solution(x_l, l, s)) / per_sample(t - l, x_t))
    return {"true_loss": root_mean_square(quotients) ** 2} if any(map(len, quotients)) else {}


class TrueFlow:
    """The data's own velocity and solution, for samples of these labels.

    Args:
        labels: [B]; the null label, or any that is no component's, stands for all of them together.
    """

    def __init__(self, components: Components, interpolant: Interpolant, labels: Tensor):
        self.interpolant, self.variance = interpolant, components.variance
        self.means = torch.from_numpy(components.means).flatten(1).to(labels.device)
        """μ, float64 [K, D]."""
        self.labels, self.known = labels, labels < len(self.means)

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """v(x, t) = E[v_t | x_t = x] for x [B, ...] at times t [B], computed in float64.

        One component's is α' μ + (α α' σ² + β β') / (α² σ² + β²) (x − α μ), of which the mean over components is taken.
        """
        return self._velocity(x.flatten(1).double(), t.double()).view_as(x).to(x.dtype)

    def solution(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """f(x, t, s) for x [B, ...] at times t [B] to times s [B], computed in float64.

        One component's is α_s μ + sqrt((α_s² σ² + β_s²) / (α_t² σ² + β_t²)) (x − α_t μ).
        """
        flat, t, s = x.flatten(1).double(), t.double(), s.double()
        if not self.known.all():
            return self._integrated(flat, t, s).view_as(x).to(x.dtype)
        mu = self.means[self.labels]
        ratio = (self._variance(s) / self._variance(t)).sqrt()
        start, end = (self.interpolant.alpha(time)[:, None] * mu for time in (t, s))
        return (end + ratio[:, None] * (flat - start)).view_as(x).to(x.dtype)

    def _variance(self, t: Tensor) -> Tensor:
        """Of x_t around a component's mean, α² σ² + β²."""
        return self.interpolant.alpha(t) ** 2 * self.variance + self.interpolant.beta(t) ** 2

    def _velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """For x [B, D]. It is linear in μ, so the components' mean is the velocity of their mean μ."""
        p = self.interpolant
        alpha, beta, d_alpha, d_beta = (f(t)[:, None] for f in (p.alpha, p.beta, p.d_alpha, p.d_beta))
        mu = self._shares(x, t) @ self.means
        rate = (alpha * d_alpha * self.variance + beta * d_beta) / self._variance(t)[:, None]
        return d_alpha * mu + rate * (x - alpha * mu)

    def _shares(self, x: Tensor, t: Tensor) -> Tensor:
        """Probability of each component given x_t = x [B, D] and the label, [B, K]."""
        alpha = self.interpolant.alpha(t)[:, None]
        # log N(x; α μ, ·) without the |x|² that all components share.
        logits = (alpha * x @ self.means.T - alpha**2 * self.means.square().sum(1) / 2) / self._variance(t)[:, None]
        own = torch.arange(len(self.means), device=x.device) == self.labels[:, None]
        return logits.masked_fill(self.known[:, None] & ~own, -math.inf).softmax(1)

    def _integrated(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The classical Runge-Kutta method of fourth order."""
        step = (s - t) / STEPS
        h = step[:, None]
        for i in range(STEPS):
            now = t + i * step
            first = self._velocity(x, now)
            second = self._velocity(x + h / 2 * first, now + step / 2)
            third = self._velocity(x + h / 2 * second, now + step / 2)
            fourth = self._velocity(x + h * third, now + step)
            x = x + h / 6 * (first + 2 * second + 2 * third + fourth)
        return x

"""Distance of the learned map from the exact one, f_θ(x, t, s) − f(x, t, s), for data with a known flow.

For a mixture of Gaussians the velocity E[v_t | x_t = x] has a closed form for every interpolant
x_t = α_t x_0 + β_t x_1: each component's velocity is affine in x, and the components are weighted by their
probabilities given x. With labels, every sample belongs to a single component, whose flow has a closed form too.
Without labels, the velocity of the mixture is integrated numerically. The exact flow does not include guidance, so the
diagnostic requires training without guidance.
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
"""Runge-Kutta steps of the integration from t to s for a mixture, with four velocities each."""


@torch.no_grad()
def measure(subject: Subject) -> dict[str, float]:
    """Compute RMS errors per element.

    Returns:
        rms: RMS of f_θ(x_1, 1, 0) minus the exact f, in units of the data.
        t1.00_s0.00, …, mean: the same for noised data at time t, for each pair s < t, and the mean over pairs.
        violation: mean over pairs of the ODE residual of f_θ for the exact velocity, ‖∂_x f_θ · v + ∂_t f_θ‖, in units
            of the data per unit of time.
        true_loss: mean q² of the exact solution at the end of training, if the objective has a consistency loss. It is
            not 0, because the loss uses the conditional velocity in place of the marginal one (SoFlow, arXiv
            2512.15657).

    Raises:
        ValueError: if the subject's data has no known components.
    """
    objective, network = subject.objective, subject.network

    def distance(probe: Probe, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        exact = true_flow(subject, probe.labels).solution(x, t, s)
        return objective.solution(network, x, t, s, probe.labels) - exact

    def violation(probe: Probe, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        v = true_flow(subject, probe.labels).velocity(x, t)
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
    """Compute the mean of q² = ((f(x_t, t, s) − f(x_l, l, s)) / (t − l))² at x_l = x_t + (l − t) v_t.

    Times are drawn as in training. Empty if the objective has no samples with l < t.
    """
    interpolant, differences = subject.objective.interpolant, []
    for probe, draws in probes_with_draws(subject):
        rows = (draws.l < draws.t).nonzero().squeeze(1)
        data, noise, t, l, s = (x[rows].double() for x in (probe.data, probe.noise, draws.t, draws.l, draws.s))
        flow = true_flow(subject, probe.labels[rows])
        x_t = interpolant.x_t(data, noise, t)
        x_l = x_t + per_sample(l - t, x_t) * interpolant.v_t(data, noise, t)
        differences.append((flow.solution(x_t, t, s) - flow.solution(x_l, l, s)) / per_sample(t - l, x_t))
    return {"true_loss": root_mean_square(differences) ** 2} if any(map(len, differences)) else {}


def true_flow(subject: Subject, labels: Tensor) -> TrueFlow:
    """Return the exact flow of the subject's data, given labels [B]; ValueError if unknown."""
    if subject.components is None:
        raise ValueError("true_distance needs data whose components are known")
    return TrueFlow(subject.components, subject.objective.interpolant, labels)


class TrueFlow:
    """Exact velocity and solution of the data distribution, conditional on labels.

    Args:
        labels: [B], indices of components; the null label, or any other larger value, stands for the mixture.
    """

    def __init__(self, components: Components, interpolant: Interpolant, labels: Tensor):
        self.interpolant, self.variance = interpolant, components.variance
        self.means = torch.from_numpy(components.means).flatten(1).to(labels.device)
        """Means μ, float64 [K, D]."""
        self.labels, self.labeled = labels, labels < len(self.means)

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """Compute v(x, t) = E[v_t | x_t = x] in float64, for x [B, ...] at times t [B].

        The velocity of one component is α' μ + (α α' σ² + β β') / (α² σ² + β²) (x − α μ); the result is the mean over
        components, weighted by their probabilities given x.
        """
        return self._velocity(x.flatten(1).double(), t.double()).view_as(x).to(x.dtype)

    def solution(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Compute f(x, t, s) in float64, for x [B, ...] from times t [B] to times s [B].

        The solution of one component is α_s μ + sqrt((α_s² σ² + β_s²) / (α_t² σ² + β_t²)) (x − α_t μ).
        """
        flat, t, s = x.flatten(1).double(), t.double(), s.double()
        if not self.labeled.all():
            return self._integrated(flat, t, s).view_as(x).to(x.dtype)
        mu = self.means[self.labels]
        ratio = (self._variance(s) / self._variance(t)).sqrt()
        start, end = (self.interpolant.alpha(time)[:, None] * mu for time in (t, s))
        return (end + ratio[:, None] * (flat - start)).view_as(x).to(x.dtype)

    def _variance(self, t: Tensor) -> Tensor:
        """Compute the variance of x_t within a component, α² σ² + β²."""
        return self.interpolant.alpha(t) ** 2 * self.variance + self.interpolant.beta(t) ** 2

    def _velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """Compute the velocity for x [B, D]; as it is linear in μ, the mean over components uses their mean μ."""
        p = self.interpolant
        alpha, beta, d_alpha, d_beta = (f(t)[:, None] for f in (p.alpha, p.beta, p.d_alpha, p.d_beta))
        mu = self._shares(x, t) @ self.means
        rate = (alpha * d_alpha * self.variance + beta * d_beta) / self._variance(t)[:, None]
        return d_alpha * mu + rate * (x - alpha * mu)

    def _shares(self, x: Tensor, t: Tensor) -> Tensor:
        """Compute the probability [B, K] of each component given x_t = x [B, D] and the label."""
        alpha = self.interpolant.alpha(t)[:, None]
        # log N(x; α μ, ·) without the |x|² term, which is equal for all components.
        logits = (alpha * x @ self.means.T - alpha**2 * self.means.square().sum(1) / 2) / self._variance(t)[:, None]
        of_label = torch.arange(len(self.means), device=x.device) == self.labels[:, None]
        return logits.masked_fill(self.labeled[:, None] & ~of_label, -math.inf).softmax(1)

    def _integrated(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Integrate with the classical fourth-order Runge-Kutta method."""
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

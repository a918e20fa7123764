"""Draw the picture of docs/concepts.md: a flow in one dimension, what each objective learns on it, and gap schedules.

$ python benchmarks/concepts.py --out docs/concepts.png

Data are two Gaussians, noise is one, and the interpolant is linear, so that the velocity is known in closed form.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from scipy.integrate import solve_ivp

from soflow.schedules import GAP_SCHEDULES, gap_ratio

MEANS, SIGMA = np.array([-1.5, 1.5]), 0.25
BLUE, ORANGE, GRAY = "#2563eb", "#d97706", "#9ca3af"
T, L, S = 0.8, 0.6, 0.0
"""Times of the arrows."""


def velocity(t: float, x: np.ndarray) -> np.ndarray:
    """Compute E[x_1 − x_0 | x_t = x] for x_t = (1 − t) x_0 + t x_1, with equally likely Gaussians as data."""
    variance = (1 - t) ** 2 * SIGMA**2 + t**2
    offset = x[:, None] - (1 - t) * MEANS
    log_share = -(offset**2) / (2 * variance)
    share = np.exp(log_share - log_share.max(1, keepdims=True))
    share /= share.sum(1, keepdims=True)
    data = MEANS + (1 - t) * SIGMA**2 / variance * offset
    noise = t / variance * offset
    return (share * (noise - data)).sum(1)


def trajectory(start: float, times: np.ndarray) -> np.ndarray:
    """Integrate the flow from noise at t = 1 through decreasing times."""
    return solve_ivp(velocity, (1, 0), [start], t_eval=times, rtol=1e-8, atol=1e-8).y[0]


def draw_flow(axes: Axes) -> None:
    """Draw trajectories, one jump, and the gap whose two solutions SoFlow makes equal."""
    times = np.linspace(1, 0, 201)
    for start in np.linspace(-2.2, 2.2, 12):
        axes.plot(times, trajectory(start, times), color=GRAY, linewidth=0.8)
    path = trajectory(0.6, times)
    x = dict(zip(np.round(times, 3), path, strict=True))
    axes.plot(times, path, color=BLUE, linewidth=2)
    for begin, color, bend in ((1.0, "black", -0.3), (T, ORANGE, 0.35), (L, ORANGE, 0.25)):
        style = {"arrowstyle": "->", "linewidth": 1.8, "color": color, "connectionstyle": f"arc3,rad={bend}"}
        axes.annotate("", (S, x[S]), (begin, x[begin]), arrowprops=style)
    axes.text(0.42, 2.25, "one step: f(x₁, 1, 0)", ha="center")
    axes.text(0.42, -0.4, "consistency: f(x_t, t, s) = f(x_l, l, s)", color=ORANGE, ha="center")
    axes.plot([T, L], [x[T], x[L]], "o", color=ORANGE)
    for time, name in ((T, "x_t"), (L, "x_l")):
        axes.text(time, x[time] + 0.15, name, color=ORANGE, ha="center")
    axes.set(
        xlabel="time: 0 is data, 1 is noise", ylabel="x", ylim=(-2.5, 2.6), title="The flow and its solution f(x, t, s)"
    )
    axes.invert_xaxis()


def draw_schedules(axes: Axes) -> None:
    """Draw r(k, K) of every included schedule, with the default ends."""
    progress = np.linspace(0, 1, 101)
    for name in GAP_SCHEDULES.included:
        axes.plot(progress, [gap_ratio(name, float(share), 0.1, 0.002) for share in progress], label=name)
    axes.set(xlabel="training progress k/K", ylabel="r = (t − l) / (t − s)", title="Gap schedules", yscale="log")
    axes.legend()


def draw(path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", width_ratios=(3, 2))
    draw_flow(left)
    draw_schedules(right)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="PNG file")
    draw(parser.parse_args().out)

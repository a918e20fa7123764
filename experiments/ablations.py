"""Which design choices of SoFlow matter: λ, r(k, K), interpolant and parameterization, p, w or m?

One choice is varied at a time, as in the rows of the paper's Table 1 (arXiv 2512.15657). HYPOTHESES contains the
paper's directions: λ = 0.75 (three quarters of the batch for flow matching), exponential schedule, linear interpolant
with the Euler parameterization, p = 1, guidance, and a mixed velocity. p = 1 and the mixed velocity also reduce the
ratio of largest to median gradient norm. A case differs from the first one by the setting in its name.

A hypothesis is confirmed or refuted if the paired t-test of the logarithms over seeds, corrected for all hypotheses,
has p < 0.05. Five seeds detect a single effect of 1.7 standard deviations with 80 % power, with the correction one of
about 3.5. Nothing is stopped early. Seeds may be added later, but only the p-values of experiments/claims.py account
for that.

$ python experiments/ablations.py
$ python experiments/ablations.py --scale paper --dry-run
"""

from experiments.launch import Experiment, comparison, launch, small_training

CASES = (
    "base",
    "λ 0:objective.flow_matching_fraction=0",
    "λ 0.25:objective.flow_matching_fraction=0.25",
    "λ 0.5:objective.flow_matching_fraction=0.5",
    "constant:objective.gap_schedule=constant",
    "linear:objective.gap_schedule=linear",
    "cosine:objective.gap_schedule=cosine",
    "linear + trigonometric:objective.parameterization=trigonometric",
    "trigonometric + Euler:objective.interpolant=trigonometric",
    "trigonometric + trigonometric:objective.interpolant=trigonometric,objective.parameterization=trigonometric",
    "p 0:objective.weight_power=0",
    "p 0.5:objective.weight_power=0.5",
    "w 1:objective.guidance_strength=1",
    "w 3:objective.guidance_strength=3",
    "m 0.1:objective.velocity_mix=0.1",
    "m 1:objective.velocity_mix=1",
)
PAPER_CASES = tuple(
    {"w 3": "w 2:objective.guidance_strength=2", "m 0.1": "m 0.5:objective.velocity_mix=0.5"}.get(
        case.partition(":")[0], case
    )
    for case in CASES
)
HYPOTHESES = (
    *(f"fid(base) < fid(λ {fraction})" for fraction in ("0", "0.25", "0.5")),
    *(f"fid(base) < fid({schedule})" for schedule in ("constant", "linear", "cosine")),
    "fid(base) < fid(linear + trigonometric)",
    "fid(base) < fid(trigonometric + Euler)",
    "fid(base) < fid(trigonometric + trigonometric)",
    "fid(base) < fid(p 0)",
    "fid(base) < fid(p 0.5)",
    "fid(base) < fid(w 1)",
    "fid(base) < fid(m 1)",
    "gradient/spike(base) < gradient/spike(p 0)",
    "gradient/spike(base) < gradient/spike(m 1)",
)
EXPERIMENT = Experiment(
    __doc__,
    "ablations",
    small=comparison(
        CASES,
        5,
        hypotheses=HYPOTHESES,
        objective={"flow_matching_fraction": 0.75},
        training=small_training(400),
    ),
    paper=comparison(PAPER_CASES, 3, hypotheses=HYPOTHESES),
)

if __name__ == "__main__":
    raise SystemExit(launch(EXPERIMENT))

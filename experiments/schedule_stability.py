"""How small may the gap t − l become? Varies r_init and r_end over orders of magnitude, four schedules, two precisions.

The consistency loss divides by t − l = r (t − s): a large r leaves a Taylor error, a small r amplifies rounding by 1/r
(docs/numerics.md compares predicted and measured errors of the gradient). Here training decides, by FID, the gradient's
norm and its largest spike, and the number of diverged trials. `sweep_schedule` searches these settings; this experiment
maps them. r ends at the value in the case's name and starts ten times as large, at most at 1.

The hypotheses stated before the run are in HYPOTHESES: r_end = 0.002 is better than 0.1 and 1, and the FID of 0.0001 is
at most 1.5 times as large; a finite difference in bfloat16 degrades training at small r and does not matter at large r.
A hypothesis is confirmed or refuted if the paired t-test of the logarithms over seeds, corrected for all hypotheses,
has p < 0.05. Five seeds detect a single effect of 1.7 standard deviations with 80 % power. Nothing is stopped early.
Seeds may be added later, but only the p-values of experiments/claims.py account for that.

$ python experiments/schedule_stability.py
$ python experiments/schedule_stability.py --scale paper --dry-run
"""

from experiments.launch import Experiment, comparison, launch, small_training

R_ENDS = ("1.0", "0.1", "0.01", "0.002", "0.0001")


def schedule(r_end: str, kind: str = "exponential", precision: str = "fp32") -> str:
    """Return the case of a gap schedule that ends at r_end."""
    name = (
        f"r {r_end}" + (f" {kind}" if kind != "exponential" else "") + (f" {precision}" if precision != "fp32" else "")
    )
    r_init = min(1.0, 10 * float(r_end))
    changes = f"objective.gap_schedule={kind},objective.r_init={r_init:g},objective.r_end={float(r_end):g}"
    return f"{name}:{changes},training.quotient_precision={precision}"


CASES = (
    *(schedule(r_end) for r_end in R_ENDS),
    *(schedule("0.002", kind) for kind in ("linear", "cosine", "constant")),
    *(schedule(r_end, precision="bf16") for r_end in ("0.1", "0.01", "0.002")),
)
HYPOTHESES = (
    "fid(r 0.002) < fid(r 1.0)",
    "fid(r 0.002) < fid(r 0.1)",
    "fid(r 0.0001) < 1.5 * fid(r 0.002)",
    *(f"fid(r 0.002) < fid(r 0.002 {kind})" for kind in ("linear", "cosine", "constant")),
    "fid(r 0.1 bf16) < 1.5 * fid(r 0.1)",
    "fid(r 0.002) < fid(r 0.002 bf16)",
    "gradient/norm(r 0.002) < gradient/norm(r 0.002 bf16)",
)
EXPERIMENT = Experiment(
    __doc__,
    "schedule_stability",
    small=comparison(CASES, 5, hypotheses=HYPOTHESES, training=small_training(400)),
    paper=comparison(CASES, 3, hypotheses=HYPOTHESES),
)

if __name__ == "__main__":
    raise SystemExit(launch(EXPERIMENT))

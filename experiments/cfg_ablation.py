"""How much does guidance during training improve one-step images, and is it better than guidance at inference?

Compares a grid of w and m with training without guidance, and with inference-time guidance of the unguided network, at
equal and at double cost: a guided step at inference evaluates the network twice, so that one step is 2 NFE. The
variance of the targets around the network's velocity is measured at every report: v_t is the conditional velocity, v_g
the guided one, which amplifies its noise, and v_mix the target of training. Negative control: if labels are almost
never dropped, the null velocity from which guidance extrapolates is not learned, and guidance must help less.

The hypotheses stated before the run are those of `hypotheses`. A hypothesis is confirmed or refuted if the paired
t-test of the logarithms over seeds, corrected for all hypotheses, has p < 0.05. Five seeds detect a single effect of
1.7 standard deviations with 80 % power. Nothing is stopped early. Seeds may be added later, but only the p-values of
experiments/claims.py account for that.

$ python experiments/cfg_ablation.py
$ python experiments/cfg_ablation.py --scale paper --dry-run
"""

from experiments.launch import Experiment, comparison, launch, small_training

UNGUIDED = "unguided:objective.guidance_strength=1,evaluation.diagnostics=[target_variance, inference_guidance]"
CONTROL = "control:objective.label_drop=1.0e-09"


def grid(strengths: tuple[float, ...], mixes: tuple[float, ...]) -> tuple[str, ...]:
    """Return the cases of all combinations of w and m."""
    return tuple(
        f"w {w:g} m {m:g}:objective.guidance_strength={w:g},objective.velocity_mix={m:g}"
        for w in strengths
        for m in mixes
    )


def hypotheses(best: str) -> tuple[str, ...]:
    """Return the hypotheses about `best`, the setting that is expected to be the best of the grid."""
    w, inference = best.split()[1], "diagnostics/inference_guidance"
    variance = "diagnostics/target_variance"
    return (
        f"fid({best}) < fid(unguided)",
        f"fid({best}) < {inference}/w{w}_2nfe(unguided)",  # 1 NFE against 2
        f"fid_2nfe({best}) < {inference}/w{w}_2nfe(unguided)",  # 2 NFE each
        f"fid_2nfe({best}) < {inference}/w{w}_4nfe(unguided)",  # 2 NFE against 4
        f"fid({best}) < fid(control)",
        f"{variance}/v_mix({best}) < {variance}/v_g({best})",
        f"{variance}/v_mix({best}) < {variance}/v_t({best})",
        f"{variance}/v_t({best}) < {variance}/v_g({best})",
    )


EVALUATION = {
    "nfe": (1, 2),
    "diagnostics": ("target_variance",),
    "diagnose_every_report": True,
}
EXPERIMENT = Experiment(
    __doc__,
    "cfg_ablation",
    small=comparison(
        (UNGUIDED, *grid((1.5, 3), (0.25, 1)), CONTROL),
        5,
        hypotheses=hypotheses("w 1.5 m 0.25"),
        objective={"guidance_strength": 1.5, "velocity_mix": 0.25},
        training=small_training(600),
        evaluation=EVALUATION,
    ),
    paper=comparison(
        (UNGUIDED, *grid((1.5, 2, 3), (0.25, 0.5, 1)), CONTROL),
        3,
        hypotheses=hypotheses("w 3 m 0.25"),
        evaluation=EVALUATION,
    ),
)

if __name__ == "__main__":
    raise SystemExit(launch(EXPERIMENT))

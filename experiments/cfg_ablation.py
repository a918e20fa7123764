"""What does guidance during training buy, and is it better than guidance at inference?

A grid of w and m, against no guidance and against a network trained without guidance that is guided at inference, at
equal and at double cost: a guided step at inference evaluates the network twice, so that one step is 2 NFE. The scatter
of the targets around the network's own velocity is measured at every report: v_t is the conditional velocity, v_g the
guided one, which multiplies its noise, v_mix what training uses. Negative control: where labels are hardly ever
dropped, the null velocity that guidance extrapolates from is not learned, and guidance must help less.

What is held to be true before the run is what `hypotheses` lists. One is called confirmed or refuted where the paired
t-test of the logarithms over the seeds, corrected for all of them, has p < 0.05; five seeds show a single effect of 1.7
standard deviations with a probability of 80 %. Nothing is stopped early, and no seed is added after looking.

$ python experiments/cfg_ablation.py
$ python experiments/cfg_ablation.py --scale paper --dry-run
"""

from experiments.launch import Experiment, comparison, launch, small_training

UNGUIDED = "unguided:objective.guidance_strength=1,evaluation.diagnostics=[target_variance, inference_guidance]"
CONTROL = "control:objective.label_drop=1.0e-09"


def grid(strengths: tuple[float, ...], mixes: tuple[float, ...]) -> tuple[str, ...]:
    return tuple(
        f"w {w:g} m {m:g}:objective.guidance_strength={w:g},objective.velocity_mix={m:g}"
        for w in strengths
        for m in mixes
    )


def hypotheses(best: str) -> tuple[str, ...]:
    """About the setting that is expected to be the best of the grid."""
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

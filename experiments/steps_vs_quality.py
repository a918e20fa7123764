"""How does image quality improve with the number of function evaluations (NFE), from 1 to 16, for both samplers?

Open question in SoFlow's paper, which reports 1 and 2 NFE (arXiv 2512.15657). The sampler "renoise" jumps to data and
adds fresh noise, as the authors do; "compose" follows one trajectory. SoFlow is compared with MeanFlow and flow
matching, whose Euler steps are the composition of its velocity. All are trained without guidance, so that they learn
the same flow.

The hypotheses stated before the run are in HYPOTHESES. A hypothesis is confirmed or refuted if the paired t-test of the
logarithms over seeds, corrected for all hypotheses, has p < 0.05. Five seeds detect a single effect of 1.7 standard
deviations with 80 % power. Nothing is stopped early. Seeds may be added later, but only the p-values of
experiments/claims.py account for that.

$ python experiments/steps_vs_quality.py
$ python experiments/steps_vs_quality.py --scale paper --dry-run
"""

from experiments.launch import Experiment, comparison, launch, small_training

CASES = (
    "soflow:objective.name=soflow,objective.guidance_strength=1,objective.flow_matching_fraction=0.75",
    "meanflow:objective.name=meanflow,objective.guidance_kappa=0,objective.flow_matching_fraction=0.75",
    "flow_matching:objective.name=flow_matching,objective.guidance_strength=1",
)
STEPS = "diagnostics/fid_by_nfe"
HYPOTHESES = (
    f"{STEPS}/renoise_2(soflow) < {STEPS}/renoise_1(soflow)",
    f"{STEPS}/compose_2(soflow) < {STEPS}/compose_1(soflow)",
    f"{STEPS}/renoise_16(soflow) < {STEPS}/renoise_2(soflow)",
    f"{STEPS}/compose_16(soflow) < {STEPS}/compose_2(soflow)",
    f"{STEPS}/compose_4(soflow) < {STEPS}/renoise_4(soflow)",
    f"{STEPS}/compose_2(soflow) < {STEPS}/compose_2(flow_matching)",
    f"{STEPS}/compose_16(flow_matching) < {STEPS}/compose_16(soflow)",
    f"{STEPS}/compose_1(soflow) < {STEPS}/compose_16(flow_matching)",
)
EVALUATION = {"nfe": (1,), "diagnostics": ("fid_by_nfe",)}
EXPERIMENT = Experiment(
    __doc__,
    "steps_vs_quality",
    small=comparison(CASES, 5, hypotheses=HYPOTHESES, training=small_training(1000), evaluation=EVALUATION),
    paper=comparison(CASES, 3, hypotheses=HYPOTHESES, evaluation=EVALUATION),
    preset="soflow-imagenet256-b4-no-guidance",
)

if __name__ == "__main__":
    raise SystemExit(launch(EXPERIMENT))

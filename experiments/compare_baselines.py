"""Which objective gives the best one-step images at equal steps, and how much does each cost?

Trains every case with the same seeds: equal data order (but for ESC, which chooses its batches by class), noise and
initial weights. The report compares the cases seed by seed: FID against steps, time and memory, with intervals and
paired tests; also as Markdown and LaTeX.

MeanFlow and its relatives take the Jacobian-vector product only where r differs from t (c of experiments/jvp_cost.py),
the way that takes the least time and memory.

The hypotheses stated before the run are in HYPOTHESES: the papers' directions. A hypothesis is confirmed or refuted if
the paired t-test of the logarithms over seeds, corrected for all hypotheses, has p < 0.05. Five seeds detect a single
effect of 1.7 standard deviations with 80 % power. Nothing is stopped early. Seeds may be added later, but only the
p-values of experiments/claims.py account for that.

$ python experiments/compare_baselines.py
$ python experiments/compare_baselines.py --dataset fashion_mnist --name fashion --case-seeds 8
$ python experiments/compare_baselines.py --scale paper --dry-run
$ python experiments/compare_baselines.py --name guidance --cases plain "guided:objective.guidance_strength=2" \\
      --hypotheses "fid(guided) < fid(plain)"
"""

from experiments.launch import Experiment, comparison, launch, small_training

CASES = (
    "soflow:objective.name=soflow",
    "meanflow:objective.name=meanflow",
    "improved_meanflow:objective.name=improved_meanflow",
    "alpha_flow:objective.name=alpha_flow",
    "esc:objective.name=esc",
    "shortcut:objective.name=shortcut",
    "flow_matching:objective.name=flow_matching",
)
# Settings of each paper; alpha-Flow: within its authors' range, with MeanFlow's guidance.
PAPER_CASES = (
    "soflow",
    "meanflow:objective.name=meanflow,objective.flow_matching_fraction=0.75,objective.guidance_kappa=0.5",
    "improved_meanflow:objective.name=improved_meanflow,objective.flow_matching_fraction=0.75,"
    "objective.guidance_kappa=0.5",
    "alpha_flow:objective.name=alpha_flow,objective.flow_matching_fraction=0.5,objective.guidance_kappa=0.5",
    "esc:objective.name=esc,objective.flow_matching_fraction=0.75,objective.guidance_kappa=0.5",
    "shortcut:objective.name=shortcut,objective.flow_matching_fraction=0.75,objective.smallest_steps=128",
    "flow_matching:objective.name=flow_matching,objective.guidance_strength=3,objective.velocity_mix=0.25",
)
HYPOTHESES = (
    "fid(soflow) < fid(meanflow)",
    "fid_2nfe(soflow) < fid(soflow)",
    "fid(soflow) < fid(flow_matching)",
    "time/step_ms(soflow) < time/step_ms(meanflow)",
    "memory/peak_mib(soflow) < memory/peak_mib(meanflow)",
    "fid(improved_meanflow) < fid(meanflow)",
    "fid(alpha_flow) < fid(meanflow)",
    "fid(esc) < fid(meanflow)",
    "fid(meanflow) < fid(shortcut)",
)
EXPERIMENT = Experiment(
    __doc__,
    "compare_baselines",
    small=comparison(CASES, 5, hypotheses=HYPOTHESES, training=small_training(800), evaluation={"nfe": (1, 2, 8)}),
    paper=comparison(PAPER_CASES, 3, hypotheses=HYPOTHESES, evaluation={"nfe": (1, 2, 8)}),
)

if __name__ == "__main__":
    raise SystemExit(launch(EXPERIMENT))

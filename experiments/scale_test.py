"""Do larger networks give better one-step images at equal steps, and do they reach the published FIDs?

Trains SoFlow with networks of increasing size for equal numbers of steps. At the paper's scale these are B/2 to XL/2
for 240 epochs, whose published FIDs decrease from 4.85 to 2.96 (arXiv 2512.15657); the target for XL/2 is 3.5. The
hypotheses stated before the run are in HYPOTHESES: each size is better than the next smaller one. A hypothesis is
confirmed or refuted if the paired t-test of the logarithms over seeds, corrected for all hypotheses, has p < 0.05. Five
seeds detect a single effect of 1.7 standard deviations with 80 % power. Nothing is stopped early.

$ python experiments/scale_test.py
$ python experiments/scale_test.py --scale paper --dry-run
"""

from experiments.launch import Experiment, comparison, launch, small_training

# Widths of 64 and 128, patches of 4 and 2 pixels.
SMALL = ("XXS/4:network.name=DiT-XXS/4", "XXS/2:network.name=DiT-XXS/2", "XS/2:network.name=DiT-XS/2")
PAPER = (
    "B/2:network.name=DiT-B/2",
    "M/2:network.name=DiT-M/2",
    "L/2:network.name=DiT-L/2",
    "XL/2:network.name=DiT-XL/2",
)
EXPERIMENT = Experiment(
    __doc__,
    "scale_test",
    small=comparison(
        SMALL,
        5,
        hypotheses=("fid(XXS/2) < fid(XXS/4)", "fid(XS/2) < fid(XXS/2)"),
        training=small_training(400),
        optimizer={"learning_rate": 2e-3},  # the default is tuned for XXS
    ),
    paper=comparison(
        PAPER,
        3,
        hypotheses=("fid(M/2) < fid(B/2)", "fid(L/2) < fid(M/2)", "fid(XL/2) < fid(L/2)", "fid(XL/2) < 3.5"),
    ),
    preset="soflow-imagenet256-b2",
)

if __name__ == "__main__":
    raise SystemExit(launch(EXPERIMENT))

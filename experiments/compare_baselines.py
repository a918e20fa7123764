"""Which objective gives the best one-step images at equal steps, and what does each cost?

Trains every case with the same seeds: equal data order, noise and initial weights. Ends with a report that compares
them seed by seed: FID against steps, time and memory, with intervals and paired tests; also as Markdown and LaTeX.

What is held to be true before the run: SoFlow's FID at one step is lower than MeanFlow's and flow matching's, and its
steps take less time than MeanFlow's. A difference is called where the paired t-test of the logarithms, corrected for
all cases, has p < 0.05; with five seeds that finds effects of 1.7 standard deviations with a probability of 80 %.
Nothing is stopped early, and no seed is added after looking.

$ python experiments/compare_baselines.py
$ python experiments/compare_baselines.py --dataset fashion_mnist --case-seeds 8
$ python experiments/compare_baselines.py --cases plain "guided:objective.guidance_strength=2"
"""

from launch import launch
from pydantic import Field

from orchestration.config import EarlyStoppingConfig, SweepConfig
from soflow.config import EvaluationConfig, TrainingConfig
from soflow.sections import Count

CASES = (
    "soflow:objective.name=soflow",
    "meanflow:objective.name=meanflow",
    "improved_meanflow:objective.name=improved_meanflow",
    "alpha_flow:objective.name=alpha_flow",
    "shortcut:objective.name=shortcut",
    "flow_matching:objective.name=flow_matching",
)


class BaselinesConfig(SweepConfig):
    """A comparison of configurations, each with the same seeds."""

    cases: tuple[str, ...] = CASES
    """Configurations to compare, each NAME or NAME:PATH=VALUE,PATH=VALUE; the others are held against the first."""
    case_seeds: Count = 5
    """Seeds that every case is trained with, one trial each: `seed` and the numbers after it."""
    evaluation: EvaluationConfig = Field(default_factory=lambda: EvaluationConfig(nfe=(1, 2, 8)))
    training: TrainingConfig = Field(default_factory=lambda: TrainingConfig(total_steps=1000))
    early_stopping: EarlyStoppingConfig = Field(default_factory=lambda: EarlyStoppingConfig(kind="none"))


if __name__ == "__main__":
    raise SystemExit(launch(BaselinesConfig, __doc__))

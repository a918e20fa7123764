"""Which of SoFlow and MeanFlow gives the better one-step images at equal steps, equal time and equal memory?

MeanFlow's Jacobian-vector product is taken in three ways: a in one call with the loss (with_gradient), b in a call of
its own (separate), c in a call of its own and only where r differs from t (subset). Each is trained three times, to be
held against the same SoFlow.

meanflow_a, b and c make as many steps of as many samples as SoFlow.

meanflow_a_time and so on make so many steps that they take the time of SoFlow's. The quotient of the two step times is
measured once, by the cost study (experiments/compare_cost.py) of this network, data set and batch, and read back from
its folder whenever the study goes on. A dry run takes the quotient of their arithmetic in its place.

meanflow_a_memory and so on make as many steps, of so many samples that their peak memory is at most SoFlow's: the
largest batch by the cost model, which unlike a measurement says the same everywhere. Where the memory of two objectives
hardly differs, neither do their batches.

Objectives have the published settings for ImageNet at both scales, those that the cost study measures. Time is that of
optimiser steps without evaluation, with the threads or GPU of one worker; batch and memory are one worker's share. How
equal the times came out is in the report.

What is held to be true before the run is in HYPOTHESES: SoFlow's steps take less time and memory, and its images are
better in all three comparisons. One is called confirmed or refuted where the paired t-test of the logarithms over the
seeds, corrected for all fifteen, has p < 0.05; five seeds show a single effect of 1.7 standard deviations with a
probability of 80 %, and one of 3.5 where the correction is strictest. Nothing is stopped early, and no seed is added
after looking.

$ python experiments/jvp_cost.py
$ python experiments/jvp_cost.py --network DiT-XS/2 --name larger-jvp-cost
$ python experiments/jvp_cost.py --scale paper --dry-run
"""

from __future__ import annotations

import functools
import shutil
from typing import TYPE_CHECKING

from experiments.launch import Experiment, cases_of, comparison, launch, small_training, with_cases
from orchestration.config import EXIT_CODES, LaunchConfig
from orchestration.cost_study.config import VARIANTS, CostStudyConfig
from orchestration.sweep.config import SweepConfig
from orchestration.terminal.command_line import validate
from soflow.config import RunConfig, override, parse, to_dict
from soflow.config_base import ConfigError
from soflow.config_files import read_yaml

if TYPE_CHECKING:
    from soflow.cost.predict import Prediction

MEANFLOW = ("meanflow_a", "meanflow_b", "meanflow_c")
TIME, MEMORY = "_time", "_memory"
"""What is equal to SoFlow's, behind the name of a case."""


def _case(variant: str, equal: str = "") -> str:
    settings = (f"objective.{name}={value}" for name, value in VARIANTS[variant].items())
    return f"{variant}{equal}:{','.join(settings)}"


CASES = (_case("soflow"), *(_case(variant, equal) for equal in ("", TIME, MEMORY) for variant in MEANFLOW))
HYPOTHESES = (
    *(f"time/step_ms(soflow) < time/step_ms({variant})" for variant in MEANFLOW),
    *(f"memory/peak_mib(soflow) < memory/peak_mib({variant})" for variant in MEANFLOW),
    *(f"fid(soflow) < fid({variant}{equal})" for equal in ("", TIME, MEMORY) for variant in MEANFLOW),
)


def foreseen(config: SweepConfig) -> SweepConfig:
    """The cases with the numbers that make them equal, step times taken for proportional to arithmetic."""
    flops = {variant: _cost(_of_one_worker(config, variant)).flops for variant in ("soflow", *MEANFLOW)}
    return equalised(config, {variant: flops["soflow"] / flops[variant] for variant in MEANFLOW})


def prepare(config: SweepConfig) -> SweepConfig:
    """The cases with the numbers that make them equal, step times as the cost study measured them."""
    if any(case.name in {variant + TIME for variant in MEANFLOW} for case in config.cases):
        return equalised(config, measured_quotients(cost_study(config)))
    return equalised(config, {})


def equalised(config: SweepConfig, quotients: dict[str, float]) -> SweepConfig:
    """Steps at equal time and batches at equal memory put into the cases; what a case says itself stays as it is.

    Args:
        quotients: time of SoFlow's step over that of each variant.
    """
    cases = cases_of(config)
    for variant in MEANFLOW:
        if (name := variant + TIME) in cases:
            steps = max(1, round(config.training.total_steps * quotients[variant]))
            cases[name].setdefault("training.total_steps", steps)
        if (name := variant + MEMORY) in cases:
            cases[name].setdefault("training.batch_size", batch_at_equal_memory(config, variant))
    return with_cases(config, cases)


def batch_at_equal_memory(config: SweepConfig, variant: str) -> int:
    """The most samples of a variant's step, over all workers, whose memory is at most that of SoFlow's step."""
    run, memory = _of_one_worker(config, variant), _cost(_of_one_worker(config, "soflow")).peak_bytes

    def peak_bytes(samples: int) -> int:
        return _cost(parse(override(to_dict(run), {"training.batch_size": samples}))).peak_bytes

    share, peak = run.training.batch_size, peak_bytes(run.training.batch_size)
    per_sample = max(1, (peak_bytes(2 * share) - peak) / share)
    samples = max(2, min(2 * share, share + int((memory - peak) / per_sample)))  # to one or two
    while samples > 2 and peak_bytes(samples) > memory:
        samples -= 1
    while peak_bytes(samples + 1) <= memory:
        samples += 1
    return samples * config.resources.num_workers


@functools.cache
def _cost(run: RunConfig) -> Prediction:
    from soflow.cost.predict import predict  # imports torch

    return predict(run)


def _of_one_worker(config: SweepConfig, variant: str) -> RunConfig:
    """The run whose steps a worker takes for a variant, with its share of the batch."""
    share = config.training.batch_size // config.resources.num_workers
    return parse(override(to_dict(config.run), {"objective": VARIANTS[variant], "training.batch_size": share}))


def cost_study(config: SweepConfig) -> CostStudyConfig:
    """The measurement of this study's step times, made now unless it is there already.

    Raises:
        ConfigError: if there is another one of this name.
    """
    from orchestration.cost_study.run import ROUNDS_FILE, STUDY_FILE, run_cost_study  # imports pandas

    study = _cost_config(config)
    folder = study.storage / study.name
    if (folder / ROUNDS_FILE).exists():  # its last file
        if validate(CostStudyConfig, read_yaml(folder / STUDY_FILE)).run != study.run:
            raise ConfigError(f"name = {study.name}: is in {study.storage} with other settings; give another --name")
        return study
    if (folder / STUDY_FILE).exists():  # interrupted, with nothing measured
        shutil.rmtree(folder)
    print("the cost of steps first", flush=True)
    if (status := run_cost_study(study)) != "FINISHED":
        raise SystemExit(EXIT_CODES[status])
    return study


def _cost_config(config: SweepConfig) -> CostStudyConfig:
    launched = {name: value for name, value in to_dict(config).items() if name in LaunchConfig.model_fields}
    resources = to_dict(config.resources) | {"num_workers": 1}
    return validate(
        CostStudyConfig,
        launched
        | {"name": f"{config.name}-cost", "variants": ("soflow", *MEANFLOW), "resources": resources}
        | {"networks": (config.network.name,), "batches": (config.training.batch_size // config.resources.num_workers,)}
        | {"precisions": (config.training.precision,), "compiled": (config.training.compile,)},
    )


def measured_quotients(study: CostStudyConfig) -> dict[str, float]:
    """Time of SoFlow's step over that of each variant, by a cost study that is there."""
    import pandas as pd

    from orchestration.cost_study.run import COSTS_FILE

    costs = pd.read_csv(study.storage / study.name / COSTS_FILE).set_index("variant")
    return costs["time/soflow_to_this"].to_dict()


EXPERIMENT = Experiment(
    __doc__,
    "jvp_cost",
    small=comparison(CASES, 5, hypotheses=HYPOTHESES, training=small_training(400)),
    paper=comparison(CASES, 3, hypotheses=HYPOTHESES),
    prepare=prepare,
    foreseen=foreseen,
)

if __name__ == "__main__":
    raise SystemExit(launch(EXPERIMENT))

"""Does SoFlow or MeanFlow give the better one-step images at equal steps, equal time and equal memory?

MeanFlow's Jacobian-vector product is computed in three ways: a, in one call with the loss (with_gradient); b, in a
separate call (separate); c, in a separate call and only where r ≠ t (subset). Each of them is trained three times and
compared with the same SoFlow.

meanflow_a to meanflow_c take as many steps of as many samples as SoFlow.

meanflow_a_time to meanflow_c_time take as many steps as fit into SoFlow's time. The ratio of step times is measured
once by the cost study (experiments/compare_cost.py) of this network, data set and batch, and read from its folder on
resume. A dry run uses the ratio of operation counts instead.

meanflow_a_memory to meanflow_c_memory take as many steps as SoFlow, with the largest batch whose predicted peak memory
does not exceed SoFlow's. Unlike a measurement, a prediction is the same on all machines. If two objectives need similar
memory, their batches are similar too.

soflow_compiled and meanflow_c_compiled take as many steps as SoFlow, with torch.compile; all others are eager, unless
--training.compile says otherwise.

Both scales use the published settings for ImageNet, as the cost study does. Time is that of optimizer steps without
evaluation, with the threads or GPU of one worker; batch and memory are one worker's share. The report shows how well
the times match.

The hypotheses stated before the run are in HYPOTHESES: SoFlow's steps take less time and memory, and its images are
better in all three comparisons, each against every way, and its compiled steps take less time than those of c. "Better
than MeanFlow" without a letter means better than the best of them, so all three have to be confirmed; c does the least
work. A hypothesis is confirmed or refuted if the paired t-test of the logarithms over seeds, corrected for all
hypotheses, has p < 0.05. Five seeds detect a single effect of 1.7 standard deviations with 80 % power, and one of 3.5
under the strictest correction. Nothing is stopped early. Seeds may be added later, but only the p-values of
experiments/claims.py account for that.

$ python experiments/jvp_cost.py
$ python experiments/jvp_cost.py --network DiT-XS/2 --name larger-jvp-cost
$ python experiments/jvp_cost.py --scale paper --dry-run
"""

from __future__ import annotations

import functools
import shutil
from typing import TYPE_CHECKING

from experiments.launch import Experiment, cases_of, comparison, launch, small_training, with_cases
from orchestration.config import LaunchConfig
from orchestration.cost_study.config import VARIANTS, CostStudyConfig
from orchestration.interruption import exit_code
from orchestration.sweep.config import SweepConfig
from orchestration.terminal.command_line import validate
from soflow.config import RunConfig, override, parse, to_dict
from soflow.config_base import ConfigError
from soflow.config_files import read_yaml

if TYPE_CHECKING:
    from soflow.cost.predict import Prediction

MEANFLOW = ("meanflow_a", "meanflow_b", "meanflow_c")
TIME, MEMORY = "_time", "_memory"
"""Suffixes of case names: the quantity that equals SoFlow's."""
COMPILED = "_compiled"


def _case(variant: str, suffix: str = "") -> str:
    settings = [f"objective.{name}={value}" for name, value in VARIANTS[variant].items()]
    if suffix == COMPILED:
        settings.append("training.compile=true")
    return f"{variant}{suffix}:{','.join(settings)}"


CASES = (
    _case("soflow"),
    *(_case(variant, suffix) for suffix in ("", TIME, MEMORY) for variant in MEANFLOW),
    *(_case(variant, COMPILED) for variant in ("soflow", "meanflow_c")),
)
HYPOTHESES = (
    *(f"time/step_ms(soflow) < time/step_ms({variant})" for variant in MEANFLOW),
    *(f"memory/peak_mib(soflow) < memory/peak_mib({variant})" for variant in MEANFLOW),
    *(f"fid(soflow) < fid({variant}{suffix})" for suffix in ("", TIME, MEMORY) for variant in MEANFLOW),
    f"time/step_ms(soflow{COMPILED}) < time/step_ms(meanflow_c{COMPILED})",
)


def preview(config: SweepConfig) -> SweepConfig:
    """Equalize the cases with step times assumed proportional to operation counts, without measuring."""
    flops = {variant: _cost(_worker_run(config, variant)).flops for variant in ("soflow", *MEANFLOW)}
    return equalize(config, {variant: flops["soflow"] / flops[variant] for variant in MEANFLOW})


def prepare(config: SweepConfig) -> SweepConfig:
    """Equalize the cases with step times measured by the cost study, which runs first if necessary."""
    _check_compiler(config)
    return equalize(config, measured_ratios(finished_cost_study(config)) if _at_equal_time(config) else {})


def _check_compiler(config: SweepConfig) -> None:
    """Without a compiler on this machine, compiled cases would train eagerly; a cluster's workers may have one."""
    if config.address is None and any(case.name.endswith(COMPILED) for case in config.cases):
        from soflow.models import best_device
        from soflow.training.compilation import compiler_problem  # imports torch

        if problem := compiler_problem(best_device()):
            raise ConfigError(
                f"cases: soflow{COMPILED} and meanflow_c{COMPILED} cannot be compiled here ({problem}); install a C++ "
                "compiler, or name the other cases with --cases"
            )


def _at_equal_time(config: SweepConfig) -> tuple[str, ...]:
    """List the variants of MeanFlow whose step times are needed."""
    names = {case.name for case in config.cases}
    return tuple(variant for variant in MEANFLOW if variant + TIME in names)


def equalize(config: SweepConfig, ratios: dict[str, float]) -> SweepConfig:
    """Set the steps of cases at equal time and the batches of cases at equal memory, unless a case sets them itself.

    Args:
        ratios: time of SoFlow's step over that of each variant.
    """
    cases = cases_of(config)
    for variant in MEANFLOW:
        if (name := variant + TIME) in cases:
            steps = max(1, round(config.training.total_steps * ratios[variant]))
            cases[name].setdefault("training.total_steps", steps)
        if (name := variant + MEMORY) in cases:
            cases[name].setdefault("training.batch_size", batch_at_equal_memory(config, variant))
    return with_cases(config, cases)


def batch_at_equal_memory(config: SweepConfig, variant: str) -> int:
    """Return the largest batch of a variant, over all workers, with a peak memory of at most SoFlow's."""
    run, memory = _worker_run(config, variant), _cost(_worker_run(config, "soflow")).peak_bytes

    def peak_bytes(samples: int) -> int:
        return _cost(parse(override(to_dict(run), {"training.batch_size": samples}))).peak_bytes

    share, peak = run.training.batch_size, peak_bytes(run.training.batch_size)
    per_sample = max(1, (peak_bytes(2 * share) - peak) / share)
    # Memory is almost linear in the batch, so the linear estimate is off by one or two; the loops correct it.
    samples = max(2, min(2 * share, share + int((memory - peak) / per_sample)))
    while samples > 2 and peak_bytes(samples) > memory:
        samples -= 1
    while peak_bytes(samples + 1) <= memory:
        samples += 1
    return samples * config.resources.num_workers


@functools.cache
def _cost(run: RunConfig) -> Prediction:
    from soflow.cost.predict import predict  # imports torch

    return predict(run)


def _worker_run(config: SweepConfig, variant: str) -> RunConfig:
    """Return the run of a variant with one worker's share of the batch."""
    share = config.training.batch_size // config.resources.num_workers
    return parse(override(to_dict(config.run), {"objective": VARIANTS[variant], "training.batch_size": share}))


def finished_cost_study(config: SweepConfig) -> CostStudyConfig:
    """Return the cost study of these step times; run it if it is not finished.

    Raises:
        ConfigError: if another cost study has this name.
    """
    from orchestration.cost_study.run import CONFIG_FILE, ROUNDS_FILE, run_cost_study  # imports pandas

    costs = _cost_config(config)
    folder = costs.storage / costs.name
    if (folder / ROUNDS_FILE).exists():  # the file that is written last
        measured = validate(CostStudyConfig, read_yaml(folder / CONFIG_FILE))
        if measured.run != costs.run or not set(costs.variants) <= set(measured.variants):
            raise ConfigError(
                f"name = {costs.name}: exists in {costs.storage} with other settings; choose another --name"
            )
        return costs
    if (folder / CONFIG_FILE).exists():  # interrupted before the first result
        shutil.rmtree(folder)
    print("measuring the cost of steps first", flush=True)
    if (status := run_cost_study(costs)) != "FINISHED":
        raise SystemExit(exit_code(status))
    return costs


def _cost_config(config: SweepConfig) -> CostStudyConfig:
    if config.training.compile == "auto":
        raise ConfigError(
            "training.compile = auto: must be true or false for cases at equal time, whose steps are timed before"
        )
    launch_values = {name: value for name, value in to_dict(config).items() if name in LaunchConfig.model_fields}
    resources = to_dict(config.resources) | {"num_workers": 1}
    return validate(
        CostStudyConfig,
        launch_values
        | {"name": f"{config.name}-cost", "variants": ("soflow", *_at_equal_time(config)), "resources": resources}
        | {"networks": (config.network.name,), "batches": (config.training.batch_size // config.resources.num_workers,)}
        | {"precisions": (config.training.precision,), "compiled": (config.training.compile,)},
    )


def measured_ratios(cost_study: CostStudyConfig) -> dict[str, float]:
    """Read the time of SoFlow's step over that of each variant from a finished cost study."""
    import pandas as pd

    from orchestration.cost_study.run import COSTS_FILE

    costs = pd.read_csv(cost_study.storage / cost_study.name / COSTS_FILE).set_index("variant")
    return costs["time/soflow_to_this"].to_dict()


EXPERIMENT = Experiment(
    __doc__,
    "jvp_cost",
    small=comparison(CASES, 5, hypotheses=HYPOTHESES, training=small_training(400)),
    paper=comparison(CASES, 3, hypotheses=HYPOTHESES),
    prepare=prepare,
    preview=preview,
)

if __name__ == "__main__":
    raise SystemExit(launch(EXPERIMENT))

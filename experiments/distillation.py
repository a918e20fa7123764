"""Does SoFlow learn better from a trained teacher than from data, even if the teacher's training is counted?

SoFlow's paper does not cover distillation. A flow-matching run is trained first, then three kinds of students:
`scratch`, SoFlow from data; `distilled`, SoFlow's losses on the teacher's velocity for as many steps, which costs the
teacher's training in addition; and `scratch_longer`, SoFlow from data for as many steps as teacher and distilled run
cost together.

All learn the same velocity field: the teacher is trained with the students' w and m, and the distilled student adds no
guidance (w = 1). Network, data, optimizer, times, λ and r(k, K) are the same. The teacher takes as many steps as
`scratch`. Cost is the number of floating-point operations of all optimizer steps, counted on meta tensors, because
measured times would give another number of steps each time. Evaluation is not counted. One teacher serves all seeds,
and its full cost is charged to each of them; the variance over seeds does not include the variance over teachers.

The hypotheses stated before the run are in HYPOTHESES: a target without variance helps; it helps enough to pay for the
teacher; and more steps help, without which the comparison at equal cost would be meaningless. A hypothesis is confirmed
or refuted if the paired t-test of the logarithms over seeds, corrected for all three, has p < 0.05. Five seeds detect a
single effect of 1.7 standard deviations with 80 % power, and one of 2.3 under the strictest correction. Nothing is
stopped early. Seeds may be added later, but only the p-values of experiments/claims.py account for that.

$ python experiments/distillation.py
$ python experiments/distillation.py --dataset fashion_mnist --name fashion-distillation
$ python experiments/distillation.py --scale paper --dry-run
"""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

from experiments.launch import Experiment, cases_of, comparison, launch, small_training, with_cases
from orchestration.config import LaunchConfig, TrainConfig
from orchestration.interruption import exit_code
from orchestration.resuming import MAY_CHANGE
from orchestration.storage import RUN_FILE
from orchestration.sweep.config import SweepConfig
from orchestration.sweep.ticket import trial_config
from orchestration.terminal.command_line import validate
from orchestration.tracking.schema import CASE
from orchestration.train import RECORDED_FILE, train
from soflow.config import RunConfig, flatten, override, parse, to_dict
from soflow.config_base import ConfigError
from soflow.config_files import read_yaml
from soflow.files import read_number
from soflow.objectives.config import DistillationConfig, FlowMatchingConfig

SCRATCH, DISTILLED, LONGER = "scratch", "distilled", "scratch_longer"
CASES = (
    f"{SCRATCH}:objective.name=soflow",
    f"{DISTILLED}:objective.name=distillation",
    f"{LONGER}:objective.name=soflow",
)
HYPOTHESES = (
    "fid(distilled) < fid(scratch)",
    "fid(distilled) < fid(scratch_longer)",
    "fid(scratch_longer) < fid(scratch)",
)


def prepare(config: SweepConfig) -> SweepConfig:
    """Train the teacher, or resume its training, if necessary; return the configuration with its checkpoint."""
    config = at_equal_cost(config)
    if not _cases_without_teacher(config):
        return config
    return _with_teacher(config, _trained_checkpoint(_teacher_training(config)))


def preview(config: SweepConfig) -> SweepConfig:
    """Return the configuration with a placeholder for the teacher, without training anything."""
    config = at_equal_cost(config)
    return _with_teacher(config, _meta_checkpoint(teacher_run(config)))


def at_equal_cost(config: SweepConfig) -> SweepConfig:
    """Return the configuration with shared settings and the steps that make costs equal, without a teacher.

    Explicit settings of a case are not changed.

    Raises:
        ConfigError: if the objective is not soflow.
    """
    if config.objective.name != "soflow":
        raise ConfigError(f"objective.name = {config.objective.name}: must be soflow, whose losses the students share")
    cases = cases_of(config)
    for name in _cases_without_teacher(config):
        cases[name] |= _student_settings(config) | cases[name]
    if cases.keys() >= {SCRATCH, DISTILLED, LONGER}:
        teacher = teacher_run(config)
        config = with_cases(config, cases)
        complete = _with_teacher(config, _meta_checkpoint(teacher))
        scratch, distilled = (trial_config(config.run, {CASE: name}, complete.cases) for name in (SCRATCH, DISTILLED))
        cases[LONGER].setdefault("training.total_steps", steps_at_equal_cost(teacher, distilled, scratch))
    return with_cases(config, cases)


def _cases_without_teacher(config: SweepConfig) -> list[str]:
    """Return the names of distilled cases without a configured teacher."""
    return [
        name
        for name, changes in cases_of(config).items()
        if changes.get("objective.name") == "distillation" and "objective.teacher" not in changes
    ]


def _with_teacher(config: SweepConfig, teacher: Path) -> SweepConfig:
    cases = cases_of(config)
    changed = {name: cases[name] | {"objective.teacher": teacher} for name in _cases_without_teacher(config)}
    return with_cases(config, cases | changed)


def _student_settings(config: SweepConfig) -> dict[str, Any]:
    """Return the objective's settings for a distilled student: all except guidance, which the teacher has learned."""
    defaults = to_dict(DistillationConfig())
    excluded = {"name", "teacher", "guidance_strength", "velocity_mix"}
    shared = {name: value for name, value in to_dict(config.objective).items() if name not in excluded}
    return {f"objective.{name}": value for name, value in shared.items() if value != defaults[name]}


def teacher_run(config: SweepConfig) -> RunConfig:
    """Return the teacher's run: SoFlow's flow-matching loss alone, with the students' guidance and number of steps."""
    values = to_dict(config.objective)
    objective = {name: values[name] for name in FlowMatchingConfig.model_fields} | {
        "name": "flow_matching",
        "time_mean": values["time_mean"][0],
        "time_std": values["time_std"][0],
    }
    return parse(override(to_dict(config.run), {"objective": objective, "evaluation.nfe": None}))


def steps_at_equal_cost(teacher: RunConfig, distilled: RunConfig, scratch: RunConfig) -> int:
    """Compute the steps of `scratch` with the operation count of the two other runs together, rounded."""
    flops = sum(run.training.total_steps * _step_flops(run) for run in (teacher, distilled))
    return round(flops / _step_flops(scratch))


@functools.cache
def _step_flops(run: RunConfig) -> int:
    from soflow.cost.predict import predict  # imports torch

    return predict(run).flops


@functools.cache
def _meta_checkpoint(teacher: RunConfig) -> Path:
    """Write a temporary checkpoint of a run on the meta device: shapes of weights without content.

    Lets soflow.cost.predict count the operations of a student's step before the teacher is trained.
    """
    import torch

    from soflow.data.registry import SOURCES
    from soflow.training import checkpoints
    from soflow.training.build import build_network

    num_classes = SOURCES[teacher.dataset.name].num_classes
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    with torch.device("meta"):
        network = build_network(teacher, num_classes)
    state = {"ema": network.state_dict(), "config": to_dict(teacher), "num_classes": num_classes}
    return checkpoints.save(state, folder, step=1)


def _teacher_training(config: SweepConfig) -> TrainConfig:
    launch_values = {name: value for name, value in to_dict(config).items() if name in LaunchConfig.model_fields}
    teacher = validate(TrainConfig, launch_values | to_dict(teacher_run(config)) | {"name": f"{config.name}-teacher"})
    given = {path: value for path, value in config.given.items() if path.partition(".")[0] in MAY_CHANGE}
    return teacher.with_given({path: value for path, value in given.items() if path in flatten(to_dict(teacher))})


def _trained_checkpoint(config: TrainConfig) -> Path:
    """Return the last checkpoint of a run; train or resume it if necessary.

    Raises:
        ConfigError: if another run has this name.
    """
    from soflow.training import checkpoints  # imports torch

    folder = (config.storage / config.name).absolute()
    if (folder / RUN_FILE).exists():
        if validate(TrainConfig, read_yaml(folder / RUN_FILE)).run != config.run:
            raise ConfigError(
                f"name = {config.name}: exists in {config.storage} with other settings; choose another --name"
            )
        config = config.model_copy(update={"resume": str(folder)})
    recorded_step = folder / RECORDED_FILE
    total = config.training.total_steps
    if (read_number(recorded_step) or 0) < total:
        print(f"training the teacher first: {total} steps of flow matching", flush=True)
        if (status := train(config)) != "FINISHED":
            raise SystemExit(exit_code(status))
    return checkpoints.path_of(folder, total)


EXPERIMENT = Experiment(
    __doc__,
    "distillation",
    small=comparison(CASES, 5, hypotheses=HYPOTHESES, training=small_training(600)),
    paper=comparison(CASES, 3, hypotheses=HYPOTHESES),
    prepare=prepare,
    preview=preview,
)

if __name__ == "__main__":
    raise SystemExit(launch(EXPERIMENT))

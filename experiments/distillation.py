"""Does SoFlow learn better from a trained teacher than from scratch, also once the teacher's training is paid for?

SoFlow's paper leaves distillation open. A flow-matching run is trained first, then students of three kinds: `scratch`,
SoFlow from data; `distilled`, SoFlow's losses towards the teacher's velocity for as many steps, which costs the
teacher's training on top; and `scratch_longer`, SoFlow from data for so many steps that its cost is that of the teacher
and the distilled run together.

All aim at the same velocity field: the teacher is trained with the students' w and m, and the distilled student adds
no guidance of its own (w = 1). Network, data, optimiser, times, lambda and r(k, K) are the same. The teacher makes as
many steps as `scratch`. Cost is floating-point operations of all optimiser steps, counted on tensors without content:
a clock would give other steps each time. Evaluation is left out. One teacher serves all seeds, each of which is
charged for all of it; the scatter over seeds holds none of teachers.

What is held to be true before the run is in HYPOTHESES: a target without scatter helps, so much that it pays; the last
one says that more steps help at all, without which equal cost would tell nothing. One is called confirmed or refuted
where the paired t-test of the logarithms over the seeds, corrected for all three, has p < 0.05; five seeds show a
single effect of 1.7 standard deviations with a probability of 80 %, and one of 2.3 where the correction is strictest.
Nothing is stopped early, and no seed is added after looking.

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
from orchestration.config import EXIT_CODES, LaunchConfig, TrainConfig
from orchestration.storage import RUN_FILE
from orchestration.sweep.config import SweepConfig
from orchestration.sweep.ticket import trial_config
from orchestration.terminal.command_line import validate
from orchestration.tracking.schema import CASE
from orchestration.train import RECORDED_FILE, train
from soflow.config import RunConfig, override, parse, to_dict
from soflow.config_base import ConfigError
from soflow.config_files import read_yaml
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
    """The study's cases with the teacher, which is trained first, or to its end, if it is not."""
    config = at_equal_cost(config)
    if not _untaught(config):
        return config
    return _taught(config, _trained(_teacher_training(config)))


def foreseen(config: SweepConfig) -> SweepConfig:
    """The same with a teacher that has shapes and no content."""
    config = at_equal_cost(config)
    return _taught(config, _stand_in(teacher_run(config)))


def at_equal_cost(config: SweepConfig) -> SweepConfig:
    """The cases with the settings that make them alike and the steps that make cost equal, without a teacher.

    What a case says itself stays as it is.

    Raises:
        ConfigError: if the study's objective is not soflow.
    """
    if config.objective.name != "soflow":
        raise ConfigError(f"objective.name = {config.objective.name}: must be soflow, whose losses the students share")
    cases = cases_of(config)
    for name in _untaught(config):
        cases[name] |= _of_students(config) | cases[name]
    if cases.keys() >= {SCRATCH, DISTILLED, LONGER}:
        teacher = teacher_run(config)
        config = with_cases(config, cases)
        runs = _taught(config, _stand_in(teacher))
        scratch, distilled = (trial_config(config.run, {CASE: name}, runs.cases) for name in (SCRATCH, DISTILLED))
        cases[LONGER].setdefault("training.total_steps", steps_at_equal_cost(teacher, distilled, scratch))
    return with_cases(config, cases)


def _untaught(config: SweepConfig) -> list[str]:
    """Names of the cases that want a teacher and name none."""
    return [
        name
        for name, changes in cases_of(config).items()
        if changes.get("objective.name") == "distillation" and "objective.teacher" not in changes
    ]


def _taught(config: SweepConfig, teacher: Path) -> SweepConfig:
    cases = cases_of(config)
    return with_cases(
        config, cases | {name: cases[name] | {"objective.teacher": teacher} for name in _untaught(config)}
    )


def _of_students(config: SweepConfig) -> dict[str, Any]:
    """What a distilled student has of the study's objective: all but guidance, which is the teacher's."""
    own = to_dict(DistillationConfig())
    apart = {"name", "teacher", "guidance_strength", "velocity_mix"}
    shared = {name: value for name, value in to_dict(config.objective).items() if name not in apart}
    return {f"objective.{name}": value for name, value in shared.items() if value != own[name]}


def teacher_run(config: SweepConfig) -> RunConfig:
    """SoFlow's flow-matching part alone, for the students' guidance and as many steps."""
    values = to_dict(config.objective)
    objective = {name: values[name] for name in FlowMatchingConfig.model_fields} | {
        "name": "flow_matching",
        "time_mean": values["time_mean"][0],
        "time_std": values["time_std"][0],
    }
    return parse(override(to_dict(config.run), {"objective": objective, "evaluation.nfe": None}))


def steps_at_equal_cost(teacher: RunConfig, distilled: RunConfig, scratch: RunConfig) -> int:
    """Steps of `scratch` that take as many floating-point operations as all of the two others', to half a step."""
    spent = sum(run.training.total_steps * _step_flops(run) for run in (teacher, distilled))
    return round(spent / _step_flops(scratch))


@functools.cache
def _step_flops(run: RunConfig) -> int:
    from soflow.cost.predict import predict  # imports torch

    return predict(run).flops


@functools.cache
def _stand_in(teacher: RunConfig) -> Path:
    """A checkpoint of a run with the shapes of its weights and without their content; it lasts as long as this process.

    For the cost of a step, which soflow.cost.prediction counts on such tensors, before there is a teacher.
    """
    import torch

    from soflow.cost.synthetic import CLASSES
    from soflow.training import checkpoints
    from soflow.training.build import build_network

    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    with torch.device("meta"):
        network = build_network(teacher, CLASSES)
    state = {"ema": network.state_dict(), "config": to_dict(teacher), "num_classes": CLASSES}
    return checkpoints.save(state, folder, step=1)


def _teacher_training(config: SweepConfig) -> TrainConfig:
    launched = {name: value for name, value in to_dict(config).items() if name in LaunchConfig.model_fields}
    return validate(TrainConfig, launched | to_dict(teacher_run(config)) | {"name": f"{config.name}-teacher"})


def _trained(config: TrainConfig) -> Path:
    """The last checkpoint of a run, which is trained now, or to its end, unless it is there already.

    Raises:
        ConfigError: if there is another run of this name.
    """
    from soflow.training import checkpoints  # imports torch

    folder = (config.storage / config.name).absolute()
    if (folder / RUN_FILE).exists():
        if validate(TrainConfig, read_yaml(folder / RUN_FILE)).run != config.run:
            raise ConfigError(f"name = {config.name}: is in {config.storage} with other settings; give another --name")
        config = config.model_copy(update={"resume": str(folder)})
    recorded = folder / RECORDED_FILE
    total = config.training.total_steps
    if not recorded.exists() or int(recorded.read_text()) < total:
        print(f"the teacher first: {total} steps of flow matching", flush=True)
        if (status := train(config)) != "FINISHED":
            raise SystemExit(EXIT_CODES[status])
    return checkpoints.path_of(folder, total)


EXPERIMENT = Experiment(
    __doc__,
    "distillation",
    small=comparison(CASES, 5, hypotheses=HYPOTHESES, training=small_training(600)),
    paper=comparison(CASES, 3, hypotheses=HYPOTHESES),
    prepare=prepare,
    foreseen=foreseen,
)

if __name__ == "__main__":
    raise SystemExit(launch(EXPERIMENT))

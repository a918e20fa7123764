"""Experiments that prepare inputs before their sweep: which settings are shared, and that preparation runs once."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from helpers import CPU, tiny_teacher

from experiments import distillation, jvp_cost
from orchestration.sweep import search_space
from orchestration.sweep.config import SweepConfig
from orchestration.sweep.ticket import trial_config
from orchestration.terminal.command_line import read_command_line
from orchestration.tracking.schema import CASE
from soflow.config import RunConfig, override, parse, to_dict
from soflow.config_base import ConfigError
from soflow.config_files import to_yaml
from soflow.cost.measure import count_step
from soflow.cost.predict import predict
from soflow.cost.synthetic import synthetic_source
from soflow.training import compilation
from soflow.training.trainer import Trainer


def configured(study, storage: Path, *flags: str, scale: str = "small") -> SweepConfig:
    flags = (*flags, "--storage", str(storage), "--name", "study")
    return read_command_line(SweepConfig, "", list(flags), study.EXPERIMENT.layers(scale))


def trial(config: SweepConfig, case: str) -> RunConfig:
    return trial_config(config.run, {CASE: case}, config.cases)


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("scale", ["small", "paper"])
@pytest.mark.parametrize("study", [distillation, jvp_cost], ids=lambda study: study.__name__)
def test_cases_can_be_trained_as_they_stand(study, scale, tmp_path):
    config = configured(study, tmp_path, scale=scale)
    search_space.build(config)
    assert {term for text in config.hypotheses for term in [text.split("(")[1].split(")")[0]]} <= {
        case.name for case in config.cases
    }
    assert config.case_seeds >= 3


# Distillation.


def counted_flops(run: RunConfig) -> int:
    """Of a step that is really taken, the second as in a prediction."""
    trainer = Trainer(run, synthetic_source(run.dataset), CPU)
    trainer.take_step()
    return sum(count_step(trainer).flops.values())


def test_the_longer_run_costs_what_teacher_and_student_do(tmp_path):
    config = configured(distillation, tmp_path, "--training.batch-size", "16", "--training.total-steps", "5000")
    found = distillation.at_equal_cost(config)
    student = override(to_dict(trial(found, "distilled")), {"objective.teacher": str(tiny_teacher("DiT-XXS/4"))})
    per_step = {
        "teacher": counted_flops(distillation.teacher_run(config)),
        "distilled": counted_flops(parse(student)),
        "scratch": counted_flops(trial(found, "scratch")),
    }
    assert per_step["teacher"] < per_step["distilled"] < 2 * per_step["teacher"]
    steps = trial(found, "scratch_longer").training.total_steps
    spent = 5000 * (per_step["teacher"] + per_step["distilled"])
    assert steps * per_step["scratch"] == pytest.approx(spent, rel=1e-3)  # attention's kernels are others
    assert trial(found, "scratch").training.total_steps == trial(found, "distilled").training.total_steps == 5000
    assert distillation.at_equal_cost(config) == found


@pytest.mark.parametrize("scale", ["small", "paper"])
def test_students_and_teacher_aim_at_the_same(scale, tmp_path):
    own = ("--network", "DiT-XXS/4", "--objective.weight-power", "0.75", "--objective.velocity-mix", "0.5")
    config = configured(
        distillation, tmp_path, *own, *("--cases", *distillation.CASES[:2]), "--hypotheses", scale=scale
    )
    found = distillation.preview(config)
    scratch, distilled = (to_dict(trial(found, name)) for name in ("scratch", "distilled"))
    theirs = to_dict(distillation.teacher_run(config))
    objectives = [values.pop("objective") for values in (scratch, distilled, theirs)]
    assert scratch == distilled == override(theirs, {"evaluation.nfe": scratch["evaluation"]["nfe"]})
    of_scratch, of_distilled, of_teacher = objectives
    assert (of_distilled.pop("guidance_strength"), of_distilled.pop("velocity_mix")) == (1, 1)
    assert of_distilled.pop("teacher")
    for name, value in of_distilled.items():
        assert name == "name" or of_scratch[name] == value
    for name, value in of_teacher.items():
        wanted = of_scratch[name][0] if name.startswith("time_") else of_scratch[name]
        assert name == "name" or value == wanted
    assert of_teacher["velocity_mix"] == 0.5
    assert not list(tmp_path.iterdir())  # nothing is run to foresee


def made_up_teacher(config: SweepConfig, folder: Path, recorded: int) -> Path:
    """The folder of a teacher's run, as far as a study looks into it."""
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text(to_yaml(distillation._teacher_training(config)))
    (folder / "recorded_step").write_text(str(recorded))
    return folder


def test_a_trained_teacher_is_found(tmp_path):
    flags = ("--training.total-steps", "40", "--cases", *distillation.CASES[:2], "--hypotheses")
    config = configured(distillation, tmp_path, *flags)
    folder = made_up_teacher(config, tmp_path / "study-teacher", recorded=40)
    before = content(tmp_path)
    prepared = distillation.prepare(config)
    assert trial(prepared, "distilled").objective.teacher == folder / "checkpoint-00000040.pt"
    assert distillation.prepare(config) == prepared
    assert content(tmp_path) == before
    other = configured(distillation, tmp_path, *flags, "--training.batch-size", "32")
    with pytest.raises(ConfigError, match=r"^name = study-teacher: exists in .* with other settings; choose another"):
        distillation.prepare(other)


def test_only_soflow_can_be_distilled_into(tmp_path):
    config = configured(distillation, tmp_path, "--objective", "meanflow")
    with pytest.raises(ConfigError, match=r"^objective.name = meanflow: must be soflow, "):
        distillation.prepare(config)


# The cost of the Jacobian-vector product.


def test_equal_memory_is_the_largest_batch_that_takes_no_more(tmp_path):
    config = configured(jvp_cost, tmp_path, "--training.batch-size", "32", "--resources.num-workers", "2")
    share, rest = divmod(jvp_cost.batch_at_equal_memory(config, "meanflow_a"), 2)
    assert rest == 0

    def peak_bytes(case: str, samples: int) -> int:
        return predict(parse(override(to_dict(trial(config, case)), {"training.batch_size": samples}))).peak_bytes

    allowed = peak_bytes("soflow", 16)
    assert peak_bytes("meanflow_a", share) <= allowed < peak_bytes("meanflow_a", share + 1)


def made_up_cost_study(config: SweepConfig, ratios: dict[str, float]) -> None:
    """The folder of a finished cost study, as far as the experiment reads it."""
    study = jvp_cost._cost_config(config)
    folder = study.storage / study.name
    folder.mkdir()
    (folder / "study.yaml").write_text(to_yaml(study))
    rows = [{"variant": name, "time/soflow_to_this": value} for name, value in ratios.items()]
    pd.DataFrame(rows).to_csv(folder / "costs.csv", index=False)
    (folder / "rounds.csv").write_text("variant\n")


def test_equal_time_is_read_back_from_the_cost_study(tmp_path):
    cases = [case for case in jvp_cost.CASES if not case.partition(":")[0].endswith("_memory")]
    config = configured(jvp_cost, tmp_path, "--training.total-steps", "1000", "--cases", *cases, "--hypotheses")
    made_up_cost_study(config, {"soflow": 1, "meanflow_a": 0.5, "meanflow_b": 0.6666, "meanflow_c": 1.25})
    before = content(tmp_path)
    prepared = jvp_cost.prepare(config)
    steps = {name: trial(prepared, name).training.total_steps for name in (case.partition(":")[0] for case in cases)}
    equal = dict.fromkeys((name for name in steps if not name.endswith("_time")), 1000)
    assert steps == equal | {"meanflow_a_time": 500, "meanflow_b_time": 667, "meanflow_c_time": 1250}
    assert jvp_cost.prepare(config) == prepared
    assert content(tmp_path) == before
    other = configured(jvp_cost, tmp_path, "--training.batch-size", "32", "--cases", *cases, "--hypotheses")
    with pytest.raises(
        ConfigError, match=r"^name = study-cost: exists in .* with other settings; choose another --name"
    ):
        jvp_cost.prepare(other)


def test_the_steps_that_are_measured_are_those_that_are_trained(tmp_path):
    from orchestration.cost_study.config import cells, run_values

    config = configured(jvp_cost, tmp_path, "--network", "DiT-XS/2", "--training.batch-size", "32")
    study = jvp_cost._cost_config(config)
    (cell,) = cells(study)
    lasting = {f"training.{name}": getattr(config.training, name) for name in ("total_steps", "report_every")}
    for variant in study.variants:
        measured = override(run_values(study, cell, variant, cell.guidance, compiled=False), lasting)
        assert parse(measured) == trial(config, variant)


def test_steps_that_compile_by_choice_are_not_compared_at_equal_time(tmp_path):
    config = configured(jvp_cost, tmp_path, "--training.compile", "auto")
    with pytest.raises(ConfigError, match=r"^training.compile = auto: must be true or false for cases at equal time"):
        jvp_cost.prepare(config)


def test_compiled_steps_are_not_compared_without_a_compiler(tmp_path, monkeypatch):
    """On this machine; the workers of a cluster may have one."""
    monkeypatch.setattr(compilation, "compiler_problem", lambda device: "no C++ compiler")
    config = configured(jvp_cost, tmp_path)
    with pytest.raises(ConfigError, match=r"^cases: soflow_compiled and .* here \(no C\+\+ compiler\); install a C"):
        jvp_cost.prepare(config)
    jvp_cost._check_compiler(configured(jvp_cost, tmp_path, "--address", "head:6379"))
    jvp_cost._check_compiler(configured(jvp_cost, tmp_path, "--cases", "soflow", "--hypotheses"))

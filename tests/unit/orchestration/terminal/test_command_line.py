"""The command line: layers of files and flags, and for any fault one line, exit code 2 and no slow import."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import REPOSITORY

from experiments.compare_runs import CompareOptions
from experiments.evaluate import EvaluateOptions
from experiments.export_checkpoint import ExportOptions
from experiments.predict_cost import PredictOptions
from experiments.sample import SampleOptions
from orchestration.config import TrainConfig
from orchestration.sweep.config import SweepConfig
from orchestration.terminal.command_line import read_command_line
from soflow.config import RunConfig, flatten, parse, to_dict
from soflow.config_files import to_yaml
from tests.unit.soflow.test_config import RUN_PATHS

pytestmark = pytest.mark.filterwarnings("error")  # a warning would be one more line on the terminal
MODELS = [TrainConfig, SweepConfig]


def read(*arguments: str, model=TrainConfig):
    return read_command_line(model, "A test.", [str(argument) for argument in arguments])


@pytest.fixture
def refused(capsys):
    """Reads a faulty command line and returns the one line that it got."""

    def read_faulty(*arguments: str, model=TrainConfig) -> str:
        with pytest.raises(SystemExit) as caught:
            read(*arguments, model=model)
        captured = capsys.readouterr()
        assert caught.value.code == 2
        assert captured.out == ""
        assert captured.err.endswith("\n")
        assert captured.err.count("\n") == 1, captured.err
        assert captured.err.startswith("error: ")
        return captured.err[len("error: ") : -1]

    return read_faulty


SOURCES = "cifar10, digits, fashion_mnist, gaussians, image_folder"
FAULTS = [
    # flags, what the line must say
    ("--objective.flow-matching-fraction 1.5", "objective.flow_matching_fraction = 1.5: .*less than or equal to 1"),
    (
        "--objective.flow-matching-fraction -0.5",
        "objective.flow_matching_fraction = -0.5: .*greater than or equal to 0",
    ),
    ("--objective.r-init 0.1 --objective.r-end 0.5", "r_end = 0.5 must not exceed r_init = 0.1"),
    ("--objective.r-end 0", "objective.r_end = 0: .*greater than 0"),
    ("--objective.r-init 2", "objective.r_init = 2: .*less than or equal to 1"),
    ("--objective.guidance-strength 0.5", "objective.guidance_strength = 0.5: .*greater than or equal to 1"),
    ("--objective.velocity-mix 1.1", "objective.velocity_mix = 1.1: .*less than or equal to 1"),
    (
        "--training.batch-size 10 --resources.num-workers 3",
        "training.batch_size = 10: must be divisible by resources.num_workers = 3",
    ),
    ("--tags purpose", "tags.0 = purpose: must be NAME=VALUE"),
    ("--tags a=b purpose=", "tags.1 = purpose=: must be NAME=VALUE"),
    ("--tags a//b=1", "tags.0 = a//b=1: must be NAME=VALUE"),
    ("--tags a=1 a=2", "tags = .*: a is there twice"),
    ("--dataset cifar", f"dataset = cifar: must be one of {SOURCES}, latents"),
    ("--dataset.name cifar", f"dataset = cifar: must be one of {SOURCES}"),
    (
        "--objective ddpm",
        "objective = ddpm: must be one of alpha_flow, distillation, esc, flow_matching, improved_meanflow",
    ),
    ("--network DiT-XXS/3", "network = DiT-XXS/3: must be one of DiT-B/1, "),
    (
        "--dataset image_folder --dataset.image-size 9 --network DiT-XXS/2",
        "network.name = DiT-XXS/2: 2 must divide the side 9 of what dataset.name = image_folder",
    ),
    (
        "--objective meanflow --objective.label-drop 0 --objective.guidance-kappa 0.5",
        "label_drop = 0 must be above 0 when guidance is on .*guidance_kappa = 0.5",
    ),
    (
        "--objective.label-drop 0 --objective.guidance-strength 2",
        "label_drop = 0 must be above 0 when guidance_strength = 2 exceeds 1",
    ),
    ("--objective.r-ned 0.1", "--objective.r-ned: unknown flag"),
    (
        "--objective meanflow --objective.r-end 0.1",
        "r-end: unknown flag for objective meanflow; soflow, distillation have",
    ),
    ("stray", "stray: unexpected value"),
    ("--name a/b", "name = a/b: must be a plain folder name"),
    ("--config nowhere.yaml", "nowhere.yaml: cannot be read as YAML .*No such file"),
    ("--config", "config: needs a YAML file"),
    ("--training.total-steps abc", "training.total_steps = abc: must be an integer"),
    ("--training.total-steps", "training.total_steps: needs a value, an integer"),
    ("--training.precision fp8", "training.precision = fp8: must be 'fp32', 'tf32' or 'bf16'"),
    ("--precision bf16", "--precision: unknown flag; did you mean --training.precision"),
    ("--training.totl-steps 3", "did you mean --training.total-steps"),
    ("--seed 1 2", "2: unexpected value"),
    ("--dataset.conditional maybe", "maybe: unexpected value"),
    ("--training.compile maybe", "training.compile = maybe: must be true, false or auto$"),
]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("flags", "message"), FAULTS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_faulty_flag_is_one_line_and_exit_code_2(flags, message, model, refused):
    line = refused(*flags.split(), model=model)
    assert re.search(message, line), line


YAML_FAULTS = [
    ("objective: {flow_matching_fraction: 1.5}", "objective.flow_matching_fraction = 1.5: .*or equal to 1"),
    ("objective: {r_init: 0.1, r_end: 0.5}", "r_end = 0.5 must not exceed r_init = 0.1"),
    ("objective: {r_end: 0}", "objective.r_end = 0: .*greater than 0"),
    ("objective: {guidance_strength: 0.5}", "objective.guidance_strength = 0.5: .*or equal to 1"),
    ("objective: {velocity_mix: -0.1}", "objective.velocity_mix = -0.1: .*or equal to 0"),
    (
        "objective: {name: soflw}",
        "objective.name = soflw: must be one of alpha_flow, distillation, esc, flow_matching, improved_meanflow",
    ),
    ("objective: {r_ned: 0.1}", "objective.r_ned: unknown key; did you mean r_end"),
    ("objective: {name: meanflow, r_end: 0.1}", "objective.r_end: unknown key; known keys here are .*guidance_kappa"),
    ("objective: {name: meanflow, label_drop: 0, guidance_kappa: 0.5}", "label_drop = 0 must be above 0"),
    ("objective: {time_mean: [1, 2]}", "objective.time_mean"),
    ("objective: soflow", "objective = soflow: must be a mapping"),
    ("objective:", "objective = None: must be a mapping"),
    ("training: 3", "training = 3: must be a mapping"),
    ("dataset: {nmae: digits}", "dataset.nmae: unknown key; did you mean name"),
    ("optimizer: {learning_rte: 0.1}", "optimizer.learning_rte: unknown key; did you mean learning_rate"),
    ("network: {nmae: DiT-B/2}", "network.nmae: unknown key; did you mean name"),
    ("objective: {name: soflow, r_ned: 0.1}", "objective.r_ned: unknown key; did you mean r_end"),
    ("trainig: {batch_size: 16}", "trainig: unknown key; did you mean training"),
    ("training: {batch_sze: 16}", "training.batch_sze: unknown key; did you mean batch_size"),
    ("training: {batch_size: many}", "training.batch_size = many: .*integer"),
    ("training: {compile: maybe}", "training.compile = maybe: must be true, false or auto$"),
    ("training: {batch_size: 10}\nresources: {num_workers: 3}", "training.batch_size = 10: must be divisible by"),
    ("dataset: {name: cifar}", "dataset.name = cifar: must be one of cifar10, digits"),
    ("dataset: {name: image_folder, image_size: 9}", r"\d must divide the side 9"),
    ("[1, 2]", "must hold a mapping"),
    ("a: [", "cannot be read as YAML"),
]


@pytest.mark.parametrize("flags", [(), ("--training.total-steps", "5")], ids=["", "flag"])
@pytest.mark.parametrize(("content", "message"), YAML_FAULTS, ids=lambda value: value.split("\n")[0])
def test_a_faulty_file_is_one_line_and_exit_code_2(content, message, flags, refused, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(content)
    line = refused("--config", path, *flags)
    assert re.search(message, line), line


@pytest.mark.parametrize("content", ["objective: soflow", "objective:", "objective: [1]"])
def test_a_section_that_is_no_mapping_is_refused_under_a_flag_too(content, refused, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(content)
    assert "must be a mapping of configuration keys" in refused("--config", path, "--objective", "meanflow")


def test_later_files_win_over_earlier_ones_and_flags_over_both(tmp_path):
    (tmp_path / "first.yaml").write_text("training: {batch_size: 16, total_steps: 50}\nseed: 1\n")
    (tmp_path / "second.yaml").write_text("training: {batch_size: 32}\nobjective: {r_end: 0.01}\n")
    config = read(
        "--config", tmp_path / "first.yaml", "--config", tmp_path / "second.yaml", "--objective.r-end", "0.02"
    )
    assert (config.training.batch_size, config.training.total_steps, config.seed) == (32, 50, 1)
    assert config.objective.r_end == 0.02
    assert config.objective.r_init == parse({}).objective.r_init


def test_a_written_configuration_is_read_back_silently(tmp_path, capsys):
    """The file of a sweep's best trial holds lists, which YAML knows and tuples it does not."""
    config = parse({"evaluation": {"nfe": (1, 4)}, "objective": {"time_mean": (0, 0.5, 1), "r_end": 0.003}})
    path = tmp_path / "best.yaml"
    path.write_text(to_yaml(config))
    assert read("--config", path).run == config
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_another_objective_drops_the_file_s_fields(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("objective: {name: soflow, r_end: 0.01, label_drop: 0.2}\n")
    meanflow = parse({"objective": {"name": "meanflow"}}).objective
    assert read("--config", path, "--objective", "meanflow").objective == meanflow
    assert read("--config", path, "--objective", "soflow").objective.r_end == 0.01
    other = tmp_path / "other.yaml"
    other.write_text("objective: {name: meanflow}\n")
    assert read("--config", path, "--config", other).objective == meanflow


def test_a_section_without_a_name_means_the_default(tmp_path):
    """Naming it later, in a file or as a flag, keeps its fields."""
    (tmp_path / "first.yaml").write_text("objective: {r_end: 0.01}\noptimizer: {learning_rate: 0.5}\n")
    (tmp_path / "second.yaml").write_text("objective: {name: soflow, r_init: 0.5}\noptimizer: {name: radam}\n")
    both = "--config", tmp_path / "first.yaml", "--config", tmp_path / "second.yaml"
    for arguments in (both, (*both, "--objective", "soflow")):
        config = read(*arguments)
        assert (config.objective.r_end, config.objective.r_init) == (0.01, 0.5)
        assert (config.optimizer.name, config.optimizer.learning_rate) == ("radam", 0.5)


@pytest.mark.parametrize("name", ["soflow", "meanflow", "flow_matching"])
def test_flags_are_the_configuration_s_paths(name, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as caught:
        read_command_line(RunConfig, "A test.", ["--help", "all"], layers=[{"objective": {"name": name}}])
    assert caught.value.code == 0
    flags = set(re.findall(r"^  --([a-z][\w.-]*)", capsys.readouterr().out, re.MULTILINE))
    paths = set(flatten(to_dict(parse({"objective": {"name": name}}))))
    assert {flag.replace("-", "_") for flag in flags} == paths | {"config"}
    if name == "soflow":
        assert paths == RUN_PATHS


FLAGS = """--objective.time-mean -0.5 -1 0.5 --optimizer.betas 0.8 0.95 --evaluation.nfe 1 2 4
--evaluation.sampler compose --dataset.no-conditional --dataset.root some/folder --seed 7
--objective.gap_schedule cosine --training.batch_size 16"""


def test_every_kind_of_value_can_be_given_as_a_flag():
    config = read(*FLAGS.split()).run
    assert config.objective.time_mean == (-0.5, -1.0, 0.5)
    assert config.optimizer.betas == (0.8, 0.95)
    assert config.evaluation.nfe == (1, 2, 4)
    assert (config.evaluation.sampler, config.dataset.conditional, config.seed) == ("compose", False, 7)
    assert config.dataset.root == Path("some/folder").absolute()  # workers look from elsewhere
    assert (config.objective.gap_schedule, config.training.batch_size) == ("cosine", 16)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--training.compile", True),
        ("--training.compile --seed 1", True),
        ("--training.compile true", True),
        ("--training.compile=off", False),
        ("--training.no-compile", False),
        ("--training.compile auto", "auto"),
        ("--training.compile=auto", "auto"),
        ("", False),
    ],
)
def test_a_switch_with_a_third_value_is_read_as_all_three(flags, expected):
    assert read(*flags.split()).training.compile == expected


# The scripts themselves: what is wrong is said before anything slow is imported.

SLOW_IMPORTS = {
    "torch",
    "torchvision",
    "torch_fidelity",
    "timm",
    "ray",
    "mlflow",
    "optuna",
    "sklearn",
    "scipy",
    "pandas",
}


def run_script(script: str, *arguments: str, folder: Path) -> tuple[subprocess.CompletedProcess, set[str], list[str]]:
    """Runs a script in `folder`: the result, the packages that it imported, and its own lines on stderr."""
    result = subprocess.run(
        [sys.executable, "-X", "importtime", str(REPOSITORY / "experiments" / script), *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    lines = result.stderr.splitlines()
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines if line.startswith("import time:")}
    return result, imported, [line for line in lines if not line.startswith("import time:")]


@pytest.mark.parametrize("script", ["sweep_schedule.py", "sample.py"])
def test_help_imports_nothing_slow(script, tmp_path):
    result, imported, errors = run_script(script, "--help", folder=tmp_path)
    assert result.returncode == 0
    assert not errors
    assert "--" in result.stdout
    assert "pydantic" in imported
    assert not imported & SLOW_IMPORTS
    assert not list(tmp_path.iterdir())


OUTPUTS = [
    (CompareOptions, ["a", "b"], "out"),
    (EvaluateOptions, ["."], "out"),
    (ExportOptions, ["run"], "out"),
    (PredictOptions, [], "out"),
    (SampleOptions, ["."], "out"),
    (SampleOptions, ["."], "npz"),
]


@pytest.mark.parametrize(("options", "arguments", "name"), OUTPUTS)
def test_an_output_that_cannot_be_written_is_refused_before_the_work(options, arguments, name, tmp_path, capsys):
    (tmp_path / "file").touch()
    positional = next(iter(options.model_fields)) if arguments else None
    for path, reason in (
        (tmp_path, "is a folder; give the name of a file in it"),
        (tmp_path / "file" / "deeper" / "a.png", f"cannot be written: {tmp_path / 'file'}: Not a directory"),
        (long := tmp_path / f"{'x' * 300}.png", f"cannot be written: {long}: File name too long"),
        (Path("/proc/soflow/a.png"), "cannot be written: /proc: No such file or directory"),
    ):
        with pytest.raises(SystemExit):
            read_command_line(options, "", [*arguments, f"--{name}", str(path)], positional=positional)
        assert capsys.readouterr().err == f"error: {name} = {path}: {reason}\n"
    given = [*arguments, f"--{name}", str(tmp_path / "new" / "a.png")]
    assert getattr(read_command_line(options, "", given, positional=positional), name) == tmp_path / "new" / "a.png"


SCRIPT_FAULTS = [
    ("sweep_schedule.py", "--objective.r-end 0.9", "r_end = 0.9 must not exceed r_init"),
    ("sweep_schedule.py", "--search objective.r_ned=0.1:0.2", "did you mean objective.r_end?"),
    ("train.py", "--dataset image_folder --dataset.root empty --dataset.image-size 8", "no images found"),
    ("sample.py", "empty --nfe 0", "nfe = 0: must be greater than or equal to 1"),
    ("sample.py", "nowhere", "checkpoint = nowhere: there is no such file or folder"),
    ("sample.py", "empty --out x.jpg", "out = x.jpg: must be the name of a .png file"),
    (
        "sample.py",
        "empty --npz x.npz --labels 3",
        "must be left out with npz, whose classes are those of FID",
    ),
    ("sample.py", "empty --out empty", "out = empty: is a folder; give the name of a file in it"),
    ("sweep_schedule.py", "--scale huge", "scale = huge: must be 'small' or 'paper'"),
    ("predict_cost.py", "--num-workers 0", "num_workers = 0: must be greater than or equal to 1"),
    ("export_checkpoint.py", "--out x.pt", "checkpoint: must be given"),
]


@pytest.mark.parametrize(("script", "arguments", "message"), SCRIPT_FAULTS)
def test_a_fault_is_one_line_before_anything_slow_is_imported(script, arguments, message, tmp_path):
    (tmp_path / "empty").mkdir()
    result, imported, errors = run_script(script, *arguments.split(), folder=tmp_path)
    assert result.returncode == 2
    assert result.stdout == ""
    assert len(errors) == 1, errors
    assert re.match(f"error: .*{message}", errors[0]), errors
    assert not imported & SLOW_IMPORTS

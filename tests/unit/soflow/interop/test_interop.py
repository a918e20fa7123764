"""Others' files: the SoFlow authors' configurations and checkpoints there and back, ADM's sample files."""

from __future__ import annotations

import copy
import errno
import importlib.util
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers import CPU, NUM_CLASSES, REPOSITORY, golden, golden_dit, relative_error, tiny_config
from torch import nn

from orchestration.config import TrainConfig
from orchestration.terminal.command_line import read_command_line
from soflow.config import override, parse, to_dict
from soflow.config_base import ConfigError
from soflow.config_files import read_yaml
from soflow.data import open_source
from soflow.evaluation.fidelity import Batch
from soflow.evaluation.moments import Workers
from soflow.interop import authors_checkpoint, authors_config
from soflow.interop.authors_layout import layout_of
from soflow.interop.npz import write_samples
from soflow.objectives.registry import OBJECTIVES
from soflow.sampling import even_times, renoise
from soflow.training import checkpoints
from soflow.training.build import build_network, build_objective
from soflow.training.checkpoints import CheckpointError
from soflow.training.run import TrainingRun
from soflow.training.trained import load_sampler
from soflow.training.trainer import Trainer

FILE = Path("theirs.pt")
LABEL_TABLE = "y_embedder.embedding_table.weight"

# Configurations.

IMAGENET = {
    "working_dir": "./runs/B-4",
    "noising_type": "Linear",
    "coefficient_type": "Euler",
    "model_type": "DiT-B-4",
    "dataset_type": "Imagenet",
    "data_size": 32,
    "dataset_path": "./imagenet_latent",
    "velocity_loss_ratio": 0.75,
    "p": 1.0,
    "eps": 0.01,
    "time_mean": [-0.2, -1.0, 0.2],
    "time_std": [1.0, 0.8, 0.8],
    "cfg_scale": 3.0,
    "mix_ratio": 0.25,
    "cfg_drop_rate": 0.1,
    "cfg_decay_time": 0.8,
    "l_schedule": "Exponent",
    "l_init_ratio": 0.1,
    "l_end_ratio": 0.002,
    "total_steps": 400000,
    "ema_decay_rate": 0.9999,
    "learning_rate": "1e-4",  # as YAML 1.1 reads 1e-4, without a point
    "betas": [0.9, 0.99],
    "weight_decay": 0.0,
    "batch_size": 256,
    "num_workers": 12,
    "prefetch_factor": 6,
    "eval_steps": 25000,
    "eval_batch_size": 125,
    "eval_NFE": 2,
    "eval_demo_steps": 1000,
    "eval_demo_shape": [4, 8],
    "logging_steps": 100,
    "ckpt_saving_steps": 200000,
    "seed": 42,
}
CIFAR = IMAGENET | {
    "model_type": "UNet",
    "dataset_type": "CIFAR10",
    "dataset_path": "./cifar10",
    "velocity_loss_ratio": 0.0,
    "p": 0.75,
    "eps": 0.001,
    "time_mean": [-0.9, -4.0, -0.9],
    "time_std": [1.6, 1.6, 1.6],
    "cfg_scale": 1.0,
    "cfg_drop_rate": 0.0,
    "l_init_ratio": 1.0,
    "l_end_ratio": 0.0003125,
    "total_steps": 800000,
    "betas": [0.9, 0.999],
    "batch_size": 1024,
}


def test_their_imagenet_file_is_our_preset():
    preset = parse(read_yaml(REPOSITORY / "experiments/presets/soflow-imagenet256-b4.yaml"))
    expected = override(
        to_dict(preset),
        {
            "seed": 42,
            "dataset.root": "imagenet_latent/imagenet_latent.hdf5",
            "dataset.loading_processes": 12,
            "evaluation.nfe": [2],
        },
    )
    assert parse(authors_config.translate(IMAGENET, FILE)) == parse(expected)


def test_their_cifar_file_is_our_preset():
    preset = parse(read_yaml(REPOSITORY / "experiments/presets/soflow-cifar10.yaml"))
    expected = override(
        to_dict(preset),
        {
            "seed": 42,
            "dataset.root": "cifar10",
            "dataset.image_size": 32,
            "dataset.loading_processes": 12,
            "objective.velocity_mix": 0.25,  # without effect where nothing is guided
            "objective.guidance_decay_time": 0.8,
            "training.report_every": 25000,
            "evaluation.nfe": [2],
            "evaluation.batch_size": 125,
        },
    )
    assert parse(authors_config.translate(CIFAR, FILE)) == parse(expected)


def test_every_key_of_theirs_is_known_and_a_missing_one_has_their_default():
    assert set(IMAGENET) == authors_config.KEYS
    assert set(authors_config.DEFAULTS) == authors_config.KEYS - set(authors_config.WITHOUT_MEANING)
    unguided = {"cfg_scale": 1.0, "mix_ratio": 1.0, "cfg_drop_rate": 0.0, "cfg_decay_time": 1.0, "eval_NFE": 1}
    few = authors_config.translate({"model_type": "DiT-B-4"}, FILE)
    assert parse(few) == parse(authors_config.translate(IMAGENET | unguided, FILE))


def test_keys_that_change_nothing_are_named():
    found = authors_config.ignored(IMAGENET)
    assert set(found) == set(authors_config.WITHOUT_MEANING)
    assert authors_config.ignored({"model_type": "UNet"}) == {}


@pytest.mark.parametrize(
    ("key", "value", "path", "ours"),
    [
        ("noising_type", "Trig", "interpolant", "trigonometric"),
        ("noising_type", "Triangular", "interpolant", "trigonometric"),
        ("coefficient_type", "Trig", "parameterization", "trigonometric"),
        ("coefficient_type", "Triangular", "parameterization", "trigonometric"),
        ("l_schedule", "Linear", "gap_schedule", "linear"),
        ("l_schedule", "Cosine", "gap_schedule", "cosine"),
        ("l_schedule", "Const", "gap_schedule", "constant"),
    ],
)
def test_names_are_translated(key, value, path, ours):
    config = parse(authors_config.translate(IMAGENET | {key: value}, FILE))
    assert getattr(config.objective, path) == ours


def test_a_constant_gap_needs_no_first_value():
    constant = {"l_schedule": "Const", "l_init_ratio": 0.1, "l_end_ratio": 0.5}
    assert parse(authors_config.translate(IMAGENET | constant, FILE)).objective.r_end == 0.5


@pytest.mark.parametrize("theirs", ["DiT-B-4", "DiT-B-2", "DiT-M-2", "DiT-L-2", "DiT-XL-2"])
def test_their_networks_exist(theirs):
    size, patch = theirs[4:].split("-")
    assert authors_config.translate({"model_type": theirs}, FILE)["network"]["name"] == f"DiT-{size}/{patch}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cfg_scal": 2.0}, r"theirs.pt: cfg_scal: is no key of the SoFlow authors.* did you mean cfg_scale"),
        ({"l_schedule": "Exp"}, "theirs.pt: l_schedule = Exp: must be one of Const, Linear, Cosine, Exponent"),
        ({"model_type": "DiT-B-3"}, "theirs.pt: model_type = DiT-B-3: must be one of UNet, .*DiT-B-4"),
        ({"data_size": "big"}, "theirs.pt: data_size = big: must be a number"),
        ({"dataset_type": "CIFAR10", "weight_decay": 0.1}, "theirs.pt: weight_decay = 0.1: must be 0 for CIFAR10"),
    ],
)
def test_what_cannot_be_translated_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        authors_config.translate(IMAGENET | changes, FILE)


def test_the_command_line_takes_their_file_and_flags_over_it(tmp_path):
    theirs = tmp_path / "config.yaml"
    theirs.write_text(yaml.safe_dump(IMAGENET))
    config = read_command_line(TrainConfig, "", ["--config", str(theirs), "--training.total-steps", "1000"])
    assert config.training.total_steps == 1000
    assert (config.objective.guidance_strength, config.objective.velocity_mix) == (3.0, 0.25)


def test_our_own_files_are_left_alone(tmp_path):
    ours = tmp_path / "ours.yaml"
    ours.write_text("objective: {r_end: 0.01}\ncfg_scale: 2\nseed: 3\n")
    assert read_yaml(ours) == {"objective": {"r_end": 0.01}, "cfg_scale": 2, "seed": 3}


# Checkpoints.


def golden_config(**objective):
    """Only what importing reads: the golden network has no name."""
    return tiny_config(network={"name": "DiT-XXS/4"}, objective={"name": "soflow", "label_drop": 0.1} | objective)


def theirs(network: nn.Module, shift: float = 0.0) -> dict[str, torch.Tensor]:
    """A network's weights by the authors' names."""
    return {
        f"network.{name}": value + shift * value.is_floating_point() for name, value in network.state_dict().items()
    }


def assert_same(found: dict, expected: dict) -> None:
    assert list(found) == list(expected)
    for key, value in expected.items():
        assert found[key].dtype == value.dtype
        assert torch.equal(found[key], value), key


@pytest.fixture
def golden_file(tmp_path):
    network = golden_dit(torch.float32)
    path = tmp_path / "77.pt"
    # The averaged weights are the golden ones; the raw ones differ.
    stored = {"model": theirs(network, 1.0), "ema_model": theirs(network), "finished_steps": 77, "finished_epochs": 3}
    torch.save(stored, path)
    return path


@pytest.mark.parametrize("ema_dtype", ["float32", "float64"])
def test_an_imported_checkpoint_samples_as_published_and_exports_unchanged(golden_file, ema_dtype):
    config = parse(override(to_dict(golden_config()), {"training.ema_dtype": ema_dtype}))
    stored = authors_checkpoint.read(golden_file)
    state = authors_checkpoint.import_state(stored, golden_dit().to("meta"), config, golden_file)
    assert (state["step"], state["num_classes"]) == (77, NUM_CLASSES)

    expected, network = golden("sampling"), golden_dit()
    network.load_state_dict({name: torch.zeros_like(value) for name, value in network.state_dict().items()})
    network.load_state_dict(state["ema"])
    objective = build_objective(config, NUM_CLASSES)
    for nfe in (1, 2, 4):
        for key, labels in (("x", expected["labels"]), ("x_nolabel", torch.full((3,), NUM_CLASSES))):
            found = renoise(
                lambda x, t, s, given=labels: objective.solution(network, x, t, s, given),
                objective.interpolant,
                expected["x_init"],
                even_times(nfe),
                iter(expected.get(f"nfe{nfe}.renoise", ())),
            )
            # Two implementations in float64, the output of one step being the input of the next.
            assert relative_error(found, expected[f"nfe{nfe}.{key}"]) < 1e-9

    exported = authors_checkpoint.export_state(state, network, config)
    assert_same(exported["model"], stored["model"])
    assert_same(exported["ema_model"], stored["ema_model"])
    assert (exported["finished_steps"], exported["finished_epochs"]) == (77, 3)


class TheirDiT(nn.Module):
    """Parameters as the authors count them: the position table is one, and modules may come in another order."""

    def __init__(self, network: nn.Module, rows: int):
        super().__init__()
        children = OrderedDict(network.named_children())
        table = network.y_embedder["embedding_table"].weight[:rows].detach().clone()
        children["y_embedder"] = nn.ModuleDict({"embedding_table": nn.Embedding.from_pretrained(table, freeze=False)})
        self.pos_embed = nn.Parameter(network.pos_embed, requires_grad=False)
        for name in sorted(children, reverse=True):
            self.add_module(name, children[name])


def with_gradients(network: nn.Module) -> nn.Module:
    """Each trained parameter's gradient is its own cosine, so that equal parameters have equal gradients."""
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.grad = parameter.detach().cos()
    return network


@pytest.mark.parametrize(("label_drop", "rows"), [(0.1, NUM_CLASSES + 1), (0.0, NUM_CLASSES)])
def test_the_optimizer_is_converted_by_name(label_drop, rows):
    config = golden_config(label_drop=label_drop, guidance_strength=1.0 + 5 * label_drop)
    module = TheirDiT(golden_dit(torch.float32), rows)
    options = {"lr": config.optimizer.learning_rate, "betas": config.optimizer.betas, "weight_decay": 0.0}
    optimizer = torch.optim.AdamW(module.parameters(), **options)
    for _ in range(3):
        with_gradients(module)
        optimizer.step()
    moments = copy.deepcopy(optimizer.state_dict())
    stored = {"model": theirs(module), "ema_model": theirs(module), "optimizer": moments}
    state = authors_checkpoint.import_state(stored, golden_dit().to("meta"), config, FILE)

    exported = authors_checkpoint.export_state(state, golden_dit().to("meta"), config)
    assert_same(exported["model"], stored["model"])
    assert list(exported["optimizer"]["state"]) == list(stored["optimizer"]["state"])
    assert exported["optimizer"]["param_groups"][0]["params"] == stored["optimizer"]["param_groups"][0]["params"]
    for i, moment in stored["optimizer"]["state"].items():
        assert_same(exported["optimizer"]["state"][i], moment)

    # Going on there and here gives the same weights.
    own = golden_dit(torch.float32)
    own.load_state_dict(state["network"])
    continued = torch.optim.AdamW(own.parameters(), **options)
    continued.load_state_dict(state["optimizer"])
    for network, stepper in ((module, optimizer), (own, continued)):
        with_gradients(network)
        stepper.step()
    for name, value in module.state_dict().items():
        # Vectorised cosines of a table's ends may differ in the last bit.
        assert relative_error(own.state_dict()[name][: len(value)], value) < 1e-6, name


def test_a_table_without_null_row_does_for_conditional_networks_only():
    weights = theirs(golden_dit(torch.float32))
    table = f"network.{LABEL_TABLE}"
    stored = {"model": weights, "ema_model": weights | {table: weights[table][:-1]}}
    config = golden_config(label_drop=0.0, guidance_strength=1.0)
    unconditional = parse(override(to_dict(config), {"dataset.conditional": False}))
    with pytest.raises(CheckpointError, match=r"embedding_table.weight is \(10, 32\), but \(11, 32\)"):
        authors_checkpoint.import_state(stored, golden_dit(), unconditional, FILE)
    stored["model"] = stored["ema_model"]
    state = authors_checkpoint.import_state(stored, golden_dit(), config, FILE)
    assert torch.equal(state["ema"][LABEL_TABLE][:-1], weights[table][:-1])
    assert_same(authors_checkpoint.export_state(state, golden_dit(), config)["model"], stored["model"])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_says_whether_labels_are_dropped(name):
    """Which decides whether the label table has a null row."""
    assert "label_drop" in OBJECTIVES[name].config.model_fields


def without(weights: dict, name: str) -> dict:
    return {key: value for key, value in weights.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda weights: weights | {"network.blocks.0.attn.qkv.weight": torch.zeros(96, 16)},
            r"theirs.pt: network.blocks.0.attn.qkv.weight is \(96, 16\), but \(96, 32\) in DiT-XXS/4",
        ),
        (
            lambda weights: without(weights, "network.blocks.1.mlp.fc1.bias"),
            r"theirs.pt: network.blocks.1.mlp.fc1.bias, \(128,\) in DiT-XXS/4, is missing",
        ),
        (
            lambda weights: weights | {"network.enc.32x32_conv.weight": torch.zeros(1)},
            r"theirs.pt: network.enc.32x32_conv.weight, \(1,\), is no parameter of DiT-XXS/4",
        ),
        (
            lambda weights: {key.removeprefix("network."): value for key, value in weights.items()},
            r"theirs.pt: pos_embed, \(1, 16, 32\), is no parameter of DiT-XXS/4",
        ),
        (
            lambda weights: {key: value[:-1] if "y_embedder" in key else value for key, value in weights.items()},
            r"network.y_embedder.embedding_table.weight is \(10, 32\), but \(11, 32\) in DiT-XXS/4",
        ),
    ],
)
@pytest.mark.parametrize("part", ["model", "ema_model"])
def test_what_does_not_fit_is_named(change, message, part):
    weights = theirs(golden_dit(torch.float32))
    stored = {"model": weights, "ema_model": weights} | {part: change(weights)}
    with pytest.raises(CheckpointError, match=message):
        authors_checkpoint.import_state(stored, golden_dit(), golden_config(), FILE)


@pytest.mark.parametrize("conditional", [True, False])
def test_a_network_that_the_authors_do_not_have_is_refused(conditional):
    config = tiny_config(dataset={"conditional": conditional})
    with pytest.raises(CheckpointError, match=r"network.name = tests.networks:one_block: the authors have DiT and U-N"):
        authors_checkpoint.check_network(config, FILE)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "ours.pt"
    torch.save({"network": {}, "ema": {}}, path)
    with pytest.raises(
        CheckpointError, match=r"ours.pt: is no checkpoint of the SoFlow authors, it contains no 'model'"
    ):
        authors_checkpoint.read(path)
    with pytest.raises(CheckpointError, match="flow_matching: learns no jump from noise to data"):
        authors_checkpoint.check_solution(tiny_config("flow_matching"), path)


# The programs, in this process.


def program(name: str, monkeypatch, *arguments: str | Path) -> int:
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "experiments" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
    return module.main()


SMALL = {
    "dataset": {"name": "cifar10"},
    "network": {"name": "DiT-XXS/4"},
    "objective": {"name": "soflow"},
    "training": {"total_steps": 100, "batch_size": 4},
    "evaluation": {"num_samples": 16, "batch_size": 8},
}


class Noise:
    """uint8 noise in place of CIFAR-10."""

    num_classes, fingerprint = 10, "0"

    def __len__(self) -> int:
        return 64

    def batch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        random = np.random.default_rng(0)
        return random.integers(0, 256, (64, 3, 32, 32), np.uint8)[indices], np.arange(64)[indices] % 10


def import_run(tmp_path, monkeypatch):
    """Make a file of the authors and import it; return the run's folder and the file."""
    config = parse(SMALL)
    network = build_network(config, 10)
    file, yaml_file = tmp_path / "77.pt", tmp_path / "own.yaml"
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(parameter.numel()))
    torch.save({"model": theirs(network), "ema_model": theirs(network, 0.01), "finished_steps": 77}, file)
    yaml_file.write_text(yaml.safe_dump(SMALL))
    arguments = ["--checkpoint", file, "--config", yaml_file, "--storage", tmp_path / "results", "--name", "run"]
    assert program("import_checkpoint", monkeypatch, *arguments) == 0
    return tmp_path / "results" / "run", file


@pytest.fixture
def imported(tmp_path, monkeypatch):
    """A run's folder and the authors' file that it was made from."""
    return import_run(tmp_path, monkeypatch)


def test_the_programs_import_sample_and_export(imported, tmp_path, monkeypatch):
    folder, file = imported
    stored = authors_checkpoint.read(file)
    config, _, network = load_sampler(checkpoints.path_of(folder, 77), CPU)
    assert config == parse(SMALL)
    for name, value in network.state_dict().items():
        assert torch.equal(value, stored["ema_model"][f"network.{name}"])

    assert program("sample", monkeypatch, folder, "--rows", "1", "--out", tmp_path / "grid.png") == 0
    assert (tmp_path / "grid.png").stat().st_size > 0
    arguments = [folder, "--npz", tmp_path / "samples.npz", "--num-samples", "12"]
    assert program("sample", monkeypatch, *arguments) == 0
    with np.load(tmp_path / "samples.npz") as samples:
        assert samples["arr_0"].shape == (12, 32, 32, 3)
        assert samples["arr_1"].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]

    assert program("export_checkpoint", monkeypatch, folder, "--out", tmp_path / "ckpts/77.pt") == 0
    exported = authors_checkpoint.read(tmp_path / "ckpts/77.pt")
    assert_same(exported["model"], stored["model"])
    assert_same(exported["ema_model"], stored["ema_model"])
    assert exported["finished_steps"] == 77


def test_an_imported_run_can_be_trained_on(imported):
    folder, file = imported
    config = TrainConfig.model_validate(read_yaml(folder / "run.yaml"))
    assert (config.storage / config.name, config.run) == (folder, parse(SMALL))
    assert (folder / "recorded_step").read_text() == "77"
    run = TrainingRun(config.run, Noise(), folder, CPU, None, start=77)
    assert run.trainer.step == 77
    run.trainer.advance(1)
    start = authors_checkpoint.read(file)["model"]["network.final_layer.linear.weight"]
    # The first step of a fresh AdamW moves a weight by the learning rate, less where the gradient is near eps = 1e-8.
    moved = (run.trainer.network.final_layer.linear.weight - start).abs().max().item()
    assert moved == pytest.approx(config.optimizer.learning_rate, rel=1e-3)


def test_the_programs_import_sample_and_export_a_u_net(tmp_path, monkeypatch):
    values = override(SMALL, {"network.name": "U-Net-XS", "dataset.conditional": False})
    network = build_network(parse(values), 10)
    layout = layout_of(parse(values), network.state_dict())
    random = torch.Generator().manual_seed(0)
    weights = {
        key: torch.randn(layout.to_theirs(entry, network.state_dict()[entry]).shape, generator=random)
        if isinstance(entry, str)
        else entry
        for key, entry in layout.entries.items()
    }
    torch.save({"model": weights, "ema_model": weights, "finished_steps": 77}, tmp_path / "77.pt")
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(values))
    arguments = ["--checkpoint", tmp_path / "77.pt", "--config", tmp_path / "own.yaml"]
    assert program("import_checkpoint", monkeypatch, *arguments, "--storage", tmp_path, "--name", "run") == 0

    arguments = [tmp_path / "run", "--npz", tmp_path / "samples.npz", "--num-samples", "4"]
    assert program("sample", monkeypatch, *arguments) == 0
    with np.load(tmp_path / "samples.npz") as samples:
        assert samples["arr_0"].shape == (4, 32, 32, 3)

    assert program("export_checkpoint", monkeypatch, tmp_path / "run", "--out", tmp_path / "back.pt") == 0
    exported = authors_checkpoint.read(tmp_path / "back.pt")
    assert_same(exported["model"], weights)
    assert_same(exported["ema_model"], weights)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "checkpoint: must be a checkpoint file of the SoFlow authors"),
        (["--checkpoint", "none.pt", "--dataset", "cifar10"], "none.pt: no such checkpoint"),
        (["--checkpoint", "none.pt"], "dataset.name = digits: must be a data set of the authors, one of latents"),
        (
            ["--checkpoint", "none.pt", "--dataset", "cifar10", "--network", "U-Net"],
            "conditional = True: must be False",
        ),
    ],
)
def test_importing_fails_in_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as caught:
        program("import_checkpoint", monkeypatch, *arguments, "--storage", tmp_path, "--name", "new")
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "new").exists()


def test_a_disk_that_fills_during_an_import_leaves_no_half_run(tmp_path, monkeypatch):
    def full(state, folder, step):
        (folder / "checkpoint-1.pt").touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save", full)
        with pytest.raises(OSError, match="No space"):
            import_run(tmp_path, patch)
    assert not list((tmp_path / "results").iterdir())
    assert import_run(tmp_path, monkeypatch)[0].is_dir()  # the name is not taken


def test_a_file_without_steps_is_not_imported(imported, tmp_path, monkeypatch, capsys):
    """Checkpoints are found by their step, and step 0 is that of a run without any."""
    torch.save({name: authors_checkpoint.read(imported[1])[name] for name in ("model", "ema_model")}, tmp_path / "0.pt")
    arguments = ["--checkpoint", tmp_path / "0.pt", "--config", tmp_path / "own.yaml", "--storage", tmp_path]
    with pytest.raises(SystemExit):
        program("import_checkpoint", monkeypatch, *arguments, "--name", "other")
    assert "0.pt: has no finished_steps" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_exporting_fails_in_one_line(imported, tmp_path, monkeypatch, capsys):
    folder, file = imported
    state = checkpoints.load(checkpoints.path_of(folder, 77))
    averaged = {name: state[name] for name in ("ema", "config", "num_classes", "step")}  # of a checkpoint sweep
    checkpoints.write(averaged, tmp_path / "averaged.pt")
    checkpoints.write(state | {"config": state["config"] | {"unknown": 1}}, tmp_path / "unknown.pt")
    (tmp_path / "empty").mkdir()
    for given, message in (
        (file, "is no checkpoint of a run, it contains no 'config'"),
        (tmp_path / "averaged.pt", "contains averaged weights only; export a checkpoint of the run that was trained"),
        (tmp_path / "unknown.pt", "unknown"),
        (tmp_path / "empty", "contains no checkpoint; give the folder of a run or trial"),
        (tmp_path / "none.pt", "no such checkpoint"),
    ):
        with pytest.raises(SystemExit):
            program("export_checkpoint", monkeypatch, given, "--out", tmp_path / "out" / "77.pt")
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


# Sample files.


def test_the_file_with_a_runs_seed_holds_the_images_that_its_evaluation_measured(tmp_path, monkeypatch):
    config = tiny_config(evaluation={"num_samples": 20, "batch_size": 8, "nfe": [2]}, seed=5)
    source = open_source(config.dataset)
    seen: list[Batch] = []

    class Recorder:
        """An evaluator that keeps what it is given."""

        workers = Workers(CPU)

        def evaluate(self, batches):
            seen.extend(batches)
            return {"fid": 0.0}

        def floor(self):
            return {}

        def protocol(self):
            return {}

    run = TrainingRun(config, source, tmp_path, CPU, Recorder())
    run.advance()
    measured = torch.cat([batch.images for batch in seen]).permute(0, 2, 3, 1).numpy()
    arguments = [tmp_path, "--npz", tmp_path / "samples.npz", "--num-samples", "20", "--nfe", "2"]
    for seed in (5, 6):
        assert program("sample", monkeypatch, *arguments, "--seed", str(seed)) == 0
        with np.load(tmp_path / "samples.npz") as samples:
            assert samples["arr_0"].dtype == np.uint8
            assert np.array_equal(samples["arr_0"], measured) == (seed == 5)
            assert np.array_equal(samples["arr_1"], np.arange(20) % 10)


def images(count: int, fill: int = 0, labels: torch.Tensor | None = None) -> Batch:
    return Batch(torch.arange(count), torch.full((count, 3, 4, 5), fill, dtype=torch.uint8), labels)


@pytest.mark.parametrize("shape", [(20, 3, 4, 5), (12, 3, 4, 5), (16, 1, 4, 5)])
def test_a_wrong_number_or_kind_of_images_leaves_no_file(shape, tmp_path):
    with pytest.raises(ValueError, match=r"images .* expected"):
        write_samples(tmp_path / "samples.npz", [images(8), images(8)], shape)
    assert list(tmp_path.iterdir()) == []


def test_without_classes_there_are_no_labels(tmp_path):
    write_samples(tmp_path / "samples.npz", [images(2, fill=7), images(1, fill=8)], (3, 3, 4, 5))
    with np.load(tmp_path / "samples.npz") as samples:
        assert samples.files == ["arr_0"]
        assert np.array_equal(samples["arr_0"], np.array([7, 7, 8], np.uint8)[:, None, None, None] * np.ones((4, 5, 3)))


def test_a_trainer_takes_an_imported_state():
    """Nothing that Trainer.load_state_dict needs is missing."""
    config = parse(SMALL)
    network = build_network(config, 10)
    stored = {"model": theirs(network), "ema_model": theirs(network), "finished_steps": 5}
    trainer = Trainer(config, Noise(), CPU)
    trainer.load_state_dict(authors_checkpoint.import_state(stored, network, config, FILE))
    needed = trainer.state_dict().keys() - {"compiled"}  # which is of this trainer's steps, not of the authors'
    assert needed <= authors_checkpoint.import_state(stored, network, config, FILE).keys()

"""Training: exact resume, data order, moving average, checkpoints on disk, what a run reports."""

from __future__ import annotations

import errno
import io
import itertools
import math
import os
import random as python_random
import re

import numpy as np
import pytest
import torch
from helpers import CPU, REPOSITORY, tiny_config
from PIL import Image

from soflow import files
from soflow.config import parse, to_dict
from soflow.config_files import read_yaml
from soflow.data import open_source
from soflow.data.in_memory import InMemorySource
from soflow.data.loading import EpochOrder
from soflow.evaluation.fidelity import Evaluator
from soflow.objectives.registry import OBJECTIVES
from soflow.posthoc_ema import ema_decay
from soflow.training import checkpoints
from soflow.training.checkpoints import CheckpointError
from soflow.training.grids import GRID_COLUMNS, draw_grid, write_grid
from soflow.training.reports import load_report
from soflow.training.run import NUM_DIAGNOSED, TrainingRun
from soflow.training.trained import load_sampler
from soflow.training.trainer import NonFiniteLoss, Trainer


@pytest.fixture(scope="module")
def digits():
    return open_source(tiny_config().dataset)


@pytest.fixture(scope="module")
def evaluator(digits, tmp_path_factory):
    return Evaluator(digits, tiny_config(), CPU, tmp_path_factory.mktemp("cache"))


def record_steps(trainer: Trainer) -> list[list[torch.Tensor]]:
    """Grows by one list per step: data, labels and every drawn number that the loss gets."""
    steps = []

    def hook(module, inputs):
        data, labels, draws = inputs
        steps.append([data, labels, draws.noise, draws.t, draws.l, draws.s, draws.drop, draws.weight])

    trainer.module.register_forward_pre_hook(hook)
    return steps


def leaves(tree, path: str = "") -> dict[str, object]:
    """The leaves of nested dictionaries and lists by their path."""
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, (list, tuple)):
        items = enumerate(tree)
    else:
        return {path: tree}
    return {name: leaf for key, value in items for name, leaf in leaves(value, f"{path}/{key}").items()}


def assert_same_state(one: dict, other: dict) -> None:
    """Bit for bit, the clock apart."""
    one, other = leaves(one), leaves(other)
    assert one.keys() == other.keys()
    for name in one.keys() - {"/train_s"}:
        same = torch.equal(one[name], other[name]) if torch.is_tensor(one[name]) else one[name] == other[name]
        assert same, name


def assert_same_steps(one: list[list[torch.Tensor]], other: list[list[torch.Tensor]]) -> None:
    assert len(one) == len(other)
    for step, (mine, yours) in enumerate(zip(one, other, strict=True)):
        assert all(torch.equal(a, b) for a, b in zip(mine, yours, strict=True)), step


@pytest.mark.parametrize("optimizer", ["adamw", "radam"])
@pytest.mark.parametrize("stop", [1, 4])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(name, stop, optimizer, digits, tmp_path):
    config = tiny_config(name, optimizer={"name": optimizer, "warmup_steps": 3})
    whole = Trainer(config, digits, CPU)
    steps = record_steps(whole)
    whole.advance(6)

    first = Trainer(config, digits, CPU)
    first.advance(stop)
    path = checkpoints.save(first.state_dict(), tmp_path, stop)
    del first
    torch.manual_seed(77)  # whatever the new process did before
    resumed = Trainer(config, digits, CPU)
    resumed.load_state_dict(checkpoints.load(path))
    assert resumed.step == stop
    later = record_steps(resumed)
    resumed.advance(6 - stop)
    assert_same_steps(later, steps[stop:])
    assert_same_state(resumed.state_dict(), whole.state_dict())
    moved = [(a != b).any() for a, b in zip(whole.network.parameters(), whole.ema.module.parameters(), strict=True)]
    assert any(moved)  # the average lags behind the weights


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_run_does_not_depend_on_what_its_process_did_before(name, digits):
    def final_state():
        trainer = Trainer(tiny_config(name), digits, CPU)
        trainer.advance(4)
        return trainer.state_dict()

    before = final_state()
    for other in OBJECTIVES:
        Trainer(tiny_config(other, seed=5, training={"batch_size": 6}), digits, CPU).advance(2)
    torch.manual_seed(123)
    np.random.seed(123)
    python_random.seed(123)
    torch.randn(1000)
    assert_same_state(final_state(), before)


def test_building_a_trainer_leaves_the_global_random_state_alone(digits):
    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    Trainer(tiny_config(), digits, CPU).advance(1)
    assert torch.equal(torch.randn(3), expected)


def test_the_seed_changes_weights_order_and_draws(digits):
    trainers = [Trainer(tiny_config(seed=seed), digits, CPU) for seed in (0, 1)]
    weights = [trainer.network.x_embedder.proj.weight.clone() for trainer in trainers]
    assert not torch.equal(*weights)
    steps = [record_steps(trainer) for trainer in trainers]
    for trainer in trainers:
        trainer.advance(1)
    data, labels, noise, t = ([recorded[0][index] for recorded in steps] for index in range(4))
    for pair in (data, labels, noise, t):
        assert not torch.equal(*pair)


def test_every_step_draws_anew(digits):
    trainer = Trainer(tiny_config(), digits, CPU)
    steps = record_steps(trainer)
    trainer.advance(3)
    for index in (0, 2, 3, 4, 5):  # data, noise and times
        drawn = [step[index] for step in steps]
        assert not any(torch.equal(a, b) for a, b in itertools.combinations(drawn, 2))


def test_batches_come_from_the_source_in_the_order_s_indices(digits):
    config = tiny_config()
    trainer = Trainer(config, digits, CPU)
    steps = record_steps(trainer)
    trainer.advance(2)
    order = EpochOrder(len(digits), config.training.batch_size, config.seed)
    for step, (data, labels, *_) in enumerate(steps):
        images, classes = digits.batch(order.indices(step))
        assert torch.equal(labels, torch.from_numpy(classes))
        torch.testing.assert_close(data, torch.from_numpy(images).float() / 127.5 - 1, rtol=0, atol=1e-6)


def test_unconditional_training_sees_the_null_label_only(digits):
    trainer = Trainer(tiny_config(dataset={"conditional": False}), digits, CPU)
    steps = record_steps(trainer)
    trainer.advance(2)
    assert {label for _, labels, *_ in steps for label in labels.tolist()} == {10}
    assert all(torch.equal(steps[0][1], labels) for _, labels, *_ in steps)


@pytest.mark.parametrize(("samples", "batch"), [(10, 4), (10, 10), (7, 20), (1797, 128)])
def test_every_epoch_is_a_permutation(samples, batch):
    order = EpochOrder(samples, batch, seed=3)
    epochs = 3 * max(1, batch // samples)
    steps = -(-epochs * samples // batch)
    seen = np.concatenate([order.indices(step) for step in range(steps)])
    assert {len(order.indices(step)) for step in range(steps)} == {batch}
    epoch = [seen[i * samples : (i + 1) * samples] for i in range(epochs)]
    for indices in epoch:
        assert sorted(indices.tolist()) == list(range(samples))
    assert len({tuple(indices.tolist()) for indices in epoch}) == epochs  # no order comes twice


def test_the_order_depends_on_the_seed_alone():
    forward = EpochOrder(10, 4, seed=0)
    expected = [forward.indices(step).tolist() for step in range(12)]
    jumping = EpochOrder(10, 4, seed=0)
    torch.manual_seed(99)
    for step in (11, 0, 5, 4, 11, 3):
        assert jumping.indices(step).tolist() == expected[step]
    other = EpochOrder(10, 4, seed=1)
    assert [other.indices(step).tolist() for step in range(12)] != expected


def test_the_moving_average_follows_its_recursion(digits):
    trainer = Trainer(tiny_config(training={"ema_decay": 0.8}), digits, CPU)
    seen = []
    for _ in range(5):
        trainer.advance(1)
        seen.append({name: value.double().clone() for name, value in trainer.network.named_parameters()})
    # Against the product of the decays after each update: the first is 0, the last min(0.8, 5/14).
    decays = [min(0.8, (1 + n) / (10 + n)) if n else 0.0 for n in range(5)]
    factors = [(1 - decays[i]) * math.prod(decays[i + 1 :]) for i in range(5)]
    assert sum(factors) == pytest.approx(1)
    expected = {n: sum(f * weights[n] for f, weights in zip(factors, seen, strict=True)) for n in seen[0]}
    for name, value in trainer.ema.module.named_parameters():
        # Five float32 updates of 6e-8 relative rounding each.
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-6, atol=1e-7, msg=name)
    assert torch.equal(trainer.ema.module.pos_embed, trainer.network.pos_embed)


def test_the_average_of_a_short_run_forgets_its_start_and_that_of_a_long_one_has_its_decay():
    """Share of the first weights after 208 further updates, 10! 209! / 218!, and when the decay becomes constant."""
    share = math.prod(ema_decay(n, 0.99) for n in range(1, 209))
    assert share == pytest.approx(math.factorial(10) / math.prod(range(210, 219)), rel=1e-9, abs=0)
    assert share < 1e-13  # 12 % with a constant decay
    assert ema_decay(889, 0.99) < 0.99
    assert ema_decay(891, 0.99) == 0.99
    assert ema_decay(10**5, 0.9999) == 0.9999


def test_learning_curves_are_means_since_their_last_point(digits):
    """Curves of steps taken at once against single steps; points do not depend on where training was interrupted."""
    config = tiny_config(training={"total_steps": 8, "log_every": 3}, optimizer={"warmup_steps": 20})
    single = Trainer(config, digits, CPU)
    steps, rates = [], []
    for _ in range(8):
        steps.append(single.advance(1))
        rates.append(single.optimizer.param_groups[0]["lr"])
    whole = Trainer(config, digits, CPU)
    whole.advance(8)
    assert [step for step, _ in whole.curve] == [3, 6]
    for step, values in whole.curve:
        since = steps[step - 3 : step]
        assert values.pop("train/learning_rate") == rates[step - 1]
        assert values.pop("train/gradient/norm") == pytest.approx(sorted(s["gradient/norm"] for s in since)[1])
        assert set(values) == {f"train/{name}" for name in steps[0] if name.startswith("loss/")}
        for name, value in values.items():  # each step has equally many samples of each kind
            expected = np.mean([s[name.removeprefix("train/")] for s in since])
            assert value == pytest.approx(expected, rel=1e-5), name  # differences of float32 sums
    parts = Trainer(config, digits, CPU)
    points = []
    for length in (3, 1, 4):
        parts.advance(length)
        points += parts.curve
    assert [step for step, _ in points] == [3, 6]


def test_the_learning_rate_warms_up_linearly(digits):
    trainer = Trainer(tiny_config(optimizer={"learning_rate": 0.01, "warmup_steps": 4}), digits, CPU)
    rates = []
    for _ in range(6):
        trainer.advance(1)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.002, 0.004, 0.006, 0.008, 0.01, 0.01])


@pytest.mark.parametrize("at_once", [True, False])
def test_a_diverging_run_names_the_first_step_without_finite_loss(at_once, digits):
    """Steps count from 1, as in reports and checkpoints: the second step is the first to see weights of 1e30."""
    trainer = Trainer(tiny_config(optimizer={"learning_rate": 1e30}), digits, CPU)
    finite = []
    trainer.module.register_forward_hook(lambda module, inputs, output: finite.append(bool(output[0].isfinite())))
    with pytest.raises(NonFiniteLoss) as caught:  # noqa: PT012
        for _ in range(1 if at_once else 5):
            trainer.advance(5 if at_once else 1)
    first = finite.index(False) + 1
    assert first == 2
    assert re.search(rf"at step {first}\b", str(caught.value))
    assert "optimizer.learning_rate (now 1e+30)" in str(caught.value)


def test_an_infinite_gradient_of_the_last_step_is_found(digits):
    """Its loss is finite, and no further loss tells that the weights are NaN."""
    trainer = Trainer(tiny_config(), digits, CPU)
    weights = next(trainer.network.parameters())
    weights.register_hook(lambda gradient: gradient / (0.0 if trainer.step == 2 else 1.0))
    with pytest.raises(NonFiniteLoss, match="the loss or its gradient became infinite or NaN at step 3;"):
        trainer.advance(3)


def test_metrics_are_means_over_samples_and_name_their_units(digits):
    config = tiny_config(training={"batch_size": 8})
    trainer = Trainer(config, digits, CPU)
    seen, norms = [], []
    trainer.module.register_forward_hook(lambda module, inputs, output: seen.append(output[1]))
    take_step = trainer.take_step

    def observed():
        found = take_step()
        squares = [weight.grad.double().square().sum().item() for weight in trainer.network.parameters()]
        norms.append(sum(squares) ** 0.5)
        return found

    trainer.take_step = observed
    metrics = trainer.advance(3)
    assert metrics["gradient/norm"] == pytest.approx(sorted(norms)[1], rel=1e-5)
    assert metrics["gradient/spike"] == pytest.approx(max(norms) / sorted(norms)[1], rel=1e-5)
    for term in ("flow_matching", "consistency"):
        values = torch.cat([terms[term] for terms in seen])
        assert metrics[f"loss/{term}"] == pytest.approx(values.mean().item(), rel=1e-5)  # float32 sums
    assert metrics["throughput/images_per_s"] == pytest.approx(8e3 / metrics["time/step_ms"])
    assert 0 < metrics["time/train_s"] < 60
    total = metrics["time/train_s"]
    assert trainer.advance(1)["time/train_s"] > total
    assert 0.5 < metrics["memory/peak_mib"] < 50  # the tensors of a tiny network
    assert 50 < metrics["memory/process_mib"] < 20_000  # a process that has torch loaded


# Checkpoint files.

STATE = {"step": 3, "network": {"weight": torch.arange(600.0).view(20, 30)}, "config": {"seed": 0, "root": None}}


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    path = checkpoints.save(STATE, tmp_path, 3)
    assert path == checkpoints.path_of(tmp_path, 3)
    assert_same_state(checkpoints.load(path), STATE)


def test_the_newest_two_are_kept_and_nothing_else_is_left(tmp_path):
    assert checkpoints.latest_step(tmp_path) == 0
    for step in (5, 10, 100, 1000):
        checkpoints.save(STATE, tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-00000100.pt", "checkpoint-00001000.pt"]
    assert checkpoints.latest_step(tmp_path) == 1000


class Unwritable:
    """Fails while the file is being written, as a full disk would."""

    def __reduce__(self):
        raise OSError("No space left on device")


def test_a_failed_write_leaves_the_older_checkpoint_in_place(tmp_path):
    checkpoints.save(STATE, tmp_path, 3)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(STATE | {"more": [torch.zeros(1000), Unwritable()]}, tmp_path, 6)
    assert checkpoints.latest_step(tmp_path) == 3
    assert_same_state(checkpoints.load(checkpoints.path_of(tmp_path, 3)), STATE)
    checkpoints.save(STATE, tmp_path, 6)  # the next attempt is not in its way
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-00000003.pt", "checkpoint-00000006.pt"]


def test_a_truncated_checkpoint_is_refused_by_name(tmp_path):
    path = checkpoints.save(STATE, tmp_path, 3)
    content = path.read_bytes()
    for length in [0, 1, *range(2, len(content), 101), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=re.escape(f"{path}: ")) as caught:
            checkpoints.load(path)
        assert "\n" not in str(caught.value)


def test_a_changed_byte_is_noticed(tmp_path):
    """In the weights as well, which would otherwise be trained on unseen."""
    path = checkpoints.save(STATE, tmp_path, 3)
    content = path.read_bytes()
    weights = content.index(torch.arange(600.0).numpy().tobytes())
    names = content.index(b"network")
    for position in (weights, weights + 5, weights + 1234, weights + 2399, names, names + 2):
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=re.escape(str(path))):
            checkpoints.load(path)


def test_files_that_are_no_checkpoints_are_refused_by_name(tmp_path):
    path = checkpoints.path_of(tmp_path, 3)
    with pytest.raises(CheckpointError, match=re.escape(f"{path}: no such checkpoint")):
        checkpoints.load(path)
    path.write_text("step: 3\n")
    with pytest.raises(CheckpointError, match=re.escape(f"{path}: ")):
        checkpoints.load(path)
    torch.save([1, 2, 3], path)
    with pytest.raises(CheckpointError, match=re.escape(f"{path}: ")):
        checkpoints.load(path)


class Malicious:
    def __reduce__(self):
        return (print, ("executed",))


def test_loading_executes_nothing(tmp_path, capsys):
    path = checkpoints.save({"step": 3, "network": Malicious()}, tmp_path, 3)
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        checkpoints.load(path)
    assert "executed" not in capsys.readouterr().out


# Whole runs: reports, grids, directories.

METRICS = {
    "loss/flow_matching",
    "loss/consistency",
    "gradient/norm",
    "gradient/spike",
    "time/step_ms",
    "time/evaluate_s",
    "time/train_s",
    "throughput/images_per_s",
    "memory/peak_mib",
    "memory/process_mib",
    "fid",
    "kid",
    "kid_error",
    "class_consistency",
    "fid_2nfe",
    "kid_2nfe",
    "kid_error_2nfe",
    "class_consistency_2nfe",
    "fid_floor",
    "kid_floor",
}
FACTS = {
    "device",
    "dtype",
    "quotient_dtype",
    "attention",
    "compiled",
    "memory_measure",
    "threads",
    "workers",
    "micro_batch",
    "dataset_fingerprint",
    "dataset_size",
    "nfe",
    "fid_feature_network",
    "fid_feature_weights_sha256",
    "fid_num_samples",
    "fid_labels",
    "fid_num_references",
    "fid_reference",
    "fid_reference_fingerprint",
    "fid_kid_subset_size",
    "fid_torch_fidelity_version",
}


@pytest.fixture(scope="module")
def finished_run(digits, evaluator, tmp_path_factory):
    """A run of 7 steps with reports every 3: its directory, its reports and its final state."""
    config = tiny_config(training={"total_steps": 7, "report_every": 3, "log_every": 2})
    directory = tmp_path_factory.mktemp("run")
    run = TrainingRun(config, digits, directory, CPU, evaluator)
    reports = []
    while not run.finished:
        reports.append(run.advance())
    return config, directory, reports, run.trainer.state_dict()


def test_reports_come_at_every_interval_and_at_the_end(finished_run):
    _, directory, reports, _ = finished_run
    assert [report.step for report in reports] == [3, 6, 7]
    best = {f"checkpoint-{checkpoints.best_step(directory):08d}.pt"}
    assert {path.name for path in directory.iterdir()} == best | {
        "best.json",
        "checkpoint-00000006.pt",
        "checkpoint-00000007.pt",
        "code",  # of the plug-in network
        "config.yaml",
        "grids",
        "reports",
    }
    assert sorted(path.name for path in (directory / "grids").iterdir()) == [
        "real.png",
        "step-00000003.png",
        "step-00000006.png",
        "step-00000007.png",
        "step-00000007_2nfe.png",
        "step-00000007_4nfe.png",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["meanflow", "shortcut"])
def test_an_extended_run_equals_one_of_that_length_bit_for_bit(name, digits, evaluator, tmp_path):
    short, long = (tiny_config(name, training={"total_steps": steps, "report_every": 2}) for steps in (3, 6))
    run = TrainingRun(short, digits, tmp_path / "extended", CPU, evaluator)
    while not run.finished:
        run.advance()
    extended = TrainingRun(long, digits, tmp_path / "extended", CPU, evaluator, start=3)
    reports = [extended.advance(), extended.advance()]
    whole = TrainingRun(long, digits, tmp_path / "whole", CPU, evaluator)
    expected = [whole.advance() for _ in range(3)]
    assert [report.step for report in reports] == [4, 6]
    assert reports[-1].metrics["fid"] == expected[-1].metrics["fid"]
    for key, value in whole.trainer.network.state_dict().items():
        assert torch.equal(value, extended.trainer.network.state_dict()[key]), key
    assert load_report(long, tmp_path / "extended", 4).finished  # it is read again after a crash


def test_a_run_whose_schedule_follows_its_length_is_not_extended(digits, evaluator, tmp_path):
    short, long = (tiny_config(training={"total_steps": steps, "report_every": 2}) for steps in (2, 4))
    TrainingRun(short, digits, tmp_path, CPU, evaluator).advance()
    with pytest.raises(checkpoints.CheckpointError, match="belongs to another configuration"):
        TrainingRun(long, digits, tmp_path, CPU, evaluator, start=2)


def test_a_report_says_what_and_how(finished_run, evaluator):
    config, _, reports, _ = finished_run
    assert [[step for step, _ in report.curve] for report in reports] == [[2], [4, 6], []]
    for report in reports:
        assert set(report.metrics) == METRICS
        assert all(np.isfinite(value) for value in report.metrics.values())
        assert {name: report.metrics[name] for name in ("fid_floor", "kid_floor")} == evaluator.floor()
        assert set(report.facts) == FACTS
        assert report.facts["nfe"] == "1,2"
        assert report.facts["fid_num_samples"] == str(config.evaluation.num_samples)
        assert report.facts["workers"] == "1"


def test_the_grid_has_a_column_per_class(finished_run):
    _, _, reports, _ = finished_run
    with Image.open(reports[-1].grids["samples"]) as grid:
        # 8x8 images shown at 32x32, ten columns and eight rows, two pixels between and around them.
        assert grid.size == (10 * 34 + 2, 8 * 34 + 2)
        pixels = np.asarray(grid.convert("L"))
    assert (pixels[:2] == 96).all()
    assert (pixels[:, 34:36] == 96).all()
    first = pixels[2:34, 2:34]
    assert np.array_equal(first, first[::4, ::4].repeat(4, 0).repeat(4, 1))  # enlarged without smoothing


def test_the_directory_s_configuration_is_the_run_s(finished_run):
    config, directory, _, _ = finished_run
    assert parse(read_yaml(directory / "config.yaml")) == config


def test_a_checkpoint_samples_the_grid_again(finished_run, tmp_path):
    config, directory, reports, _ = finished_run
    loaded, objective, network = load_sampler(checkpoints.path_of(directory, 7), CPU)
    assert loaded == config
    grids = reports[-1].grids
    assert set(grids) == {"samples", "samples_2nfe", "samples_4nfe", "real"}
    for name, nfe in {"samples": 1, "samples_2nfe": 2, "samples_4nfe": 4}.items():
        write_grid(draw_grid(objective, network, loaded, CPU, nfe), tmp_path / "grid.png", GRID_COLUMNS)
        assert (tmp_path / "grid.png").read_bytes() == grids[name].read_bytes()


def test_a_grid_s_columns_are_the_classes_that_are_asked_for(finished_run):
    config, directory, _, _ = finished_run
    loaded, objective, network = load_sampler(checkpoints.path_of(directory, 7), CPU)
    asked = []

    def noted(x, t, s, labels):
        asked.append(labels.tolist())
        return network(x, t, s, labels)

    images = draw_grid(objective, noted, loaded, CPU, 1, rows=2, classes=(3, 7, 3))
    assert asked == [[3, 7, 3, 3, 7, 3]]
    assert images.shape == (6, *config.dataset.image_shape)


def test_a_checkpoint_of_a_diverged_run_is_refused(finished_run, tmp_path):
    _, directory, _, _ = finished_run
    state = checkpoints.load(checkpoints.path_of(directory, 7))
    next(iter(state["ema"].values())).view(-1)[0] = math.nan
    path = checkpoints.save(state, tmp_path, 7)
    with pytest.raises(CheckpointError, match=re.escape(f"{path}: has infinite or NaN weights: its training diverged")):
        load_sampler(path, CPU)


CLOCKS = {
    "time/step_ms",
    "time/train_s",
    "time/evaluate_s",
    "throughput/images_per_s",
    "memory/peak_mib",
    "memory/process_mib",
}


def test_a_run_goes_on_from_its_directory(finished_run, digits, evaluator, tmp_path):
    config, directory, reports, state = finished_run
    stopped = TrainingRun(config, digits, tmp_path, CPU, evaluator)
    stopped.advance()
    resumed = TrainingRun(config, digits, tmp_path, CPU, evaluator, start=checkpoints.latest_step(tmp_path))
    later = [resumed.advance(), resumed.advance()]
    assert resumed.finished
    for found, expected in zip(later, reports[1:], strict=True):
        same = METRICS - CLOCKS
        assert {name: found.metrics[name] for name in same} == {name: expected.metrics[name] for name in same}
        assert {name: path.read_bytes() for name, path in found.grids.items()} == {
            name: path.read_bytes() for name, path in expected.grids.items()
        }
    assert_same_state(resumed.trainer.state_dict(), state)
    assert resumed.trainer.train_s > stopped.trainer.train_s
    stored = checkpoints.load(checkpoints.path_of(directory, 7))
    assert_same_state({key: stored[key] for key in state}, state)
    assert stored["config"] == to_dict(config)


def test_another_configuration_s_checkpoint_is_refused(finished_run, digits, evaluator):
    config, directory, _, _ = finished_run
    other = parse(to_dict(config) | {"seed": config.seed + 1})
    with pytest.raises(CheckpointError, match=r"checkpoint-00000007.pt: belongs to another configuration"):
        TrainingRun(other, digits, directory, CPU, evaluator, start=7)


def test_a_run_whose_checkpoints_are_all_damaged_begins_again(finished_run, digits, evaluator, tmp_path, caplog):
    config, _, reports, state = finished_run
    stopped = TrainingRun(config, digits, tmp_path, CPU, evaluator)
    stopped.advance()
    for path in tmp_path.glob("checkpoint-*.pt"):
        path.write_bytes(path.read_bytes()[:100])
    resumed = TrainingRun(config, digits, tmp_path, CPU, evaluator, start=checkpoints.latest_step(tmp_path))
    assert "training from the start" in caplog.text
    found = [resumed.advance() for _ in reports]
    assert [report.metrics["fid"] for report in found] == [report.metrics["fid"] for report in reports]
    assert_same_state(resumed.trainer.state_dict(), state)


def test_a_report_waits_for_space_on_the_disk(finished_run, digits, evaluator, tmp_path, monkeypatch, caplog):
    config, _, reports, _ = finished_run
    run = TrainingRun(config, digits, tmp_path, CPU, evaluator)
    genuine, times = checkpoints.save, []

    def full_twice(*arguments):
        times.append(arguments)
        if len(times) < 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return genuine(*arguments)

    monkeypatch.setattr(checkpoints, "save", full_twice)
    monkeypatch.setattr(files, "RETRY_S", 0.01)
    assert run.advance().metrics["fid"] == reports[0].metrics["fid"]
    said = [message.removeprefix(f"{tmp_path}: ") for message in caplog.messages]
    assert said == ["cannot be written (No space left on device); waiting until it can", "can be written again"]


class Full(io.FileIO):
    """A file on a disk with 64 KiB left."""

    def write(self, content) -> int:
        if self.tell() + memoryview(content).nbytes > 2**16:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(content)


def test_the_disk_s_error_is_found_behind_torch_s_own(tmp_path, monkeypatch, caplog):
    """torch.save ends a file that it could not write with another error, when a megabyte may fit again."""
    kinds = [io.FileIO, Full, Full]

    def save():
        with kinds.pop()(tmp_path / "state.pt", "w") as file:
            torch.save({"weights": torch.zeros(2**20)}, file)

    with pytest.raises(RuntimeError, match="unexpected pos"):
        save()
    monkeypatch.setattr(files, "RETRY_S", 0.01)
    files.patiently(save, tmp_path)
    assert len(checkpoints.load(tmp_path / "state.pt")["weights"]) == 2**20
    assert caplog.messages[0] == f"{tmp_path}: cannot be written (No space left on device); waiting until it can"


def test_a_run_does_not_resume_on_other_data(finished_run, digits, evaluator):
    config, directory, _, _ = finished_run
    images, labels = digits.batch(np.arange(len(digits)))
    changed = InMemorySource(255 - images, labels, num_classes=10)
    with pytest.raises(CheckpointError, match=r"its training data have changed \(fingerprint \w{12}, now \w{12}\)"):
        TrainingRun(config, changed, directory, CPU, evaluator, start=7)


def test_diagnostics_use_samples_of_all_classes(digits, evaluator, tmp_path, monkeypatch):
    """Folders of images are sorted by class: of 1,797 digits in that order, the first 512 are of three classes."""
    images, labels = digits.batch(np.argsort(digits.labels, kind="stable"))
    seen = []
    monkeypatch.setattr("soflow.training.run.diagnose", lambda names, subject: seen.append(subject) or {})
    run = TrainingRun(tiny_config(), InMemorySource(images, labels, 10), tmp_path, CPU, evaluator)
    run.diagnose(run.trainer.averaged_network())
    assert len(seen[0].data) == NUM_DIAGNOSED
    # 51 of each class are expected. By Hoeffding's bound, which holds for draws without replacement, one has fewer than
    # 20 with a probability of at most 10 exp(-2 · 512 · (31 / 512)²) = 0.23, and the draw is fixed.
    assert seen[0].labels.bincount(minlength=10).min() >= 20


def test_every_metric_is_on_its_page(finished_run):
    _, _, reports, _ = finished_run
    page = (REPOSITORY / "docs" / "reference" / "metrics.md").read_text()
    patterns = [re.escape(name).replace("…", ".+") for name in re.findall(r"`([^`]+)`", page)]
    metrics = {re.sub(r"_\d+nfe$", "", name) for report in reports for name in report.metrics}
    metrics |= {name for report in reports for _, values in report.curve for name in values}
    assert {"fid", "memory/peak_mib", "train/gradient/norm"} <= metrics
    assert not {name for name in metrics if not re.fullmatch("|".join(patterns), name)}


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "soflow"])
def test_every_objective_reports_its_errors_and_its_numbers_of_evaluations(name, digits, evaluator, tmp_path):
    config = tiny_config(name, training={"total_steps": 2, "report_every": 2})
    run = TrainingRun(config, digits, tmp_path, CPU, evaluator)
    report = run.advance()
    nfes = run.trainer.objective.default_nfe
    quality = {"fid", "kid", "kid_error", "class_consistency"}
    expected = (
        CLOCKS | quality | {"fid_floor", "kid_floor"} | {f"{kind}_{nfe}nfe" for kind in quality for nfe in nfes[1:]}
    )
    losses = {metric for metric in report.metrics if metric.startswith("loss/")}
    assert set(report.metrics) - losses == expected | {"gradient/norm", "gradient/spike"}
    assert "loss/flow_matching" in losses


def test_an_unconditional_run_reports_no_class_consistency(digits, evaluator, tmp_path):
    config = tiny_config(
        dataset={"conditional": False}, training={"total_steps": 2, "report_every": 2}, evaluation={"nfe": (1,)}
    )
    report = TrainingRun(config, digits, tmp_path, CPU, evaluator).advance()
    assert set(report.metrics) == {name for name in METRICS if "class" not in name and "2nfe" not in name}

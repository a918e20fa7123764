"""Snapshots of a real training: weights of other averages, exact resume, their rhythm, size and faults."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from helpers import CPU, tiny_config

import soflow
from soflow.config_base import ConfigError
from soflow.data import open_source
from soflow.evaluation.fidelity import Evaluator
from soflow.networks.dit import DiT
from soflow.posthoc_ema import Average, ema_decay, exponent, power_decay
from soflow.training import checkpoints, snapshots
from soflow.training.build import build_network
from soflow.training.ema import MovingAverage
from soflow.training.run import TrainingRun
from soflow.training.snapshots import Snapshots, check_size, predicted_bytes

STEPS = 96
TRAINING = {"total_steps": STEPS, "report_every": STEPS, "snapshot_every": STEPS // 16}
AVERAGES = [*map(Average, (0.05, 0.07, 0.1, 0.15, 0.2)), Average(decay=0.9)]


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory):
    config = tiny_config()
    return Evaluator(open_source(config.dataset), config, CPU, tmp_path_factory.mktemp("cache"))


def start(folder, evaluator, **training) -> TrainingRun:
    config = tiny_config(training=TRAINING | training)
    return TrainingRun(config, open_source(config.dataset), folder, CPU, evaluator)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, evaluator):
    """A run's folder, its configuration, and the averages that were kept at every step of it."""
    run = start(tmp_path_factory.mktemp("runs") / "run", evaluator)
    network = run.trainer.network
    kept = {
        average: MovingAverage(
            network,
            partial(power_decay, gamma=exponent(average.length))
            if average.length
            else partial(ema_decay, decay=average.decay),
        )
        for average in AVERAGES
    }
    take_step = run.trainer.take_step

    def step():
        result = take_step()
        for average in kept.values():
            average.update_parameters(network)
        return result

    run.trainer.take_step = step
    run.advance()
    return run.directory, run.config, {average: dict(one.module.named_parameters()) for average, one in kept.items()}


@pytest.mark.parametrize("average", AVERAGES, ids=str)
def test_weights_from_16_snapshots_are_those_of_the_average(trained, average):
    """At most 1 %: float16 rounds to 2^-12 = 0.02 %, and the profiles are as close as `reconstruct` says."""
    folder, config, kept = trained
    found = Snapshots(folder, config, STEPS).weights(average)
    assert found.keys() == kept[average].keys()
    difference = sum(float((found[name] - value).square().sum()) for name, value in kept[average].items())
    size = sum(float(value.square().sum()) for value in kept[average].values())
    assert (difference / size) ** 0.5 < 0.01


def test_a_model_can_use_other_averages(trained):
    folder, _, kept = trained
    model = soflow.load_model(folder, device="cpu", ema="0.1")
    for name, value in model.network.named_parameters():
        torch.testing.assert_close(value, kept[Average(0.1)][name], rtol=2e-3, atol=1e-4, msg=name)
    model.use_average("trained")
    plain = soflow.load_model(folder, device="cpu")
    for name, value in plain.network.state_dict().items():
        assert torch.equal(model.network.state_dict()[name], value)
    with pytest.raises(ConfigError, match="ema = long: must be trained, a relative length"):
        model.use_average("long")


def test_a_resumed_run_saves_the_same_snapshots(trained, evaluator, tmp_path):
    folder, config, _ = trained
    half = {"report_every": STEPS // 2}
    start(tmp_path, evaluator, **half).advance()
    resumed = TrainingRun(
        tiny_config(training=TRAINING | half), open_source(config.dataset), tmp_path, CPU, evaluator, STEPS // 2
    )
    resumed.advance()
    for path in (folder / snapshots.FOLDER).iterdir():
        one, other = (checkpoints.load(path) for path in (path, tmp_path / snapshots.FOLDER / path.name))
        for length, weights in one.items():
            assert all(torch.equal(value, other[length][name]) for name, value in weights.items())


def test_snapshots_have_their_rhythm_and_their_size(trained):
    folder, config, _ = trained
    files = sorted((folder / snapshots.FOLDER).iterdir())
    assert [path.name for path in files] == [f"step-{step:08d}.pt" for step in range(6, STEPS + 1, 6)]
    predicted = predicted_bytes(config, build_network(config, 10))
    size = sum(path.stat().st_size for path in files)
    assert predicted <= size < 1.25 * predicted  # names and headers of a small network


def test_the_last_step_has_a_snapshot(evaluator, tmp_path):
    run = start(tmp_path / "other", evaluator, total_steps=10, report_every=10, snapshot_every=4)
    run.advance()
    names = {path.name for path in (tmp_path / "other" / snapshots.FOLDER).iterdir()}
    assert names == {"step-00000004.pt", "step-00000008.pt", "step-00000010.pt"}


def test_a_new_run_in_a_folder_deletes_old_snapshots(evaluator, tmp_path):
    start(tmp_path, evaluator, total_steps=8, report_every=8, snapshot_every=4).advance()
    (tmp_path / snapshots.FOLDER / ".step-00000004.pt-0123").touch()  # left by a process that was killed
    start(tmp_path, evaluator, total_steps=9, report_every=9, snapshot_every=9).advance()
    assert [path.name for path in (tmp_path / snapshots.FOLDER).iterdir()] == ["step-00000009.pt"]


def test_averages_of_ema_every_steps_count_updates(evaluator, tmp_path):
    run = start(tmp_path, evaluator, total_steps=12, report_every=12, snapshot_every=4, ema_every=2)
    (tmp_path / snapshots.FOLDER).mkdir(exist_ok=True)
    (tmp_path / snapshots.FOLDER / ".step-00000004.pt-0123").touch()  # the process was killed and resumed
    run.advance()
    assert len(list((tmp_path / snapshots.FOLDER).iterdir())) == 3
    assert all(int(average.n_averaged) == 6 for average in run.trainer.power_averages.values())
    found = Snapshots(tmp_path, run.config, 12).weights(Average(0.1))
    for name, value in run.trainer.power_averages[0.1].module.named_parameters():
        torch.testing.assert_close(found[name], value.detach(), rtol=1e-3, atol=1e-5)


def test_without_snapshots_it_says_what_to_set(tmp_path):
    config = tiny_config(training={"total_steps": 1600})
    with pytest.raises(ConfigError, match=r"has no snapshots up to step 1600, .*--training\.snapshot-every 100"):
        Snapshots(tmp_path, config, 1600)


@pytest.mark.parametrize("average", [Average(0.01), Average(decay=0.2)], ids=str)
def test_an_average_out_of_reach_is_refused_with_its_error(trained, average):
    folder, config, _ = trained
    with pytest.raises(ConfigError, match=rf"ema = {average}: cannot be made from 16 snapshots .* error would be \d+%"):
        Snapshots(folder, config, STEPS).weights(average)


def test_a_damaged_snapshot_is_named(trained, tmp_path):
    folder, config, _ = trained
    copy = tmp_path / snapshots.FOLDER
    copy.mkdir()
    for path in (folder / snapshots.FOLDER).iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    damaged = copy / "step-00000048.pt"
    damaged.write_bytes(damaged.read_bytes()[:-200])
    with pytest.raises(checkpoints.CheckpointError, match=r"step-00000048\.pt: is damaged"):
        Snapshots(tmp_path, config, STEPS).weights(Average(0.15))


def test_too_large_snapshots_are_refused_with_a_rhythm_that_fits():
    config = tiny_config(training={"total_steps": 100_000, "snapshot_every": 10, "snapshot_gib": 1.0})
    with torch.device("meta"):
        network = DiT(image_size=8, channels=1, num_classes=10, patch=2, width=64, depth=4, heads=4)
    with pytest.raises(ConfigError, match=r"10000 snapshots take .* GiB, more than .* = 1; (\d+) fits") as refusal:
        check_size(config, network)
    fitting = int(str(refusal.value).rpartition(" fits")[0].rpartition("; ")[2])
    check_size(tiny_config(training={"total_steps": 100_000, "snapshot_every": fitting, "snapshot_gib": 1.0}), network)


def test_lengths_are_different_and_possible():
    for lengths, reason in (
        ([0.1, 0.1], "different lengths"),
        ([], "different lengths"),
        ([0.3], "less than or equal"),
    ):
        with pytest.raises(ConfigError, match=f"training.snapshot_lengths.*{reason}"):
            tiny_config(training={"snapshot_lengths": lengths})


def test_a_snapshot_before_the_first_update_does_not_count(evaluator, tmp_path):
    run = start(tmp_path, evaluator, total_steps=12, report_every=12, snapshot_every=2, ema_every=4)
    run.advance()
    found = Snapshots(tmp_path, run.config, 12).weights(Average(0.1))
    for name, value in run.trainer.power_averages[0.1].module.named_parameters():
        torch.testing.assert_close(found[name], value.detach(), rtol=1e-3, atol=1e-5)


def test_a_run_with_too_large_snapshots_does_not_start(evaluator, tmp_path):
    with pytest.raises(ConfigError, match=r"training\.snapshot_every = 2: 6 snapshots take"):
        start(tmp_path, evaluator, total_steps=12, report_every=12, snapshot_every=2, snapshot_gib=1e-6)

"""Checkpoints between reports: when they are saved, and that a run which continues from one is the same run."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from helpers import CPU, tiny_config
from torch import distributed

from soflow.data import open_source
from soflow.evaluation.fidelity import Evaluator
from soflow.profiling import clock as step_clock
from soflow.training import checkpoints, interval
from soflow.training import trainer as trainer_module
from soflow.training.interval import CHECK_S, NOTICE_S, CheckpointTimer
from soflow.training.reports import load_report
from soflow.training.run import TrainingRun, agreed
from soflow.training.trainer import Trainer

CLOCKS = ("time/", "memory/", "throughput/")
WORKERS = 2


class Killed(Exception):
    """The end of the process, as far as a test can have one."""


@pytest.fixture(scope="module")
def config():
    return tiny_config(
        "soflow", training={"total_steps": 12, "report_every": 6, "log_every": 2, "checkpoint_every_s": 1e-6}
    )


@pytest.fixture(scope="module")
def digits(config):
    return open_source(config.dataset)


@pytest.fixture(scope="module")
def evaluator(config, digits, tmp_path_factory):
    return Evaluator(digits, config, CPU, tmp_path_factory.mktemp("cache"))


@pytest.fixture
def after_every_step(monkeypatch):
    monkeypatch.setattr(interval, "CHECK_S", 0.0)


def killed_after(run: TrainingRun, saves: int) -> None:
    """Train until this many checkpoints between reports are saved, and no further."""
    left = [saves]

    def count():
        left[0] -= 1
        if not left[0]:
            raise Killed

    run._on_interim = count
    with pytest.raises(Killed):
        list(iter(run.advance, None))


@pytest.mark.parametrize("saves", [3, 8, *(pytest.param(saves, marks=pytest.mark.soak) for saves in (1, 5, 6))])
def test_a_run_killed_between_reports_trains_no_step_again_and_reports_the_same(
    saves, config, digits, evaluator, tmp_path, after_every_step
):
    whole = TrainingRun(config, digits, tmp_path / "whole", CPU, evaluator)
    expected = [whole.advance(), whole.advance()]
    killed_after(TrainingRun(config, digits, tmp_path / "run", CPU, evaluator), saves)
    start = 6 * (saves > 5)  # five checkpoints fit between two reports
    resumed = TrainingRun(config, digits, tmp_path / "run", CPU, evaluator, start=start)
    assert resumed.trainer.step == saves + (saves > 5)
    found = [resumed.advance() for _ in expected[start // 6 :]]
    for report, other in zip(found, expected[start // 6 :], strict=True):
        same = [name for name in other.metrics if not name.startswith(CLOCKS)]
        assert "gradient/spike" in same
        assert {name: report.metrics[name] for name in same} == {name: other.metrics[name] for name in same}
        assert report.curve == other.curve
        assert [step for step, _ in report.curve] == [report.step - 4, report.step - 2, report.step]
    for one, other in zip(whole.trainer.network.parameters(), resumed.trainer.network.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not (tmp_path / "run" / checkpoints.INTERIM_FILE).exists()
    assert load_report(config, tmp_path / "run", 0)


def test_what_does_not_belong_to_the_run_or_is_damaged_is_left_out(
    config, digits, evaluator, tmp_path, after_every_step, caplog
):
    killed_after(TrainingRun(config, digits, tmp_path, CPU, evaluator), 7)
    path = tmp_path / checkpoints.INTERIM_FILE
    assert TrainingRun(config, digits, tmp_path, CPU, evaluator, start=6).trainer.step == 8
    other = config.model_copy(update={"seed": 1})
    assert TrainingRun(other, digits, tmp_path, CPU, evaluator, start=0).trainer.step == 0  # a trial drawn again
    assert TrainingRun(config, digits, tmp_path, CPU, evaluator, start=12).trainer.step == 6  # of another interval
    path.write_bytes(path.read_bytes()[:1000])
    assert TrainingRun(config, digits, tmp_path, CPU, evaluator, start=6).trainer.step == 6
    assert f"{path}: is damaged or not a checkpoint" in caplog.text


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ({0: [350, 200], 1: [300, 200]}, 200),  # one machine is ahead of the store
        ({0: [600, 400], 1: [200]}, 0),
        ({0: [600, 400, 200], 1: [200]}, 200),
        ({0: [100], 1: [100]}, 100),
        ({0: [100], 1: []}, 0),
    ],
)
def test_workers_with_different_checkpoints_agree_on_one_that_all_have(steps, expected):
    """Two workers in threads, which exchange their steps as collectives do."""
    barrier, exchanged = threading.Barrier(2, timeout=10), {}

    def worker(rank: int) -> int:
        def at_most(limit: int) -> tuple[int, dict]:
            return max((step for step in steps[rank] if step <= limit), default=0), {}

        def range_of(step: int) -> tuple[int, int]:
            exchanged[rank] = step
            barrier.wait()
            found = min(exchanged.values()), max(exchanged.values())
            barrier.wait()
            return found

        return agreed(at_most(1000), at_most, range_of)[0]

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(worker, (0, 1))) == [expected, expected]


class Clock:
    """Stands for the time module: a clock that the test turns on."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic


def test_time_between_steps_is_no_training_time(config, digits, after_every_step, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(trainer_module, "time", clock)
    monkeypatch.setattr(step_clock, "time", clock)

    def save() -> None:
        clock.now += 1000

    trainer = Trainer(config, digits, CPU)
    take_step = trainer.take_step

    def take_quarter_second():
        clock.now += 0.25
        return take_step()

    monkeypatch.setattr(trainer, "take_step", take_quarter_second)
    metrics = trainer.advance(6, due=lambda: True, save=save)
    assert metrics["time/train_s"] == 6 * 0.25
    assert metrics["time/step_ms"] == 250


@pytest.mark.parametrize("step_s", [0.001, 0.3, 7.0])
def test_checkpoints_come_in_time_and_decisions_are_rare(step_s, monkeypatch):
    clock, votes = Clock(), []
    monkeypatch.setattr(interval, "time", clock)

    def reduce(value, operation):
        votes.append(operation)
        return value

    timer = CheckpointTimer(60.0, reduce, lambda: False, CPU)
    saved = []
    for _ in range(int(600 / step_s)):
        clock.now += step_s
        if timer.due():
            saved.append(clock.now)
            timer.saved()
    gaps = [b - a for a, b in zip([100.0, *saved], saved, strict=False)]
    assert all(60 <= gap <= 60 + max(2 * CHECK_S, step_s) for gap in gaps), gaps
    assert len(saved) >= 8
    assert len(votes) <= 600 / (CHECK_S / 2) + 20  # whole steps, rounded down: at least half of the time is used


def test_a_notice_is_answered_at_once_and_then_every_few_seconds(monkeypatch):
    clock, announced = Clock(), []
    monkeypatch.setattr(interval, "time", clock)
    timer = CheckpointTimer(1e6, lambda value, _: value, lambda: bool(announced), CPU)
    saved = []
    for step in range(600):
        clock.now += 0.1
        if step == 300:
            announced.append(clock.now)
        if timer.due():
            saved.append(clock.now)
            timer.saved()
    assert 0 <= saved[0] - announced[0] <= CHECK_S + 0.2
    gaps = [b - a for a, b in itertools.pairwise(saved)]
    assert gaps
    assert all(NOTICE_S <= gap <= NOTICE_S + CHECK_S + 0.2 for gap in gaps), gaps


def two_workers(rank: int, folder: Path) -> None:
    """One of two workers of a run that is killed between reports and continues."""
    torch.set_num_threads(1)
    rendezvous = f"file://{folder / 'rendezvous'}"
    limit = timedelta(seconds=60)
    distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=WORKERS, timeout=limit)
    interval.CHECK_S = 0.0
    run = tiny_config(training={"total_steps": 6, "report_every": 6, "log_every": 2, "checkpoint_every_s": 1e-6})
    source = open_source(run.dataset)
    whole = Trainer(run, source, CPU, rank, WORKERS)
    expected = whole.advance(6)
    first = Trainer(run, source, CPU, rank, WORKERS)

    def save():
        state = first.state_dict()
        if rank == 0:
            torch.save(state, folder / "interim.pt")

    first.advance(6, due=lambda: first.step == 3, save=save)
    distributed.barrier()
    resumed = Trainer(run, source, CPU, rank, WORKERS)
    resumed.load_state_dict(torch.load(folder / "interim.pt", weights_only=True))
    metrics = resumed.advance(3)
    same = [name for name in expected if not name.startswith(CLOCKS)]
    result = [{name: values[name] for name in same} for values in (expected, metrics)], [whole.curve, resumed.curve]
    torch.save(result, folder / f"{rank}.pt")
    distributed.destroy_process_group()


def test_two_workers_continue_with_what_each_has_measured(tmp_path):
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["soflow.training.run"])  # one import for both
    workers = [context.Process(target=two_workers, args=(rank, tmp_path)) for rank in range(WORKERS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    for rank in range(WORKERS):
        (expected, found), (curve, other) = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert found == expected
        assert other == curve

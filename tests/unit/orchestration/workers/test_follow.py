"""What was lost is made again or read from disk: torn checkpoints, lost reports, steps that do not fit into memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import CPU, REPOSITORY, relative_error, tiny_config

from orchestration.sweep.trial_actor import over_seeds
from orchestration.workers.follow import FollowedRun
from orchestration.workers.group import RequestFailed
from orchestration.workers.mailbox import OUT_OF_MEMORY as NO_MEMORY
from orchestration.workers.messages import Request
from orchestration.workers.training import TrainingWorker
from soflow.config import RunConfig
from soflow.statistics import mean_interval
from soflow.training import checkpoints
from soflow.training.build import build_objective
from soflow.training.checkpoints import CheckpointError
from soflow.training.inputs import StepInputs
from soflow.training.reports import load_report
from soflow.training.trainer import Trainer
from tests.unit.soflow.training.test_distributed import cases, disturb, source

CLOCKS = ("time/", "throughput/", "memory/")


class OneWorker:
    """A group of one worker, in this process."""

    def __init__(self, cache: Path):
        self.worker = TrainingWorker(str(cache), CPU, 0, 1)
        self.requests: list[Request] = []

    def ask(self, request: Request):
        self.requests.append(request)
        return self.worker.serve(request)


def to_the_end(run: FollowedRun, group: OneWorker) -> list:
    answers = []
    while not (answers and answers[-1].report.finished):
        answers.append(run.next_report(group))
        assert answers[-1].failure is None, answers[-1].failure
    return answers


def numbers(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith(CLOCKS)}


def all_numbers(answers: list) -> list[dict[str, float]]:
    return [numbers(answer.report.metrics) for answer in answers]


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return tiny_config(training={"total_steps": 8, "report_every": 2})


@pytest.fixture(scope="module")
def group(tmp_path_factory) -> OneWorker:
    return OneWorker(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def undisturbed(config, group, tmp_path_factory):
    return to_the_end(FollowedRun(config, tmp_path_factory.mktemp("undisturbed"), 1), group)


# Checkpoints.

STATE = {"step": 1, "network": {"weight": torch.arange(300.0)}}


def kept(folder: Path) -> list[int]:
    return sorted(int(path.stem[-8:]) for path in folder.glob("checkpoint-*.pt"))


def test_last_previous_and_best_are_kept(tmp_path):
    fids = {1: 5.0, 2: 3.0, 3: 4.0, 4: float("nan"), 5: 2.0, 6: 2.5, 7: 2.0}
    expected = {1: [1], 2: [1, 2], 3: [2, 3], 4: [2, 3, 4], 5: [4, 5], 6: [5, 6], 7: [5, 6, 7]}
    for step, fid in fids.items():
        checkpoints.save(STATE, tmp_path, step, fid)
        assert kept(tmp_path) == expected[step]
    assert checkpoints.best_step(tmp_path) == 5
    checkpoints.save(STATE, tmp_path, 4, 2.9)  # a run that went back: what came after is made again
    assert (kept(tmp_path), checkpoints.best_step(tmp_path)) == ([4], 4)


def test_every_flipped_byte_is_noticed_or_harmless(tmp_path):
    path = checkpoints.save(STATE, tmp_path, 1)
    content, noticed = path.read_bytes(), 0
    for position in range(0, len(content), 37):
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        try:
            state = checkpoints.load(path)
        except CheckpointError:
            noticed += 1
        else:  # in a field that nobody reads
            assert torch.equal(state["network"]["weight"], STATE["network"]["weight"])
            assert state["step"] == 1
    assert noticed > 0.6 * len(range(0, len(content), 37))


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x01
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [tear, flip, Path.unlink])
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(damage, config, group, undisturbed, tmp_path):
    run = FollowedRun(config, tmp_path, 1)
    answers = [run.next_report(group) for _ in range(3)]
    damage(checkpoints.path_of(tmp_path, 6))
    group.worker = TrainingWorker(str(group.worker.cache), CPU, 0, 1)  # the one that held the run is lost
    answers += to_the_end(run, group)
    assert [answer.step for answer in answers] == [2, 4, 6, 8]  # nothing twice
    assert [numbers(answer.report.metrics) for answer in answers[-1:]] == [numbers(undisturbed[-1].report.metrics)]
    assert checkpoints.load(checkpoints.path_of(tmp_path, 6))["step"] == 6  # made again on the way


def test_if_no_checkpoint_is_good_the_run_begins_again(config, group, undisturbed, tmp_path, caplog):
    run = FollowedRun(config, tmp_path, 1)
    for _ in range(2):
        run.next_report(group)
    for step in kept(tmp_path):
        tear(checkpoints.path_of(tmp_path, step))
    group.worker = TrainingWorker(str(group.worker.cache), CPU, 0, 1)
    answer = run.next_report(group)
    for step in (2, 4):
        assert f"{checkpoints.path_of(tmp_path, step)}: is damaged" in caplog.text
    assert "training from the start" in caplog.text
    assert answer.step == 6
    assert answer.reported.metrics["fid"] == undisturbed[2].reported.metrics["fid"]


# Reports.


def test_reports_that_were_lost_with_their_owner_are_read_not_made_again(config, group, undisturbed, tmp_path):
    first = to_the_end(FollowedRun(config, tmp_path, 1), group)
    asked = len(group.requests)
    again = to_the_end(FollowedRun(config, tmp_path, 1), group)
    assert len(group.requests) == asked
    assert [answer.step for answer in again] == [2, 4, 6, 8]
    for one, other in zip(first, again, strict=True):
        handover = {"time/handover_s": one.report.metrics.get("time/handover_s")} if one.step == 2 else {}
        assert other.report.metrics | handover == one.report.metrics  # clocks included
        assert (other.report.facts, other.report.grids) == (one.report.facts, one.report.grids)
    assert [numbers(answer.report.metrics) for answer in again] == [
        numbers(answer.report.metrics) for answer in undisturbed
    ]


def test_an_owner_that_is_behind_the_checkpoints_catches_up(config, group, undisturbed, tmp_path):
    """Its last snapshot says step 2, of which no checkpoint is left."""
    ahead = FollowedRun(config, tmp_path, 1)
    for _ in range(3):
        ahead.next_report(group)
    assert 2 not in kept(tmp_path) or checkpoints.best_step(tmp_path) == 2
    group.worker = TrainingWorker(str(group.worker.cache), CPU, 0, 1)
    answers = to_the_end(FollowedRun(config, tmp_path, 1, step=2), group)
    assert [answer.step for answer in answers] == [4, 6, 8]
    assert [numbers(answer.report.metrics) for answer in answers] == [
        numbers(answer.report.metrics) for answer in undisturbed[1:]
    ]


def test_a_damaged_or_foreign_report_is_made_again(config, group, tmp_path):
    FollowedRun(config, tmp_path, 1).next_report(group)
    other = config.model_copy(update={"seed": 1})
    assert load_report(config, tmp_path, 0).step == 2
    assert load_report(other, tmp_path, 0) is None
    (path,) = (tmp_path / "reports").iterdir()
    path.write_text(path.read_text()[:40])
    assert load_report(config, tmp_path, 0) is None
    answer = FollowedRun(other, tmp_path, 1).next_report(group)
    assert answer.step == 2
    assert load_report(other, tmp_path, 0).metrics["fid"] == answer.report.metrics["fid"]


# Memory.


def in_micro_batches(case: tuple, micro_batches: int) -> tuple[dict, dict]:
    """Gradients of one step and the losses reported, in float64."""
    name, settings, batch = case[:3]
    trainer = Trainer(
        tiny_config(name, objective=settings, training={"batch_size": batch}),
        source(),
        CPU,
        micro_batches=micro_batches,
    )
    disturb(trainer.network)
    metrics = trainer.advance(1)
    gradients = {name: parameter.grad for name, parameter in trainer.network.named_parameters()}
    return gradients, {name: value for name, value in metrics.items() if name.startswith("loss/")}


@pytest.mark.parametrize("case", [name for name in cases() if "defaults" in name or " of 6" in name])
def test_micro_batches_add_up_to_the_batch(case):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        whole, losses = in_micro_batches(cases()[case], 1)
        micro_batches = {10: 3, 6: 6}[cases()[case][2]]  # uneven ones, and single samples
        parts, same_losses = in_micro_batches(cases()[case], micro_batches)
        for name, gradient in whole.items():
            assert gradient.abs().max() > 0
            assert relative_error(parts[name], gradient) < 1e-12, (name, micro_batches)
        assert same_losses == pytest.approx(losses, rel=1e-12)
    finally:
        torch.set_default_dtype(before)


def test_every_micro_batch_has_dropout_masks_of_its_own():
    config = tiny_config(network={"name": "U-Net-XS", "dropout": 0.5}, training={"batch_size": 6})
    seeds = []
    for rank in range(2):
        inputs = StepInputs(config, source(), build_objective(config, 10), CPU, rank, world_size=2, micro_batches=3)
        seeds += [draws.dropout_seed for draws in inputs.draws(0)]
    assert len(set(seeds)) == 6


OUT_OF_MEMORY = """
import resource, sys
from pathlib import Path
import torch
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tests"]
from helpers import tiny_config
from tests.unit.orchestration.workers.test_follow import OneWorker, heavy
from orchestration.workers.follow import FollowedRun
from orchestration.workers.mailbox import OUT_OF_MEMORY as NO_MEMORY

torch.set_num_threads(1)
folder = Path(sys.argv[2])
group = OneWorker(folder / "cache")
FollowedRun(tiny_config("flow_matching", training={"total_steps": 1}), folder / "first", 1).next_report(group)
for headroom_mib in map(int, sys.argv[3:]):
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + headroom_mib * 2**20, resource.RLIM_INFINITY))
    group.requests.clear()
    answer = FollowedRun(heavy(), folder / str(headroom_mib), 1).next_report(group)
    print([request.micro_batches for request in group.requests])
    report = answer.report
    made = (report.facts["micro_batch"], report.metrics["loss/flow_matching"]) if report else (None, None)
    print(*made, answer.failure)
"""


def heavy() -> RunConfig:
    """A step of some 150 MiB."""
    network, training = {"name": "DiT-XXS/2"}, {"batch_size": 512, "total_steps": 1}
    return tiny_config("flow_matching", network=network, training=training)


@pytest.mark.soak  # a worker that is asked for less: below; the parts: tests/unit/soflow/training
def test_a_step_that_does_not_fit_is_taken_in_smaller_parts(group, tmp_path):
    """The operating system refuses memory beyond a limit; the second limit is too low for a single sample."""
    command = [sys.executable, "-c", OUT_OF_MEMORY, str(REPOSITORY), str(tmp_path), "60", "20"]
    # Freed blocks go back at once, so that what is in use is what counts.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    ended = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment, timeout=300)
    assert ended.returncode == 0, ended.stderr
    asked, (micro_batch, loss, failure), asked_again, failed = (
        line if line.startswith("[") else line.split(maxsplit=2) for line in ended.stdout.splitlines()
    )
    assert failure == "None"
    parts = [int(part) for part in asked.strip("[]").split(", ")]
    assert len(parts) > 1
    assert parts == [2**attempt for attempt in range(len(parts))]
    assert int(micro_batch) == 512 // parts[-1]
    whole = FollowedRun(heavy(), tmp_path / "whole", 1).next_report(group)
    assert whole.report.facts["micro_batch"] == "512"
    assert float(loss) == pytest.approx(whole.report.metrics["loss/flow_matching"], rel=1e-5)  # float32
    assert asked_again == str([2**attempt for attempt in range(10)])
    reason = r"training.batch_size = 512: a step does not fit into memory with 1 samples at a time on each of 1 workers"
    assert failed[2].startswith(reason)


# Seeds.


def test_the_interval_over_seeds_is_student_s():
    """Mean 2, standard deviation 1, three values: 4.302653 / sqrt(3) to either side."""
    mean, low, high = mean_interval([1.0, 2.0, 3.0])
    assert (mean, low, high) == pytest.approx((2.0, 2 - 2.484138, 2 + 2.484138), abs=1e-6)


def test_the_mean_over_seeds_takes_the_place_of_the_first_seed_s_fid():
    assert over_seeds([{"fid": 1.0, "kid": 5.0}]) == {"fid": 1.0, "kid": 5.0}
    several = over_seeds([{"fid": 1.0, "kid": 5.0}, {"fid": 3.0, "kid": 6.0}])
    assert several["kid"] == 5.0
    assert several["fid"] == several["fid/mean"] == 2.0
    assert (several["fid/seed_0"], several["fid/seed_1"]) == (1.0, 3.0)
    assert several["fid/low"] < 1 < 3 < several["fid/high"]


class OutOfMemoryAbove:
    """A group whose node runs out of memory at more samples at a time, as Ray's memory monitor tells it."""

    def __init__(self, group: OneWorker, samples: int, batch_size: int):
        self.group, self.samples, self.batch_size = group, samples, batch_size

    def ask(self, request: Request):
        if self.batch_size / request.micro_batches > self.samples:
            raise RequestFailed(f"the workers were lost 1 times: worker 0: killed since {NO_MEMORY}")
        return self.group.ask(request)


def test_workers_that_their_node_had_no_memory_for_are_asked_for_less(config, group, undisturbed, tmp_path):
    scarce = OutOfMemoryAbove(group, 2, config.training.batch_size)
    run = FollowedRun(config, tmp_path, 1)
    answer = run.next_report(scarce)
    assert (run.micro_batches, answer.failure) == (4, None)
    losses = [found.report.metrics["loss/consistency"] for found in (answer, undisturbed[0])]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)  # float32 sums in another order
    hopeless = FollowedRun(config, tmp_path / "hopeless", 1)
    assert "ran out of memory" in hopeless.next_report(OutOfMemoryAbove(group, 0, 8)).failure
    assert hopeless.micro_batches == config.training.batch_size

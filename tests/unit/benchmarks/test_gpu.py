"""The checks of `make gpu`, on the CPU at tiny sizes: they measure what they say, and notice faults."""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from helpers import CPU, REPOSITORY

from benchmarks.gpu import agreement, page, sharing, sweep, throughput, training
from benchmarks.gpu.__main__ import NO_CUDA
from benchmarks.gpu.agreement import FACTOR, Case, case_of, errors, forms
from benchmarks.gpu.checks import CHECKS, CORRECTNESS, HALVES, Check, outcome_of, run, worst
from benchmarks.gpu.processes import in_processes
from benchmarks.gpu.results import FAILED, NOT_RUN, PASSED, Figure, Outcome, Results, earlier, load, merged, save
from benchmarks.gpu.throughput import LABELS, NotReached, Row, timed
from soflow.objectives.registry import OBJECTIVES

SAME_DEVICE = torch.device("cpu:0")
"""Another name of the CPU, for the device that is compared with it."""


# What is measured.


@pytest.mark.parametrize("network", ["DiT-XXS/4", pytest.param("U-Net-XS", marks=pytest.mark.soak)])
def test_the_cpu_agrees_with_itself(network):
    figures = agreement.agreement(SAME_DEVICE, networks=[network])
    assert {name.partition(",")[0] for name in forms()} == set(OBJECTIVES)
    assert len(figures) == 2 * len(forms())
    assert all(figure.passes for figure in figures)
    for figure in figures:  # in float64 nothing differs; in float32 an error is as large as itself, or below a roundoff
        assert figure.value == 0 if figure.name.endswith("float64") else 0 < figure.value <= 1


class OneTermWrong(Case):
    """Case whose device computes with data that are wrong by a thousandth."""

    def results(self, device, dtype):
        case = Case(**vars(self) | {"data": self.data * 1.001}) if device == SAME_DEVICE else Case(**vars(self))
        return case.results(device, dtype)


def test_a_wrong_device_is_noticed():
    case = OneTermWrong(**vars(case_of({"name": "soflow"}, "DiT-XXS/4")))
    assert min(errors(case, SAME_DEVICE).values()) > FACTOR


def test_a_nan_in_any_result_is_noticed(monkeypatch):
    case = case_of({"name": "soflow"}, "DiT-XXS/4")
    results = Case.results

    def with_nan(self, device, dtype):
        found = results(self, device, dtype)
        return found | {list(found)[-1]: torch.full((1,), torch.nan)} if device == SAME_DEVICE else found

    monkeypatch.setattr(agreement, "case_of", lambda *arguments: case)
    monkeypatch.setattr(Case, "results", with_nan)
    figures = agreement.agreement(SAME_DEVICE, networks=["DiT-XXS/4"])
    assert figures
    assert not any(figure.passes for figure in figures)


def test_resuming_loses_nothing():
    figures = training.resume(CPU, cases=["soflow"])
    assert [figure.value for figure in figures] == [0, 0]
    assert not torch.are_deterministic_algorithms_enabled()


def test_differing_values_are_counted():
    state = training.state_after(training.config_of(), CPU)
    other = training.state_after(training.config_of(seed=1), CPU)
    numbers = sum(tensor.numel() for tensor in training.tensors(state))
    assert 0 < training.differing(state, other) <= numbers
    assert training.differing(state, state) == 0


@pytest.mark.slow
def test_precision_is_measured_on_a_trained_network():
    figures = training.precision(CPU, steps=1, ratios=(0.1,))
    assert [figure.name for figure in figures] == [f"{name}, r = 0.1" for name in ("fp32", "tf32", "bf16")]
    assert 0 < figures[0].value < figures[1].value < figures[2].value
    assert all(figure.passes for figure in figures)


@pytest.mark.slow
def test_memory_is_compared_with_its_prediction():
    figures = training.memory(CPU, network="DiT-XXS/4", batch=4)
    assert len(figures) == 6
    assert all(0 <= figure.value <= figure.limit for figure in figures)


@pytest.mark.parametrize("variant", [name for name in LABELS if name != "meanflow_flash"])  # CUDA only
def test_a_step_is_timed(variant):
    row = Row("DiT-XXS/4", variant)
    config = row.config(4)
    assert (config.dataset.sample_shape, config.training.precision) == ((4, 32, 32), "bf16")
    figures = {figure.name: figure.value for figure in timed(row, CPU, 4)}
    assert figures["batch"] == 4
    assert figures["images/s"] > 0
    assert 0 < figures["peak memory, GiB"] < 1


def test_rows_have_names_of_their_own():
    assert len({check.name for check in CHECKS}) == len(CHECKS)


# In other processes.


@contextmanager
def address_space_limited(headroom: int):
    """Refuse memory beyond `headroom` bytes more than this process uses now, as a GPU's limit does."""
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + headroom, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def micro_batches_on_the_cpu() -> list[Figure]:
    torch.set_num_threads(1)
    return training.micro_batches(CPU, address_space_limited)


@pytest.mark.soak
def test_a_batch_that_does_not_fit_is_split(monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")  # freed blocks go back at once
    (figures,) = in_processes(micro_batches_on_the_cpu, [()], 300)
    error, whole, parts = (figure.value for figure in figures)
    assert error <= 1e-5
    assert whole == 0
    assert parts >= 2


def throughput_on_the_cpu() -> list[Figure]:
    torch.set_num_threads(1)
    timed(Row("DiT-XXS/4", "flow_matching"), CPU, 2)  # imports and caches
    with address_space_limited(400 * 2**20):
        return throughput.largest_that_fits(Row("DiT-XXS/4", "flow_matching"), "cpu", 1024)


@pytest.mark.soak
def test_a_batch_is_halved_until_it_fits(monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")  # freed blocks go back at once
    (figures,) = in_processes(throughput_on_the_cpu, [()], 300)
    batch = next(figure.value for figure in figures if figure.name == "batch")
    assert batch in (512, 256, 128, 64, 32)


@pytest.mark.soak
def test_two_processes_share_a_device():
    differences, ratio = sharing.shared_gpu(CPU, steps=3)
    assert differences.value == 0
    assert ratio.value > 0


@pytest.mark.soak
def test_a_sweep_runs_as_on_half_gpus():
    figures = sweep.on_half_gpus(CPU, trials=2, steps=20)
    assert [figure.value for figure in figures[:2]] == [0, 0]
    assert all(figure.value > 0 for figure in figures[2:])


@pytest.mark.soak  # tests/unit/soflow/training/test_distributed.py has more of it
def test_two_workers_take_the_steps_of_one():
    figures = sharing.two_workers((CPU, CPU))
    assert all(figure.passes for figure in figures)
    assert figures[1].value > 0  # they did sum in another order


@pytest.mark.slow
def test_a_process_that_takes_too_long_is_stopped():
    with pytest.raises(TimeoutError, match="no result after 1 seconds"):
        in_processes(time.sleep, [(3600,)], 1)


# How checks are run.


def figures_of(*values: float):
    return lambda device, seconds: [Figure("x", value, 1.0) for value in values]


def refuses(device, seconds):
    raise ValueError("first line\nsecond line")


def too_slow(device, seconds):
    raise NotReached(f"no result after {seconds:.0f} seconds")


def deadlocked(device, seconds):
    raise TimeoutError(f"no result after {seconds:.0f} seconds")


@pytest.mark.parametrize(
    ("measure", "verdict", "reason"),
    [
        (figures_of(0.5, 1.0), PASSED, "why"),
        (figures_of(0.5, 1.1), FAILED, "why"),
        (figures_of(math.nan), FAILED, "why"),
        (figures_of(), FAILED, "why"),
        (refuses, FAILED, "ValueError: first line"),
        (too_slow, NOT_RUN, "not reached: no result after 9 seconds"),
        (deadlocked, FAILED, "TimeoutError: no result after 9 seconds"),
    ],
)
def test_verdicts(measure, verdict, reason):
    outcome = outcome_of(Check("name", measure, "why"), CPU, 9)
    assert (outcome.check, outcome.verdict, outcome.reason) == ("name", verdict, reason)


def test_a_second_gpu_must_be_there():
    outcome = outcome_of(Check("name", figures_of(0), "why", gpus=2), CPU, 9)
    assert (outcome.verdict, outcome.reason) == (NOT_RUN, "needs 2 GPUs, this machine has 1")


def test_outcomes_are_kept_one_by_one_until_the_time_is_spent(capsys):
    kept = []
    checks = [Check("a", figures_of(0), ""), Check("b", lambda *_: time.sleep(0.2) or [Figure("x", 0)], "")]
    outcomes = run([*checks, Check("c", figures_of(0), "")], CPU, 0.1, lambda outcomes: kept.append(len(outcomes)))
    assert [outcome.verdict for outcome in outcomes] == [PASSED, PASSED, NOT_RUN]
    assert outcomes[-1].reason == "not reached: the time budget was spent"
    assert kept == [1, 2, 3]
    assert len(capsys.readouterr().out.splitlines()) == 6


def test_the_worst_figure_fails_or_is_closest_to_its_limit():
    close, far, wrong = Figure("close", 0.9, 1.0), Figure("far", 5.0, 10.0), Figure("wrong", math.nan, 1.0)
    assert worst([far, close, Figure("reported", 100.0)]) == close
    assert worst([far, close, wrong]) == wrong


# The page.


@pytest.fixture(scope="module")
def results() -> Results:
    """Outcomes of real checks on the CPU, one that failed, and rows of which one was not reached."""
    rows = [
        Check(row.name, lambda device, seconds: timed(Row("DiT-XXS/4", "soflow"), device, 4), "")
        for row in throughput.EAGER[:1]
    ]
    checks = [Check("resume bit for bit", lambda device, _: training.resume(device, ["soflow"]), "exact"), *rows]
    outcomes = [outcome_of(check, CPU, 9) for check in checks]
    missing = Outcome(throughput.EAGER[1].name, NOT_RUN, 0.0, reason="not reached: the time budget was spent")
    return Results({"GPU": "none", "date": "today"}, [*outcomes, Outcome("a|b", FAILED, 1.0, reason="why"), missing])


def test_results_survive_the_file(results, tmp_path):
    save(results, tmp_path / "gpu.json")
    assert load(tmp_path / "gpu.json") == results
    json.loads((tmp_path / "gpu.json").read_text(), parse_constant=pytest.fail)
    assert results.failed
    assert not Results({}, results.outcomes[:1]).failed


def test_single_checks_keep_the_outcomes_of_others_from_the_same_machine(results, tmp_path):
    save(results, tmp_path / "gpu.json")
    again = Outcome(results.outcomes[1].check, FAILED, 1.0, reason="new")
    found = merged([again], earlier(tmp_path / "gpu.json", {"GPU": "none", "date": "tomorrow"}), [again.check, "b"])
    assert found[0] == again
    assert sorted(outcome.check for outcome in found) == sorted(outcome.check for outcome in results.outcomes)
    assert earlier(tmp_path / "gpu.json", {"GPU": "another"}) == []
    assert earlier(tmp_path / "none.json", {}) == []


def test_the_page_gets_the_results_between_its_markers(results):
    before = (REPOSITORY / "docs/gpu.md").read_text()
    after = page.with_measured(before, results)
    assert page.with_measured(after, results) == after
    assert after.partition(page.BEGIN)[0] == before.partition(page.BEGIN)[0]
    assert after.partition(page.END)[2] == before.partition(page.END)[2]
    section = after.partition(page.BEGIN)[2].partition(page.END)[0]
    assert "GPU none, date today." in section
    for outcome in results.outcomes:
        assert outcome.check.replace("|", "\\|") in section
    speed = results.outcomes[1].figures[0].value
    assert f"| {throughput.EAGER[0].name} | {speed:.4g} | 4 |" in section
    assert "not reached" in section
    assert all(row.source in section for row in page.PUBLISHED)


def test_a_page_without_markers_is_refused(results):
    with pytest.raises(ValueError, match="must contain the lines"):
        page.with_measured("# Page", results)


def test_the_page_describes_every_check():
    text = (REPOSITORY / "docs/gpu.md").read_text()
    assert all(f"| {check.name} |" in text for check in (*CORRECTNESS, HALVES))


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_without_cuda_one_line_says_so():
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", NO_CUDA + "\n")

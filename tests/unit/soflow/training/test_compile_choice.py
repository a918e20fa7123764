"""training.compile = auto: what it chooses, that measuring leaves no trace, and that a resumed run keeps the choice."""

from __future__ import annotations

import logging
import math
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from helpers import CPU, compile_with, tiny_config
from torch import distributed, nn

from soflow.config import override, parse, to_dict
from soflow.config_base import ConfigError
from soflow.cost.predict import predict
from soflow.cost.synthetic import synthetic_source
from soflow.data import open_source
from soflow.evaluation.fidelity import Evaluator
from soflow.training import checkpoints, compilation, compile_choice, trainer
from soflow.training.compile_choice import Choice, choice_between, choose, largest_saving_s
from soflow.training.inputs import StepInputs
from soflow.training.run import TrainingRun
from soflow.training.trainer import Trainer
from tests.unit.soflow.training.test_trainer import assert_same_state

WORKERS = 2


def config(objective: str = "soflow", compile: bool | str = "auto", **sections):
    training = sections.pop("training", {})
    sections = {"network": {"name": "tests.networks:Perceptron"}} | sections
    return tiny_config(objective, training={"compile": compile} | training, **sections)


def make(objective: str = "soflow", compile: bool | str = "auto", micro_batches: int = 1, **sections) -> Trainer:
    run = config(objective, compile, **sections)
    return Trainer(run, synthetic_source(run.dataset), CPU, micro_batches=micro_batches)


@pytest.fixture
def measured_eagerly(monkeypatch):
    """Six tiny steps are too few to measure otherwise, and always too few to compile."""
    monkeypatch.setattr(compile_choice, "MEASURED_STEPS", 0)


def compile_always(monkeypatch, smallest_saving: float, backend: str = "aot_eager") -> None:
    """Compile the smallest of networks; -inf chooses compiled steps, 1 eager ones."""
    compile_with(monkeypatch, backend)
    monkeypatch.setattr(compile_choice, "LARGEST_SAVING", math.inf)
    monkeypatch.setattr(compile_choice, "SMALLEST_SAVING", smallest_saving)


@pytest.mark.parametrize(
    ("steps", "eager_s", "saving_s"), [(24, 1, 0), (30, 1, 4), (1000, 0.03, 19.52), (10**6, 0.5, 333_325.33)]
)
def test_the_largest_saving_grows_with_the_steps_to_go(steps, eager_s, saving_s):
    assert compile_choice.MEASURED_STEPS == 16
    assert largest_saving_s(steps, eager_s) == pytest.approx(saving_s, rel=1e-6)


NO_GAIN = "for the gradients of a step is no gain, after 14 s of compilation"


@pytest.mark.parametrize(
    ("eager_s", "compiled_s", "expected"),
    [
        (0.0512, 0.037, "compiled, 37 ms instead of 51.2 ms for the gradients of a step, after 14 s of compilation"),
        (1.0, 0.969, "compiled, 969 ms instead of 1 s for the gradients of a step, after 14 s of compilation"),
        (0.1, 0.098, f"not compiled, because 98 ms instead of 100 ms {NO_GAIN}"),
        (0.1, 0.2, f"not compiled, because 200 ms instead of 100 ms {NO_GAIN}"),
    ],
)
def test_compiled_steps_are_used_if_they_are_faster_by_more_than_noise(eager_s, compiled_s, expected):
    assert str(choice_between(eager_s, compiled_s, compile_s=14.3)) == expected


CASES = {
    "soflow": ("soflow", {}),
    "meanflow": ("meanflow", {}),
    "micro-batches": ("soflow", {"micro_batches": 3}),
    "dropout": ("soflow", {"network": {"name": "U-Net-XS", "dropout": 0.5}}),
}


@pytest.mark.parametrize("name", CASES)
def test_measuring_leaves_no_trace_in_a_run_that_stays_eager(name, measured_eagerly):
    objective, settings = CASES[name]
    eager, auto = make(objective, False, **settings), make(objective, "auto", **settings)
    eager.advance(2)
    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    metrics = auto.advance(2)
    assert torch.equal(torch.randn(3), expected)
    assert "steps, with gradients in" in auto.compile_choice
    assert_same_state(auto.state_dict(), eager.state_dict())
    assert not any("compile" in name for name in metrics)


def test_the_choice_is_made_once_and_said_in_one_line(measured_eagerly, caplog):
    auto = make()
    assert auto.compile_choice == ""
    with caplog.at_level(logging.INFO, logger="soflow"):
        auto.advance(1)
        auto.advance(1)
    (line,) = caplog.messages
    assert line == f"training.compile = auto: {auto.compile_choice}"
    assert line.startswith("training.compile = auto: not compiled, because 6 steps, with gradients in ")
    assert line.endswith(f" ms, cannot save the {compile_choice.COMPILE_S:.0f} s of a compilation")


def test_a_short_run_measures_nothing(monkeypatch):
    monkeypatch.setattr(compile_choice, "_seconds", None)
    auto = make(training={"total_steps": 24})
    auto.advance(1)
    assert auto.compile_choice == "not compiled, because 24 steps are too few to measure"


def test_without_a_compiler_steps_stay_eager(monkeypatch):
    compile_always(monkeypatch, smallest_saving=-math.inf)
    monkeypatch.setattr(compile_choice, "compiler_problem", lambda device: "no C++ compiler")
    auto = make()
    auto.advance(1)
    assert not auto.compiled
    assert auto.compile_choice == "not compiled, because the compiler does not work (no C++ compiler)"


def test_a_wrong_compiled_derivative_is_not_used(monkeypatch):
    compile_always(monkeypatch, smallest_saving=-math.inf)
    monkeypatch.setattr(Trainer, "derivative_error", lambda self: 0.5)
    auto, eager = make("meanflow"), make("meanflow", False)
    auto.advance(2)
    eager.advance(2)
    assert not auto.approximates_derivative
    assert auto.compile_choice == (
        "not compiled, because du/dt differs from the exact derivative by 0.5, relative to its norm, more than the "
        "0.001 allowed"
    )
    assert_same_state(auto.state_dict(), eager.state_dict())


class Uncompilable(nn.Module):
    """A network on which the compiler fails."""

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("backend='inductor' raised:\nCppCompileError")


def test_a_failed_compilation_does_not_fail_the_run(monkeypatch):
    compile_always(monkeypatch, smallest_saving=-math.inf)
    monkeypatch.setattr(compile_choice, "compiled", lambda *arguments: Uncompilable())
    auto = make()
    auto.advance(1)
    assert auto.compile_choice == "not compiled, because compilation failed (backend='inductor' raised:)"


def test_fused_attention_is_not_compiled():
    """And the same configuration with compile = true is refused."""
    fused = override(to_dict(config("meanflow")), {"objective.jvp_attention": "flash"})
    with pytest.raises(ConfigError, match=r"training.compile = True: cannot be combined with"):
        parse(override(fused, {"training.compile": True}))
    auto = make("meanflow")
    inputs = StepInputs(parse(fused), auto.source, auto.objective, CPU)
    choice, _ = choose(auto.module, inputs, 0, auto.derivative_error, lambda values: values)
    assert choice == Choice(False, "because objective.jvp_attention = flash cannot be compiled")


def test_a_prediction_is_that_of_eager_steps():
    assert predict(config()).peak_bytes == predict(config(compile=False)).peak_bytes


def test_a_state_without_a_choice_is_loaded(measured_eagerly):
    """Of an earlier version, or from the authors' checkpoint: the choice is made before the next step."""
    first = make(compile=False)
    first.advance(2)
    state = first.state_dict()
    del state["compiled"]
    for compile in (False, "auto"):
        resumed = make(compile=compile)
        resumed.load_state_dict(state)
        resumed.advance(1)
        assert ("because 4 steps, with" in resumed.compile_choice) == (compile == "auto")


def test_a_report_records_the_choice_that_was_made_for_it(tmp_path):
    run = config()
    source = open_source(run.dataset)
    evaluator = Evaluator(source, run, CPU, tmp_path / "cache")
    first = TrainingRun(run, source, tmp_path / "run", CPU, evaluator).advance().facts
    later = TrainingRun(run, source, tmp_path / "run", CPU, evaluator, start=3).advance().facts
    assert first == later | {"compile_choice": "not compiled, because 6 steps are too few to measure"}
    assert later["compiled"] == "false"


@pytest.fixture
def one_thread():
    """Compiled code adds gradients of several threads in any order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.soak)])
def test_a_run_that_compiled_resumes_with_the_same_bits_and_measures_no_more(backend, monkeypatch, tmp_path):
    compile_always(monkeypatch, smallest_saving=-math.inf, backend=backend)
    whole, first = make(), make()
    metrics = whole.advance(4)
    assert whole.compiled
    assert whole.compile_choice.startswith("compiled, ")
    assert metrics["compile/count"] > 0
    assert metrics["time/train_s"] < metrics["time/compile_s"]  # neither measuring nor compilation is part of it
    first.advance(2)
    path = checkpoints.save(first.state_dict(), tmp_path, 2)
    torch._dynamo.reset()  # a new process would compile again
    compilation._process_compilations.cache_clear()  # the reset has removed its callbacks
    monkeypatch.setattr(trainer, "choose", None)
    resumed = make()
    resumed.load_state_dict(checkpoints.load(path))
    assert resumed.compiled
    assert resumed.advance(2)["compile/count"] > 0
    assert resumed.compile_choice == ""
    assert_same_state(resumed.state_dict(), whole.state_dict())


@pytest.mark.slow
def test_a_run_that_compiled_in_vain_stays_eager(monkeypatch, tmp_path):
    compile_always(monkeypatch, smallest_saving=1.0)
    eager, auto = make(compile=False), make()
    eager.advance(2)
    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    metrics = auto.advance(2)
    assert torch.equal(torch.randn(3), expected)
    assert "time/compile_s" in metrics
    assert "is no gain, after" in auto.compile_choice
    assert_same_state(auto.state_dict(), eager.state_dict())
    monkeypatch.setattr(trainer, "choose", None)
    resumed = make()
    resumed.load_state_dict(checkpoints.load(checkpoints.save(auto.state_dict(), tmp_path, 2)))
    resumed.advance(1)
    assert not resumed.compiled


def worker(rank: int, directory: Path) -> None:
    """Train on one of two workers, whose clocks disagree on what is faster; save the choices and the last state."""
    torch.set_num_threads(1)
    rendezvous = f"file://{directory / 'rendezvous'}"
    timeout = timedelta(seconds=120)
    distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=WORKERS, timeout=timeout)
    found: dict[str, object] = {}
    try:
        with pytest.MonkeyPatch.context() as monkeypatch:
            compile_always(monkeypatch, smallest_saving=0.03)
            monkeypatch.setattr(compile_choice, "compiled", lambda network, *others: torch.compile(network))
            for name, seconds in {"faster": (1.0, 0.2, 0.6), "slower": (1.0, 0.2, 3.0)}.items():
                found[name] = _train(rank, seconds, monkeypatch)
        torch.save(found, directory / f"{rank}.pt")
    finally:
        distributed.destroy_process_group()


def _train(rank: int, seconds: tuple[float, float, float], monkeypatch) -> dict[str, object]:
    """Train with the seconds of an eager step, of a compiled step on the first worker, and on the second."""
    run = config()
    trainer = Trainer(run, synthetic_source(run.dataset), CPU, rank, WORKERS)

    def _seconds(step, device):
        step()
        return seconds[1 + rank] if trainer.compiled else seconds[0]

    monkeypatch.setattr(compile_choice, "_seconds", _seconds)
    trainer.advance(2)
    return {"compiled": trainer.compiled, "choice": trainer.compile_choice, "network": trainer.network.state_dict()}


@pytest.mark.soak
def test_two_workers_make_the_same_choice(tmp_path):
    """The mean of their times decides: the first worker alone would compile in both cases."""
    context = torch.multiprocessing.get_context("spawn")
    processes = [context.Process(target=worker, args=(rank, tmp_path)) for rank in range(WORKERS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        process.kill()
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(WORKERS)]
    for name, compiled, mean in (("faster", True, "400 ms"), ("slower", False, "1.6 s")):
        for result in results:
            assert result[name]["compiled"] == compiled
            assert f"{mean} instead of 1 s for the gradients" in result[name]["choice"]
            for key, value in results[0][name]["network"].items():
                assert torch.equal(value, result[name]["network"][key]), key

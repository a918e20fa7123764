"""Cost of a step: operations and bytes counted by hand, predictions against measurements, parts that add up."""

from __future__ import annotations

import json
import sys

import pandas as pd
import pytest
import torch
from helpers import CPU, NUM_CLASSES, SmoothNetwork, draw, objective_config, random_batch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from two_pass import TwoPassSoFlow

from experiments import predict_cost as predict_cost_program
from soflow.autodiff import directional_derivative
from soflow.config import override, parse, to_dict
from soflow.cost.accelerators import ACCELERATORS, Accelerator, measured
from soflow.cost.count import Operation, OperationCounter
from soflow.cost.measure import count_step, peak_bytes, time_steps
from soflow.cost.predict import memory_by_batch, predict
from soflow.cost.synthetic import synthetic_source
from soflow.profiling.memory import AllocationPeak, bytes_of
from soflow.profiling.phases import PHASES, phase, recorded_by
from soflow.training.trainer import Trainer

META = torch.device("meta")
MIB = 2**20


NEEDS_BFLOAT16 = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()),
    reason="without bfloat16 instructions, convolutions unfold their input, which takes memory that no GPU needs",
)


def run_config(name: str, network: str = "DiT-XXS/4", batch: int = 32, checkpointing: bool = False, **objective):
    return parse(
        {
            "objective": {"name": name, **objective},
            "network": {"name": network, "gradient_checkpointing": checkpointing},
            "training": {"batch_size": batch},
        }
    )


def trainer(config) -> Trainer:
    made = Trainer(config, synthetic_source(config.dataset), CPU)
    for _ in range(2):
        made.take_step()
    return made


# Operations.


@pytest.mark.parametrize("device", [CPU, META], ids=str)
def test_products_are_counted_by_hand(device):
    layer, x = nn.Linear(32, 48, device=device), torch.randn(64, 32, device=device, requires_grad=True)
    product = 2 * 64 * 32 * 48
    with OperationCounter() as counter:
        output = layer(x)
    assert counter.flops == {"": product}
    with OperationCounter() as counter:
        output.sum().backward()
    assert counter.flops == {"": 2 * product}  # with respect to input and weight
    with OperationCounter() as counter, torch.no_grad():
        directional_derivative(layer, (x,), (x,))
    assert counter.flops == {"": 2 * product}  # value and tangent
    with OperationCounter() as counter, torch.no_grad():
        torch.func.jvp(layer, (x,), (x,))
    assert counter.flops == {"": 3 * product}  # and one with the weight's zero tangent


@pytest.mark.parametrize("device", [CPU, META], ids=str)
def test_attention_is_counted_by_hand(device):
    x = torch.randn(2, 4, 16, 32, device=device)
    products = 2 * (2 * 2 * 4 * 16 * 16 * 32)  # queries by keys, weights by values
    with OperationCounter() as counter:
        scaled_dot_product_attention(x, x, x)
    assert counter.flops == {"": products}
    with OperationCounter() as counter, sdpa_kernel(SDPBackend.MATH):
        torch.func.jvp(lambda x: scaled_dot_product_attention(x, x, x), (x,), (x,))
    assert counter.flops == {"": 3 * products}  # the tangent of a product of two factors has two terms


def test_bytes_moved_are_those_of_inputs_and_outputs():
    x = torch.zeros(1000)
    with OperationCounter() as counter:
        (x + 1).view(10, 100)
    assert counter.operations == [Operation("", 0, 8000, "fp32")]


def test_parts_are_told_apart_and_cost_nothing_unrecorded():
    layer, x = nn.Linear(8, 8), torch.randn(4, 8)
    counter = OperationCounter()
    with recorded_by(counter), counter:
        with phase("forward"):
            layer(x)
        layer(x)
    assert counter.flops == {"forward": 512, "": 512}
    with phase("forward"):  # nobody records
        pass


# Memory.


def test_the_allocation_peak_is_exact():
    """4,000,000 bytes a matrix: two made, their product, one dropped, another made: three at the most."""
    found = []
    for _ in range(2):
        with AllocationPeak(CPU) as peak:
            a, b = torch.empty(1000, 1000), torch.empty(1000, 1000)
            c = torch.mm(a, b)
            del a
            d = torch.empty(1000, 1000)
            del b, c, d
        found.append(peak.peak_bytes)
    assert found == [12_000_000, 12_000_000]


@pytest.mark.parametrize("device", [CPU, META], ids=str)
def test_live_tensors_are_followed_as_they_come_and_go(device):
    counter, x = OperationCounter(), torch.ones(1000, 1000, device=device)
    counter.track(x)
    with counter:
        y = x + 1
        z = y.t()  # a view shares its memory
        del y
        w = z + z
        del z
        assert counter.live_bytes == 8_000_000
        del w
    assert counter.live_bytes == 4_000_000
    assert counter.peak_bytes == 12_000_000


def test_bytes_of_views_count_once():
    x = torch.zeros(100)
    assert bytes_of([x, x[:50], x.view(10, 10), torch.zeros(10)]) == 440


def test_a_step_s_peak_is_repeatable_to_the_byte():
    made = trainer(run_config("soflow", guidance_strength=1, label_drop=0))
    peak_bytes(made)  # the first record in a process may miss what it releases
    assert peak_bytes(made) == peak_bytes(made)


# Prediction.


@pytest.mark.parametrize(
    ("network", "precision"),
    [
        ("DiT-XXS/4", "fp32"),
        ("DiT-XXS/4", "bf16"),
        ("U-Net-XS", "fp32"),
        *(pytest.param(*other, marks=pytest.mark.soak) for other in (("DiT-XS/2", "fp32"), ("DiT-XS/2", "bf16"))),
        pytest.param("U-Net-XS", "bf16", marks=[pytest.mark.soak, NEEDS_BFLOAT16]),
    ],
)
@pytest.mark.parametrize("name", ["flow_matching", "soflow", "meanflow", "esc"])
def test_a_prediction_is_what_is_measured(name, network, precision):
    config = parse(override(to_dict(run_config(name, network)), {"training.precision": precision}))
    prediction = predict(config)
    made = Trainer(config, synthetic_source(config.dataset), CPU)
    made.take_step()
    arithmetic = count_step(made)  # of the same step, with the same samples guided
    assert sum(arithmetic.flops.values()) == pytest.approx(prediction.flops, rel=0.01)
    peak_bytes(made)
    assert peak_bytes(made) == pytest.approx(prediction.peak_bytes, rel=0.1)
    assert prediction.persistent_bytes == bytes_of(made.persistent_tensors())
    assert prediction.parameters == sum(parameter.numel() for parameter in made.network.parameters())


@pytest.mark.parametrize("name", ["flow_matching", "soflow", "meanflow", "esc"])
def test_attention_over_many_tokens_is_predicted_with_a_fused_kernel(name):
    """On 256 tokens the attention weights, which a fused kernel does not store, are a third of all activations."""
    sections = {"dataset.name": "latents", "dataset.image_size": 256, "objective.name": name}
    config = parse(override({}, sections | {"network.name": "DiT-XXS/2", "training.batch_size": 8}))
    prediction, made = predict(config), Trainer(config, synthetic_source(config.dataset), CPU)
    made.take_step()
    assert sum(count_step(made).flops.values()) == pytest.approx(prediction.flops, rel=0.01)
    assert peak_bytes(made) == pytest.approx(prediction.peak_bytes, rel=0.05)


@pytest.mark.parametrize("batch", [4, 64])  # with 4, only the optimiser's step decides the peak
def test_memory_grows_evenly_with_the_batch(batch):
    memory = memory_by_batch(run_config("soflow", "DiT-XXS/2", batch=batch))
    at_256 = predict(run_config("soflow", "DiT-XXS/2", batch=256)).peak_bytes
    # The number of guided samples is drawn: 0.9 ± 0.04 of 64, and they hold no activations.
    assert memory.bytes_fixed + 256 * memory.bytes_per_sample == pytest.approx(at_256, rel=0.02)
    assert memory.largest_batch(at_256) == pytest.approx(256, rel=0.02)
    assert memory.largest_batch(0) == 0


def test_the_step_of_a_run_of_one_step_is_predicted():
    one, two = (
        predict(parse(override(to_dict(run_config("soflow")), {"training.total_steps": steps}))) for steps in (1, 2)
    )
    assert one.flops == two.flops


def test_gradient_checkpointing_is_predicted_to_save_memory():
    plain, saving = (predict(run_config("soflow", "DiT-XS/2", 64, on)) for on in (False, True))
    assert saving.peak_bytes < 0.8 * plain.peak_bytes
    assert 1.1 < saving.flops / plain.flops < 1.4  # forward once more for what has a gradient


def test_floors_follow_from_the_peaks():
    prediction = predict(run_config("flow_matching"))
    slow = Accelerator(1e9, bytes_per_s=1e9, flops_per_s={"fp32": 1e9})
    assert prediction.arithmetic_s(slow) == pytest.approx(prediction.flops / 1e9)
    assert prediction.roofline_s(slow) >= prediction.arithmetic_s(slow)
    least, most = prediction.range_s(slow)
    assert least == prediction.roofline_s(slow) < most
    endless = Accelerator(1e9, bytes_per_s=float("inf"), flops_per_s={"fp32": 1e9})
    assert prediction.roofline_s(endless) == pytest.approx(prediction.arithmetic_s(endless))


def test_accelerators_are_complete_and_this_one_is_measured():
    for accelerator in (*ACCELERATORS.values(), measured(CPU, memory_bytes=1e9)):
        assert set(accelerator.flops_per_s) == {"fp32", "tf32", "bf16"}
        # bf16 on a CPU without instructions for it: 3e8 on the slowest machine seen.
        assert min(accelerator.flops_per_s.values()) > 1e7
        assert accelerator.bytes_per_s > 1e8


# The arithmetic of each objective, in forwards of one sample: B = 64, half of the rest dropped from what is stated.


def calls_of(name: str, **settings) -> dict[str, float]:
    """Network forwards per sample of the batch by part, counted on a real step of a DiT."""
    config = run_config(name, "DiT-XS/2", 64, label_drop=0.5, **settings)
    made = trainer(config)
    arithmetic = count_step(made).flops
    unguided = trainer(run_config("flow_matching", "DiT-XS/2", 64, guidance_strength=1))
    forward = count_step(unguided).flops["forward"]
    return {key: value / forward for key, value in arithmetic.items()}


def test_soflow_s_arithmetic_is_as_stated():
    lam, made = 0.75, calls_of("soflow", flow_matching_fraction=0.75, guidance_strength=2, velocity_mix=0.25)
    assert made["forward"] == pytest.approx(1, rel=0.001)
    assert made["target"] == pytest.approx(1 - lam, rel=0.001)
    assert made["backward"] == pytest.approx(2, rel=0.03)  # no gradient with respect to the input
    # 0.5 undropped for the null label and 0.5 (1 − λ) for the label, of 64 draws: within five standard deviations.
    assert abs(made["guidance"] - 0.5 * (2 - lam)) < 5 * (2 - lam) * (0.25 / 64) ** 0.5


def test_meanflow_s_jacobian_vector_product_costs_two_forwards_of_its_part():
    made = calls_of("meanflow", flow_matching_fraction=0.75, jvp="subset")
    assert made["forward"] == pytest.approx(1, rel=0.001)
    # Twice the products of a linear layer, three times those of attention, which are few here.
    assert 0.25 * 2 <= made["target"] < 0.25 * 2.2


# The reference implementation in benchmarks/.


def test_two_passes_and_ours_are_the_same_mathematics():
    from soflow.objectives.soflow import SoFlow

    config = objective_config("soflow", flow_matching_fraction=0.6, guidance_strength=2.0, velocity_mix=0.4)
    network, (data, labels) = SmoothNetwork(), random_batch((20, 1, 2, 2))
    ours, theirs = (kind(config, NUM_CLASSES, True) for kind in (SoFlow, TwoPassSoFlow))
    draws = draw(ours, data.shape, 0.3, torch.Generator().manual_seed(0))
    for mine, other in zip(
        (ours.losses(network, data, labels, draws).loss, *ours.losses(network, data, labels, draws).terms.values()),
        (theirs.losses(network, data, labels, draws).loss, *theirs.losses(network, data, labels, draws).terms.values()),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12)


# Time.


def test_parts_add_up_to_the_step():
    steps = time_steps(trainer(run_config("soflow")), 3)
    assert len(steps) == 3
    for step in steps:
        parts = {name: value for name, value in step.items() if name != "step"}
        assert set(parts) == set(PHASES)
        assert 0 < sum(parts.values()) <= step["step"]


# The program that predicts.


@pytest.fixture
def predict_cost(monkeypatch, capsys):
    """The program in this process: its exit code, output and errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["predict_cost.py", *arguments])
        try:
            code = predict_cost_program.main()
        except SystemExit as ended:
            code = ended.code
        return code, *capsys.readouterr()

    return run


@pytest.mark.slow
def test_the_program_predicts_a_file_s_run(predict_cost, tmp_path):
    (tmp_path / "run.yaml").write_text("training: {batch_size: 64}\n")
    table = tmp_path / "costs.csv"
    flags = ["--accelerators", "H100", "--num-workers", "4", "--out", str(table), "--format", "json"]
    code, output, errors = predict_cost(str(tmp_path / "run.yaml"), *flags)
    assert code == 0, errors
    row = pd.read_csv(table).iloc[0]
    prediction = predict(run_config("soflow", batch=16))
    assert row["flops"] == 4 * prediction.flops
    assert row["peak_bytes"] == pytest.approx(prediction.peak_bytes, rel=0.01)
    assert row["batch"] == 64
    assert row["accelerator"] == "4 × H100"
    assert row["fits"]
    (printed,) = json.loads(output)
    assert printed["flops"] == row["flops"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "error: runs = nothing: must be a file or a preset, one of esc-imagenet256-b2, "),
        (["soflow-cifar10", "--accelerators", "TPU"], "error: accelerators = TPU: must be here or one of A100-40GB, "),
        (["soflow-cifar10", "--num-workers", "3"], "error: num_workers = 3: must divide the batch size, 1024"),
    ],
)
def test_what_cannot_be_predicted_is_one_line(predict_cost, arguments, message):
    code, _, errors = predict_cost(*arguments)
    assert code == 2
    assert errors.startswith(message)
    assert errors.count("\n") == 1


def test_an_unknown_section_is_no_default(predict_cost, tmp_path):
    (tmp_path / "run.yaml").write_text("networks: {name: DiT-XL/2}\nnum_trials: 4\n")
    code, _, errors = predict_cost(str(tmp_path / "run.yaml"))
    assert code == 2
    assert "networks: unknown key; did you mean network?" in errors


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_products_run_at_the_peak_of_their_precision_and_a_finite_differences_in_fp32(precision):
    accelerator = Accelerator(1e9, bytes_per_s=float("inf"), flops_per_s={"fp32": 1e9, precision: 4e9})
    seconds = {}
    for name in ("flow_matching", "soflow"):
        full, mixed = (
            predict(parse(override(to_dict(run_config(name)), {"training.precision": kind})))
            for kind in ("fp32", precision)
        )
        seconds[name] = mixed.arithmetic_s(accelerator) / full.arithmetic_s(accelerator)
    assert seconds["flow_matching"] == pytest.approx(1 / 4, rel=0.03)
    # In fp32: the two values in the finite difference of 0.7 of the batch (λ = 0.3 has none), of which one is an
    # additional forward pass. Of 5.2 forward passes per sample all others are not.
    assert seconds["soflow"] == pytest.approx((0.7 * 2 + (5.2 - 0.7) / 4) / 5.2, rel=0.05)

"""Precision of network calls and dropout masks shared between the calls that belong together."""

from __future__ import annotations

import pytest
import torch
from helpers import NUM_CLASSES, golden_dit, objective_config
from torch import nn

from soflow.conditioning import join, split, with_null
from soflow.config import parse
from soflow.cost.predict import predict
from soflow.data import open_source
from soflow.objectives.base import Draws
from soflow.objectives.meanflow import MeanFlow
from soflow.objectives.soflow import SoFlow
from soflow.precision import Precision
from soflow.training.trainer import Trainer

BATCH, KNOWN = 8, 3


def inputs(dtype=torch.float32):
    seed = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, 4, 8, 8, generator=seed, dtype=dtype)
    t = torch.rand(BATCH, generator=seed, dtype=dtype)
    return x, t, t / 2, torch.arange(BATCH) % NUM_CLASSES


def draws(dropout_seed: int = 5) -> Draws:
    x, t, s, _ = inputs()
    s = torch.cat([t[:KNOWN], s[KNOWN:]])
    l = torch.cat([t[:KNOWN], (t + 0.1 * (s - t))[KNOWN:]])
    drop = torch.zeros(BATCH, dtype=torch.bool)
    return Draws(x.flip(0), t, l, s, drop, torch.full((BATCH,), 1 / BATCH), KNOWN, dropout_seed=dropout_seed)


def test_outputs_come_back_in_their_input_s_dtype():
    network = golden_dit(torch.float32)
    exact = Precision("fp32")(network, *inputs())
    assert torch.equal(exact, network(*inputs()))
    rounded = Precision("bf16")(network, *inputs())
    assert rounded.dtype == torch.float32
    error = (rounded - exact).abs().max() / exact.abs().max()
    # bfloat16 rounds by 2^-8; a network of a few layers amplifies that by no more than fifty.
    assert 2**-12 < error < 50 * 2**-8
    double = golden_dit(torch.float64)
    assert torch.equal(Precision("fp32")(double, *inputs(torch.float64)), double(*inputs(torch.float64)))


@pytest.mark.parametrize("name", ["fp32", "tf32", "bf16"])
def test_tensor_float_32_is_on_only_where_asked_and_only_inside(name):
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    with Precision(name).context(torch.device("cpu")):
        assert [backend.allow_tf32 for backend in backends] == [name == "tf32"] * 2
    assert [backend.allow_tf32 for backend in backends] == before


class Recorder(nn.Module):
    """Passes calls on and notes each call's batch size and whether it ran under bfloat16."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network, self.calls = network, []

    def forward(self, x, t, s, labels):
        self.calls.append((len(x), torch.is_autocast_enabled("cpu")))
        return self.network(x, t, s, labels)


def test_the_quotient_keeps_full_precision_unless_asked():
    config = objective_config("soflow", guidance_strength=2.0)
    data, _, _, labels = inputs()
    rest = BATCH - KNOWN
    for precision, quotient, calls in (
        ("fp32", "fp32", [(BATCH, False), (BATCH + rest, False), (rest, False)]),
        ("bf16", "fp32", [(BATCH, True), (rest, False), (BATCH + rest, True), (rest, False)]),
        ("bf16", "bf16", [(BATCH, True), (BATCH + rest, True), (rest, True)]),
    ):
        network = Recorder(golden_dit(torch.float32))
        objective = SoFlow(config, NUM_CLASSES, True, Precision(precision), Precision(quotient))
        objective.losses(network, data, labels, draws()).loss.sum().backward()
        assert network.calls == calls


@pytest.mark.parametrize("known", [0, KNOWN, BATCH])
@pytest.mark.parametrize("dropout", [False, True])
def test_only_the_samples_of_the_quotient_have_its_precision(known, dropout):
    config, (x_t, _, _, labels) = objective_config("soflow", guidance_strength=1.0), inputs()
    network = Recorder(golden_dit(torch.float32).requires_grad_())
    low, full = Precision("bf16"), Precision("fp32")
    objective = SoFlow(config, NUM_CLASSES, True, low, full, dropout)
    output = objective.network_output(network, x_t, labels, draws(), known, full)
    others = draws()
    rows = slice(known, None)
    exact = full(network, x_t[rows], others.t[rows], others.s[rows], labels[rows])
    torch.testing.assert_close(output[rows], exact, rtol=1e-5, atol=1e-6)  # sums in another order
    calls = [(BATCH - known, False)] if known < BATCH else []
    gradient_calls = [(known, True)] if dropout and known < BATCH else [(BATCH, True)]
    assert [call for call in network.calls[:-1] if call[0]] == [*(call for call in gradient_calls if call[0]), *calls]
    output.sum().backward()
    assert all(weights.grad is not None for name, weights in network.named_parameters())


def test_the_quotient_s_value_is_full_precision_and_its_gradient_that_of_the_other_calls():
    config = objective_config("soflow", guidance_strength=1.0)
    data, _, _, labels = inputs()
    errors, gradients, outputs = {}, {}, {}
    for precision, quotient in (("fp32", "fp32"), ("bf16", "fp32"), ("bf16", "bf16")):
        network = golden_dit(torch.float32).requires_grad_()
        objective = SoFlow(config, NUM_CLASSES, True, Precision(precision), Precision(quotient))
        given = draws()
        x_t = objective.interpolant.x_t(data, given.noise, given.t)
        output = objective.network_output(network, x_t, labels, given, KNOWN, objective.forward_precise)
        outputs[precision, quotient] = output.detach()
        losses = objective.losses(network, data, labels, given)
        errors[precision, quotient] = losses.terms["consistency"].detach()
        losses.loss[KNOWN:].sum().backward()
        gradients[precision, quotient] = torch.cat([weights.grad.flatten() for weights in network.parameters()])
    full, mixed, low = (("fp32", "fp32"), ("bf16", "fp32"), ("bf16", "bf16"))
    # Smaller batches may round float32 sums in another order: a few units of 2^-24.
    torch.testing.assert_close(outputs[mixed][KNOWN:], outputs[full][KNOWN:], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(outputs[mixed][:KNOWN], outputs[low][:KNOWN], rtol=0, atol=0)

    def error(name):
        return ((gradients[name] - gradients[full]).norm() / gradients[full].norm()).item()

    # A gradient in bfloat16 is off by a few units of 2^-8; with the quotient in it, 1 / r = 10 times as much.
    assert 2**-12 < error(mixed) < 8 * 2**-8 < error(low)


@pytest.mark.parametrize("precision", ["tf32", "fp32"])
@pytest.mark.parametrize("objective", ["soflow", "meanflow", "flow_matching"])
def test_a_step_s_backward_pass_runs_in_the_training_s_precision(precision, objective):
    training = {"precision": precision, "batch_size": 8, "total_steps": 4}
    config = parse({"objective": {"name": objective}, "training": training})
    trainer = Trainer(config, open_source(config.dataset), torch.device("cpu"))
    seen = []

    def note(gradient):
        seen.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))

    for module in trainer.network.modules():
        if isinstance(module, nn.Linear):
            module.weight.register_hook(note)
    trainer.take_step()
    assert len(seen) > 5
    assert set(seen) == {(precision == "tf32",) * 2}


def test_steps_without_content_leave_the_switches_alone():
    """The driver predicts costs with them."""
    config = parse({"training": {"precision": "tf32", "batch_size": 8}})
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    predict(config)
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


class Masked(nn.Module):
    """F = dropout(1) · x: its mask can be read off the output."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.weight = nn.Parameter(torch.ones(()))
        self.masks = []

    def forward(self, x, t, s, labels):
        mask = self.dropout(torch.ones_like(x))
        self.masks.append(mask)
        return self.weight * mask * x


def test_both_calls_of_the_quotient_share_their_dropout_masks():
    network, (data, _, _, labels) = Masked(), inputs()
    objective = SoFlow(objective_config("soflow", guidance_strength=1.0), NUM_CLASSES, True, dropout=True)
    state = torch.get_rng_state()
    objective.losses(network, data, labels, draws())
    velocity_part, consistency_t, consistency_l = network.masks
    assert len(velocity_part) == KNOWN
    assert 0 < (consistency_t == 0).float().mean() < 1
    assert torch.equal(consistency_t, consistency_l)
    network.masks.clear()
    torch.set_rng_state(state)
    objective.losses(network, data, labels, draws(dropout_seed=6))
    assert not torch.equal(network.masks[1], consistency_t)


@pytest.mark.parametrize("jvp", ["separate", "subset"])
def test_the_jacobian_vector_product_sees_the_same_masks_as_its_value(jvp):
    network, (data, _, _, labels) = Masked(), inputs()
    config = objective_config("meanflow", jvp=jvp, guidance_kappa=0.0, guidance_omega=1.0)
    objective = MeanFlow(config, NUM_CLASSES, True, dropout=True)
    objective.losses(network, data, labels, draws())
    *values, tangent = network.masks
    assert torch.equal(torch.cat(values)[-len(tangent) :], tangent)
    assert len(tangent) == (BATCH - KNOWN if jvp == "subset" else BATCH)


def test_dropout_leaves_other_random_numbers_alone():
    objective = SoFlow(objective_config("soflow"), NUM_CLASSES, True, dropout=True)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with objective.same_dropout(draws()):
        first = torch.rand(3)
    with objective.same_dropout(draws()):
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.rand(3), expected)


def test_the_workers_draw_masks_of_their_own():
    assert len({draws().share(rank, 4).dropout_seed for rank in range(4)}) == 4


def test_labels_carry_the_augmentation():
    classes, augmentation = torch.tensor([3, 0, 9]), torch.randn(3, 9)
    assert join(classes, None) is classes
    labels = join(classes, augmentation)
    found = split(labels)
    assert found[0].dtype == torch.int64
    assert torch.equal(found[0], classes)
    assert torch.equal(found[1], augmentation)
    dropped = split(with_null(labels, 10, torch.tensor([False, True, False])))
    assert dropped[0].tolist() == [3, 10, 9]
    assert torch.equal(dropped[1], augmentation)
    assert with_null(classes, 10).tolist() == [10, 10, 10]

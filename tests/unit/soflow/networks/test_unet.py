"""The U-Net backbone: published size, conditioning, initial weights, derivatives, gradient checkpointing."""

from __future__ import annotations

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import NUM_CLASSES, relative_error
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from soflow.conditioning import join
from soflow.data.augmentation import NUM_PARAMETERS
from soflow.networks.unet import Attention, Resample, UNet, positional

DDPMPP = {"width": 128, "multipliers": (2, 2, 2), "blocks": 4, "attention_sides": (16,)}
TINY = {"width": 32, "multipliers": (1, 2), "blocks": 1, "attention_sides": (8,)}


def tiny(dtype: torch.dtype = torch.float64, seed: int = 0, **options) -> UNet:
    """A small network none of whose layers is near zero."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = UNet(image_size=8, channels=2, num_classes=NUM_CLASSES, **TINY, **options)
        for name, parameter in network.named_parameters():
            if parameter.dim() > 1:
                torch.nn.init.xavier_uniform_(parameter)
            else:
                torch.nn.init.normal_(parameter, mean=float("norm" in name and "weight" in name), std=0.1)
    return network.to(dtype)


def inputs(batch: int = 2, side: int = 8, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 2, side, side, generator=generator, dtype=dtype)
    t = 0.5 + torch.rand(batch, generator=generator, dtype=dtype) / 2
    return x, t, t / 3, torch.arange(batch)


# Weights and biases of one layer each.
def convolution(before: int, after: int, kernel: int = 3) -> int:
    return before * after * kernel**2 + after


def linear(before: int, after: int) -> int:
    return before * after + after


def norm(width: int) -> int:
    return 2 * width


def block(before: int, after: int, attention: bool = False, resampled: bool = False) -> int:
    count = norm(before) + convolution(before, after) + linear(512, after) + norm(after) + convolution(after, after)
    count += convolution(before, after, 1) if before != after or resampled else 0
    return count + attention * (norm(after) + convolution(after, 3 * after, 1) + convolution(after, after, 1))


def test_parameter_count_is_the_published_one_and_what_was_added():
    encoder = (
        (convolution(3, 128) + block(128, 256) + 3 * block(256, 256))
        + (block(256, 256, resampled=True) + 4 * block(256, 256, attention=True))
        + (block(256, 256, resampled=True) + 4 * block(256, 256))
    )
    decoder = (  # the blocks' second 256 (or, for the first convolution's output, 128) channels are skip connections
        (block(256, 256, attention=True) + block(256, 256) + 5 * block(512, 256))
        + (block(256, 256, resampled=True) + 4 * block(512, 256) + block(512, 256, attention=True))
        + (block(256, 256, resampled=True) + 4 * block(512, 256) + block(384, 256))
        + (norm(256) + convolution(256, 3))
    )
    mapping = linear(128, 512) + linear(512, 512)
    augmentation = 9 * 128
    assert encoder + decoder + mapping + augmentation == 55_733_891  # EDM's unconditional DDPM++: 55.7 million

    times = 2 * 2 * 128 - 128  # inputs of the mapping: two times of 2 · 128 numbers each instead of 128 numbers
    labels = (NUM_CLASSES + 1) * 4 * 128
    with torch.device("meta"):
        network = UNet(image_size=32, channels=3, num_classes=NUM_CLASSES, **DDPMPP)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == 55_733_891 + times * 512 + times * 9 + labels == 55_939_587


@pytest.mark.parametrize("side", [8, 16, 32])
@pytest.mark.parametrize("resample_filter", [(1, 1), (1, 3, 3, 1)])
@pytest.mark.parametrize("multipliers", [(1, 2), (1, 1, 2)])
def test_shape_and_dtype(side, resample_filter, multipliers):
    options = TINY | {"multipliers": multipliers}
    network = UNet(side, channels=2, num_classes=NUM_CLASSES, **options, resample_filter=resample_filter)
    for dtype in (torch.float32, torch.float64):
        output = network.to(dtype)(*inputs(side=side, dtype=dtype))
        assert output.shape == (2, 2, side, side)
        assert output.dtype == dtype


def test_float32_output_is_near_the_float64_one():
    double = tiny()(*inputs())
    single = tiny(torch.float32)(*(value.float() if value.is_floating_point() else value for value in inputs()))
    # Every convolution sums hundreds of terms, each with a rounding error of 6e-8.
    assert relative_error(single, double) < 1e-4


def test_every_input_matters():
    network, (x, t, s, labels) = tiny(), inputs()
    output = network(x, t, s, labels)
    assert relative_error(network(x, t, 0 * s, labels), output) > 1e-3
    assert relative_error(network(x, t + 0.1, s + 0.1, labels), output) > 1e-3  # the gap alone does not tell
    assert relative_error(network(x, t, s, labels + 1), output) > 1e-3
    assert relative_error(network(x, t, s, torch.full_like(labels, NUM_CLASSES)), output) > 1e-3
    for parameter in range(NUM_PARAMETERS):
        augmentation = torch.zeros(2, NUM_PARAMETERS)
        augmentation[:, parameter] = 1
        assert relative_error(network(x, t, s, join(labels, augmentation)), output) > 1e-3


def test_the_mapping_is_given_both_times_the_label_and_the_augmentation():
    network, (x, t, s, labels) = tiny(), inputs()
    given: list[Tensor] = []
    network.mapping.register_forward_hook(lambda module, arguments, output: given.append(arguments[0]))
    augmentation = torch.linspace(-1, 1, 2 * NUM_PARAMETERS, dtype=torch.float64).view(2, -1)
    network(x, t, s, join(labels, augmentation))
    times = torch.cat([positional(t, 64), positional(t - s, 64)], dim=1)
    others = network.label_table.weight[labels] + augmentation @ network.map_augmentation.weight.T
    assert relative_error(given[0], times + others) < 1e-12


def test_no_augmentation_equals_zero_parameters():
    network, (x, t, s, labels) = tiny(), inputs()
    zeros = join(labels, torch.zeros(2, NUM_PARAMETERS))
    assert torch.equal(network(x, t, s, zeros), network(x, t, s, labels))


def test_samples_do_not_influence_each_other():
    network, (x, t, s, labels) = tiny(), inputs(batch=3)
    alone = network(x[1:2], t[1:2], s[1:2], labels[1:2])
    assert relative_error(alone, network(x, t, s, labels)[1:2]) < 1e-12


def test_positional_embedding():
    embedding = positional(torch.tensor([0.3], dtype=torch.float64), 8)
    angles = [0.3 * 10000 ** (-index / 3) for index in range(4)]
    expected = [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
    assert embedding[0].tolist() == pytest.approx(expected, abs=1e-14)


def test_resample():
    x = inputs(side=8)[0]
    halve, double = (Resample((1, 1), up=up).double() for up in (False, True))
    assert relative_error(halve(x), F.avg_pool2d(x, 2)) < 1e-14
    assert relative_error(double(x), F.interpolate(x, scale_factor=2)) < 1e-14
    # (1, 3, 3, 1) doubles by linear interpolation, and halving is its transpose times 1/4; the edges see zeros.
    halve, double = (Resample((1, 3, 3, 1), up=up).double() for up in (False, True))
    smooth = F.interpolate(x, scale_factor=2, mode="bilinear")
    assert relative_error(double(x)[..., 1:-1, 1:-1], smooth[..., 1:-1, 1:-1]) < 1e-14
    y = inputs(side=4)[0]
    assert (halve(x) * y).sum().item() == pytest.approx((x * double(y)).sum().item() / 4, abs=1e-12)


def test_attention_is_softmax_over_pixels():
    torch.manual_seed(0)
    layer, x = Attention(32).double(), torch.randn(2, 32, 4, 4, dtype=torch.float64)
    query, key, value = layer.qkv(layer.norm(x)).flatten(2).chunk(3, dim=1)  # [B, C, pixels]
    weights = torch.softmax(torch.einsum("bcq,bck->bqk", query, key) / math.sqrt(32), dim=2)
    attended = torch.einsum("bqk,bck->bcq", weights, value).view(x.shape)
    assert relative_error(layer(x), (x + layer.project(attended)) / math.sqrt(2)) < 1e-12


def test_attention_where_asked_for_and_in_the_middle():
    network = UNet(image_size=32, channels=1, num_classes=1, **(TINY | {"attention_sides": (16,)}))
    found = {name for name, module in network.named_modules() if isinstance(module, Attention)}
    # Side 16 is the lowest level: encoder block after the halving, first middle block, last block on the way up.
    assert found == {"encoder.2.attention", "entries.0.0.attention", "decoder.0.1.attention"}


def test_initial_weights():
    torch.manual_seed(0)
    network = UNet(image_size=8, channels=2, num_classes=NUM_CLASSES, **TINY)
    x, t, s, labels = (value.float() if value.is_floating_point() else value for value in inputs())
    # The output layer's weights lie within 1e-5 times Xavier's bound, and it sums 9 · 32 numbers of order one.
    bound = 1e-5 * math.sqrt(6 / (9 * (32 + 2)))
    assert 0 < network.output.weight.abs().max() <= bound
    assert 0 < network(x, t, s, labels).abs().max() < 9 * 32 * 5 * bound
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
    attention = network.entries[0][0].attention
    qkv_bound = math.sqrt(0.2 * 6 / (64 + 3 * 64))
    assert 0.99 * qkv_bound < attention.qkv.weight.abs().max() <= qkv_bound  # 12,288 uniform numbers
    assert attention.project.weight.abs().max() <= 1e-5 * math.sqrt(6 / (64 + 64))
    # Labels: √10 times Xavier's bound for a layer from 10 to 128 numbers; the null label adds nothing.
    assert not network.label_table.weight[-1].any()
    table_bound = math.sqrt(10 * 6 / (10 + 128))
    assert 0.98 * table_bound < network.label_table.weight.abs().max() <= table_bound


def test_dropout_only_in_training():
    network, arguments = tiny(dropout=0.5), inputs()
    network.eval()
    assert torch.equal(network(*arguments), tiny()(*arguments))
    network.train()
    torch.manual_seed(0)
    first, second = network(*arguments), network(*arguments)
    assert relative_error(first, second) > 1e-2
    torch.manual_seed(0)
    assert torch.equal(network(*arguments), first)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing_changes_nothing(dropout):
    results = []
    for checkpointing in (False, True):
        network = tiny(dropout=dropout, gradient_checkpointing=checkpointing)
        torch.manual_seed(3)
        output = network(*inputs())
        gradients = torch.autograd.grad(output.square().sum(), list(network.parameters()), allow_unused=True)
        results.append([output, *(gradient for gradient in gradients if gradient is not None)])
    assert len(results[0]) == len(results[1])
    assert all(torch.equal(plain, recomputed) for plain, recomputed in zip(*results, strict=True))


def test_gradient_checkpointing_stores_less():
    stored = []
    for checkpointing in (False, True):
        network, sizes = tiny(gradient_checkpointing=checkpointing), []

        def count(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            network(*inputs())
        stored.append(sum(sizes))
    assert stored[1] < stored[0] / 2


@pytest.mark.parametrize("checkpointing", [False, True])
def test_forward_derivative_equals_finite_differences(checkpointing):
    network, (x, t, s, labels) = tiny(gradient_checkpointing=checkpointing), inputs()
    tangents = (torch.sin(7 * x), torch.ones_like(t), torch.full_like(s, -0.5))

    def output(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return network(x, t, s, labels)

    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        value, derivative = torch.func.jvp(output, (x, t, s), tangents)
        step = 1e-5
        ahead, behind = (
            output(*(point + sign * step * tangent for point, tangent in zip((x, t, s), tangents, strict=True)))
            for sign in (1, -1)
        )
    assert relative_error(value, output(x, t, s)) < 1e-12
    # Errors: step² from the third derivative, 1e-16 / step from rounding.
    assert relative_error((ahead - behind) / (2 * step), derivative) < 1e-7


def test_the_forward_derivative_exists_in_bf16_and_is_close_to_that_in_float32():
    network, (x, t, s, labels) = tiny(torch.float32), inputs(dtype=torch.float32)

    def derivative(bf16: bool) -> Tensor:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", torch.bfloat16, bf16):
            function = functools.partial(network, s=s, labels=labels)
            return torch.func.jvp(function, (x, t), (torch.sin(7 * x), torch.ones_like(t)))[1]

    # About 20 layers in a row, each with relative rounding errors of 2⁻⁹ that add up as in a random walk, times 5.
    assert 0 < relative_error(derivative(True), derivative(False)) < 5 * 20**0.5 * 2**-9

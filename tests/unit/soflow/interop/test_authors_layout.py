"""The authors' U-Net, written from EDM's description with a second time, against ours with the same weights."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import relative_error, tiny_config
from torch import Tensor

from soflow.conditioning import join
from soflow.config import parse
from soflow.interop import authors_checkpoint
from soflow.interop.authors_layout import layout_of
from soflow.networks.registry import NETWORKS
from soflow.training.build import build_network
from soflow.training.checkpoints import CheckpointError

FILE = Path("theirs.pt")
NULL = 10
SIZES = {
    "published filter": {
        "width": 32,
        "multipliers": (2, 2, 2),
        "blocks": 2,
        "attention_sides": (4,),
        "resample_filter": (1, 3, 3, 1),
    },
    "two levels": {"width": 32, "multipliers": (1, 2), "blocks": 1, "attention_sides": (8,)},
}
INPUTS = [0, 2, 5, 6, 7, 8]  # of nine augmentation parameters: without vertical flip and the rotation's two


@pytest.fixture(params=SIZES.values(), ids=SIZES)
def size(request, monkeypatch):
    """Size of the network U-Net-XS in this test."""
    monkeypatch.setitem(NETWORKS.included, "U-Net-XS", replace(NETWORKS["U-Net-XS"], size=request.param))
    return request.param


def unet_config(**dataset):
    return tiny_config(
        dataset={"conditional": False} | dataset,
        network={"name": "U-Net-XS"},
        optimizer={"name": "radam", "warmup_steps": 0},
        training={"ema_dtype": "float64"},
    )


# Their network.


def their_shapes(
    side: int, channels: int, width: int, multipliers, blocks: int, attention_sides, resample_filter=(1, 1)
) -> dict[str, tuple[int, ...]]:
    """Keys and shapes in the order in which EDM's modules are made."""
    shapes: dict[str, tuple[int, ...]] = {}
    size = 4 * width

    def layer(name: str, *weight: int, bias: bool = True) -> None:
        shapes[f"network.{name}.weight"] = weight
        if bias:
            shapes[f"network.{name}.bias"] = weight[:1]

    def block(name: str, before: int, after: int, attention: bool) -> None:
        resampled = name.endswith(("down", "up"))
        layer(f"{name}.norm0", before)
        layer(f"{name}.conv0", after, before, 3, 3)
        if resampled:
            shapes[f"network.{name}.conv0.resample_filter"] = (1, 1, len(resample_filter), len(resample_filter))
        layer(f"{name}.affine", after, size)
        layer(f"{name}.norm1", after)
        layer(f"{name}.conv1", after, after, 3, 3)
        if before != after or resampled:
            layer(f"{name}.skip", after, before, 1, 1)
        if resampled:
            shapes[f"network.{name}.skip.resample_filter"] = (1, 1, len(resample_filter), len(resample_filter))
        if attention:
            layer(f"{name}.norm2", after)
            layer(f"{name}.qkv", 3 * after, after, 1, 1)
            layer(f"{name}.proj", after, after, 1, 1)

    layer("map_augment", size, 6, bias=False)
    layer("map_layer0", size, size)
    layer("map_layer1", size, size)
    layer(f"enc.{side}x{side}_conv", width, channels, 3, 3)
    last, skips = width, [width]
    for level, multiplier in enumerate(multipliers):
        here = side // 2**level
        if level:
            block(f"enc.{here}x{here}_down", last, last, False)
            skips.append(last)
        for index in range(blocks):
            block(f"enc.{here}x{here}_block{index}", last, width * multiplier, here in attention_sides)
            last = width * multiplier
            skips.append(last)
    for level in reversed(range(len(multipliers))):
        here = side // 2**level
        if level == len(multipliers) - 1:
            block(f"dec.{here}x{here}_in0", last, last, True)
            block(f"dec.{here}x{here}_in1", last, last, False)
        else:
            block(f"dec.{here}x{here}_up", last, last, False)
        for index in range(blocks + 1):
            attention = index == blocks and here in attention_sides
            block(f"dec.{here}x{here}_block{index}", last + skips.pop(), width * multipliers[level], attention)
            last = width * multipliers[level]
    layer(f"dec.{side}x{side}_aux_norm", last)
    layer(f"dec.{side}x{side}_aux_conv", channels, last, 3, 3)
    return shapes


def their_weights(size: dict, seed: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Random weights for digits, none of them near zero."""
    generator = torch.Generator().manual_seed(seed)
    taps = torch.tensor(size.get("resample_filter", (1, 1)), dtype=dtype)
    weights = {}
    for key, shape in their_shapes(8, 1, **size).items():
        weights[key] = torch.randn(shape, generator=generator, dtype=dtype) / math.sqrt(math.prod(shape[1:]) or 1)
        if key.endswith("resample_filter"):
            weights[key] = (taps[:, None] * taps / taps.sum() ** 2)[None, None]
    return weights


def their_output(weights: dict[str, Tensor], x: Tensor, t: Tensor, s: Tensor, augmentation: Tensor | None) -> Tensor:
    """F_θ(x, t, s) of their network, [B, C, H, W] float64."""
    weights = {key.removeprefix("network."): value.double() for key, value in weights.items()}

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0)

    def conv(name: str, x: Tensor) -> Tensor:
        weight = weights[f"{name}.weight"]
        return F.conv2d(x, weight, weights[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def norm(name: str, x: Tensor) -> Tensor:
        groups = x.unflatten(1, (min(32, x.shape[1] // 4), -1))
        variance, mean = torch.var_mean(groups, dim=(2, 3, 4), keepdim=True, unbiased=False)
        normed = ((groups - mean) / (variance + 1e-6).sqrt()).flatten(1, 2)
        return normed * weights[f"{name}.weight"][:, None, None] + weights[f"{name}.bias"][:, None, None]

    def resample(name: str, x: Tensor) -> Tensor:
        """Halve the side by the matrix of the filter, or double it by twice its transpose."""
        if f"{name}.resample_filter" not in weights:
            return x
        taps = weights[f"{name}.resample_filter"][0, 0].sum(1)
        large = x.shape[-1] * (2 if "_up" in name else 1)
        matrix = x.new_zeros(large // 2, large)
        for row in range(large // 2):
            for tap, value in enumerate(taps):
                column = 2 * row + tap - (len(taps) - 1) // 2
                if 0 <= column < large:
                    matrix[row, column] = value
        matrix = 2 * matrix.T if "_up" in name else matrix
        return matrix @ x @ matrix.T

    def block(name: str, x: Tensor, embedding: Tensor) -> Tensor:
        branch = conv(f"{name}.conv0", resample(f"{name}.conv0", silu(norm(f"{name}.norm0", x))))
        branch = branch + linear(f"{name}.affine", embedding)[:, :, None, None]
        branch = conv(f"{name}.conv1", silu(norm(f"{name}.norm1", branch)))
        if f"{name}.skip.weight" in weights:
            x = conv(f"{name}.skip", resample(f"{name}.skip", x))
        x = (x + branch) * math.sqrt(0.5)
        if f"{name}.qkv.weight" not in weights:
            return x
        joint = conv(f"{name}.qkv", norm(f"{name}.norm2", x)).flatten(2)
        query, key, value = joint[:, 0::3], joint[:, 1::3], joint[:, 2::3]
        attention = (torch.einsum("bci,bcj->bij", query, key) / math.sqrt(x.shape[1])).softmax(2)
        attended = torch.einsum("bij,bcj->bci", attention, value).view_as(x)
        return (x + conv(f"{name}.proj", attended)) * math.sqrt(0.5)

    half = len(weights["map_layer0.weight"]) // 4
    frequencies = 10000.0 ** -(torch.arange(half).double() / (half - 1))
    angles = [time.double()[:, None] * frequencies for time in (t, t - s)]
    embedding = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1)
    if augmentation is not None:
        embedding = embedding + linear("map_augment", augmentation.double())
    embedding = silu(linear("map_layer1", silu(linear("map_layer0", embedding))))

    skips = []
    for name in dict.fromkeys(".".join(key.split(".")[:2]) for key in weights if key.startswith(("enc", "dec"))):
        if name.endswith("aux_norm"):
            x = norm(name, x)
        elif name.endswith("conv"):
            x = conv(name, silu(x) if name.startswith("dec") else x)
        else:
            x = torch.cat([x, skips.pop()], 1) if name.startswith("dec") and "block" in name else x
            x = block(name, x, embedding)
        if name.startswith("enc"):
            skips.append(x)
    assert not skips
    return x


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


# The conversion.


def import_stored(stored: dict) -> dict:
    config = unet_config()
    with torch.device("meta"):
        network = build_network(config, NULL)
    return authors_checkpoint.import_state(stored, network, config, FILE)


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(3, 1, 8, 8, generator=generator, dtype=torch.float64)
    t = torch.tensor([1.0, 0.7, 0.2], dtype=torch.float64)
    return x, t, t * torch.tensor([0.0, 0.9, 1.0], dtype=torch.float64)


@pytest.mark.parametrize("augmented", [True, False])
@pytest.mark.parametrize("part", ["network", "ema"])
def test_an_imported_network_computes_what_theirs_does(size, augmented, part):
    stored = {"model": their_weights(size, 0), "ema_model": their_weights(size, 1)}
    network = build_network(unet_config(), NULL).double().eval()
    network.load_state_dict(import_stored(stored)[part])
    x, t, s = inputs()
    parameters = torch.zeros(3, 9, dtype=torch.float64)
    parameters[:, INPUTS] = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    labels = torch.full((3,), NULL)
    labels = join(labels, parameters) if augmented else labels
    weights = stored["model" if part == "network" else "ema_model"]
    expected = their_output(weights, x, t, s, parameters[:, INPUTS] if augmented else None)
    assert relative_error(network(x, t, s, labels), expected) < 1e-12


def moments(weights: dict[str, Tensor]) -> dict:
    """An optimizer's state after three steps, by position."""
    keys = [key for key in weights if not key.endswith("resample_filter")]
    states = {
        i: {"step": torch.tensor(3.0), "exp_avg": weights[key].sin(), "exp_avg_sq": weights[key].square()}
        for i, key in enumerate(keys)
    }
    group = {"lr": 1e-4, "betas": (0.9, 0.999), "weight_decay": 0.0, "params": list(range(len(keys)))}
    return {"state": states, "param_groups": [group]}


def test_export_inverts_import(size):
    model, average = their_weights(size, 0, torch.float32), their_weights(size, 1, torch.float32)
    stored = {"model": model, "ema_model": average, "optimizer": moments(model), "finished_steps": 7}
    config = unet_config()
    state = import_stored(copy.deepcopy(stored))
    exported = authors_checkpoint.export_state(state, build_network(config, NULL), config)
    for part in ("model", "ema_model"):
        assert list(exported[part]) == list(stored[part])
        for key, value in stored[part].items():
            assert exported[part][key].dtype == value.dtype
            assert torch.equal(exported[part][key], value), key
    assert list(exported["optimizer"]["state"]) == list(stored["optimizer"]["state"])
    for i, moment in stored["optimizer"]["state"].items():
        assert exported["optimizer"]["state"][i].keys() == moment.keys()
        assert all(torch.equal(exported["optimizer"]["state"][i][key], value) for key, value in moment.items())
    assert exported["optimizer"]["param_groups"][0]["params"] == stored["optimizer"]["param_groups"][0]["params"]
    assert exported["finished_steps"] == 7


def test_a_network_trained_here_goes_on_there(size):
    """The output is the same although the null row is in a bias now, and so is the optimizer's next step."""
    config = unet_config()
    network = build_network(config, NULL)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / math.sqrt(parameter[0].numel()))
    optimizer = torch.optim.RAdam(network.parameters(), lr=1e-3)
    for _ in range(7):  # of which the last two are adaptive
        step(optimizer)
    state = {"network": network.state_dict(), "ema": network.state_dict(), "optimizer": optimizer.state_dict()}
    exported = authors_checkpoint.export_state(copy.deepcopy(state) | {"step": 7}, network, config)
    x, t, s = inputs()
    expected = copy.deepcopy(network).double()(x, t, s, torch.full((3,), NULL))
    # The exported bias is rounded to float32.
    assert relative_error(their_output(exported["ema_model"], x, t, s, None), expected) < 1e-6

    model = exported["model"] | {"network.map_layer0.bias": network.mapping[0].bias.detach().clone()}
    theirs = {key: value.requires_grad_() for key, value in model.items() if not key.endswith("resample_filter")}
    continued = torch.optim.RAdam(theirs.values(), lr=1e-3)
    continued.load_state_dict(exported["optimizer"])
    for stepper in (optimizer, continued):
        step(stepper)
    layout = layout_of(config, network.state_dict())
    for name, key in layout.keys.items():
        # Vectorized cosines of a tensor's ends may differ in the last bit.
        assert relative_error(theirs[key], layout.to_theirs(name, network.state_dict()[name])) < 1e-6, key


def step(optimizer: torch.optim.Optimizer) -> None:
    """Each parameter's gradient is its own cosine, so that equal parameters have equal gradients."""
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = parameter.detach().cos()
    optimizer.step()


def test_the_published_network_has_the_authors_shapes():
    config = parse({"dataset": {"name": "cifar10", "conditional": False}, "network": {"name": "U-Net"}})
    with torch.device("meta"):
        network = build_network(config, NULL).state_dict()
    layout = layout_of(config, network)
    found = {
        key: tuple((layout.to_theirs(entry, network[entry]) if isinstance(entry, str) else entry).shape)
        for key, entry in layout.entries.items()
    }
    published = {"width": 128, "multipliers": (2, 2, 2), "blocks": 4, "attention_sides": (16,)}
    expected = their_shapes(32, 3, **published, resample_filter=(1, 3, 3, 1))
    assert list(found.items()) == list(expected.items())
    assert set(network) - set(layout.keys) == {layout.label_table}


@pytest.mark.parametrize("size", [SIZES["published filter"]], indirect=True)
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("enc.8x8_block0.conv0.weight", None, r"enc.8x8_block0.conv0.weight, \(64, 32, 3, 3\) in U-Net-XS, is missing"),
        ("enc.4x4_down.skip.resample_filter", None, r"skip.resample_filter, \(1, 1, 4, 4\) in U-Net-XS, is missing"),
        ("map_augment.weight", (128, 9), r"map_augment.weight is \(128, 9\), but \(128, 6\) in U-Net-XS"),
        ("map_layer0.weight", (128, 64), r"map_layer0.weight is \(128, 64\), but \(128, 128\) in U-Net-XS"),
        ("dec.2x2_in0.qkv.weight", (128, 64, 1, 1), r"qkv.weight is \(128, 64, 1, 1\), but \(192, 64, 1, 1\)"),
        ("map_label.weight", (128, 10), r"map_label.weight, \(128, 10\), is no parameter of U-Net-XS"),
        ("dec.4x4_up.conv0.resample_filter", (1, 1, 4, 4), r"conv0.resample_filter is .* but \[\[\[\[0.0156"),
    ],
)
def test_what_does_not_fit_is_named(size, key, value, message):
    weights = their_weights(size, 0)
    weights.pop(f"network.{key}", None)
    if value is not None:
        weights[f"network.{key}"] = torch.zeros(value)
    with pytest.raises(CheckpointError, match=f"theirs.pt: network.*{message}"):
        import_stored({"model": weights, "ema_model": weights})


@pytest.mark.parametrize("size", [SIZES["two levels"]], indirect=True)
def test_a_misshapen_moment_is_named(size):
    weights = their_weights(size, 0)
    optimizer = moments(weights)
    optimizer["state"][0]["exp_avg"] = torch.zeros(128, 9)
    with pytest.raises(CheckpointError, match=r"exp_avg of map_augmentation.weight: \(128, 9\), not \(128, 6\)"):
        import_stored({"model": weights, "ema_model": weights, "optimizer": optimizer})


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ({"conditional": True}, "dataset.conditional = True: must be False"),
        ({"augmentation": 0.1, "augmentations": "edm"}, "dataset.augmentations = edm: must be upright"),
    ],
)
def test_a_network_with_inputs_that_theirs_lacks_is_refused(dataset, message):
    with pytest.raises(CheckpointError, match=message):
        authors_checkpoint.check_network(unet_config(**dataset), FILE)
    authors_checkpoint.check_network(unet_config(augmentation=0.12), FILE)

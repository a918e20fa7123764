"""The DiT backbone: golden outputs, published sizes, initial weights, position table."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import NUM_CLASSES, golden, golden_dit, relative_error

from soflow.config import parse
from soflow.networks import build
from soflow.networks.dit import DiT, position_table
from soflow.networks.registry import DIT_SIZES, NETWORKS


@pytest.fixture(scope="module")
def stored():
    return golden("dit_tiny")


def test_output_equals_the_published_network_in_float64(stored):
    output = golden_dit()(stored["io.x"], stored["io.t"], stored["io.s"], stored["io.y"])
    assert relative_error(output, stored["io.out_f64"]) < 1e-9  # rounding of two implementations: about 1e-14


def test_null_labels_in_float64(stored):
    labels = torch.full_like(stored["io.y"], NUM_CLASSES)
    output = golden_dit()(stored["io.x"], stored["io.t"], stored["io.s"], labels)
    assert relative_error(output, stored["io.out_f64_nolabel"]) < 1e-9
    assert relative_error(output, stored["io.out_f64"]) > 1e-2  # labels matter


def test_output_in_float32(stored):
    inputs = (stored[f"io.{name}"].float() for name in "xts")
    output = golden_dit(torch.float32)(*inputs, stored["io.y"])
    assert output.dtype == torch.float32
    # The embedders' matrix products sum hundreds of terms, each with a rounding error of 6e-8.
    assert relative_error(output, stored["io.out_f32"]) < 1e-4
    assert relative_error(output, stored["io.out_f64"]) < 1e-4


def test_state_dict_has_exactly_the_published_names_and_shapes(stored):
    network = DiT(image_size=8, channels=4, num_classes=NUM_CLASSES, patch=2, width=32, depth=2, heads=4)
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    assert shapes == {name: value.shape for name, value in stored.items() if not name.startswith("io.")}


def test_position_table_is_the_published_one_bit_for_bit(stored):
    assert torch.equal(position_table(32, 4), stored["pos_embed"])


def test_position_table_puts_the_column_first():
    table = position_table(8, 3).view(3, 3, 8)
    angle = [1.0, 0.01]  # 10000^(−m/2)
    for row in range(3):
        for column in range(3):
            expected = [
                f(index * a) for index in (column, row) for f in (math.sin, math.cos) for a in angle
            ]  # sines and cosines of the column, then of the row
            assert table[row, column].tolist() == pytest.approx(expected, abs=1e-7)  # stored in float32


# Millions of parameters for latents of 4 x 32 x 32 and 1,000 classes, as published for MeanFlow (arXiv 2505.13447).
PUBLISHED_MILLIONS = {"DiT-B/4": 131, "DiT-B/2": 131, "DiT-M/2": 308, "DiT-L/2": 459, "DiT-XL/2": 676}


@pytest.mark.parametrize("name", PUBLISHED_MILLIONS)
def test_parameter_count(name):
    size = NETWORKS[name].size
    with torch.device("meta"):
        network = DiT(image_size=32, channels=4, num_classes=1000, **size)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert round(count / 1e6) == PUBLISHED_MILLIONS[name]

    # Layer by layer, weights and biases: patches, two time embedders, labels, blocks, output.
    d, outputs = size["width"], 4 * size["patch"] ** 2
    embedder = (256 * d + d) + (d * d + d)
    block = (3 * d * d + 3 * d) + (d * d + d) + (4 * d * d + 4 * d) + (4 * d * d + d) + (6 * d * d + 6 * d)
    final = (2 * d * d + 2 * d) + (outputs * d + outputs)
    assert count == (outputs * d + d) + 2 * embedder + 1001 * d + size["depth"] * block + final


def test_every_size_comes_with_three_patches():
    transformers = {name: spec for name, spec in NETWORKS.items() if name.startswith("DiT")}
    assert set(transformers) == {f"DiT-{size}/{patch}" for size in DIT_SIZES for patch in (1, 2, 4)}
    for name, spec in transformers.items():
        assert name.endswith(f"/{spec.side_multiple}")
        assert spec.size["patch"] == spec.side_multiple


def test_build_takes_the_shape_from_the_data_set():
    config = parse({"dataset": {"name": "image_folder", "image_size": 12}, "network": {"name": "DiT-XXS/4"}})
    network = build(config.network, config.dataset.sample_shape, num_classes=3)
    x, t = torch.randn(2, 3, 12, 12), torch.tensor([1.0, 0.5])
    assert network(x, t, t, torch.tensor([0, 3])).shape == x.shape  # 3 is the null label
    with pytest.raises(IndexError):
        network(x, t, t, torch.tensor([0, 4]))


@pytest.fixture(scope="module")
def fresh():
    torch.manual_seed(0)
    return DiT(image_size=8, channels=1, num_classes=NUM_CLASSES, patch=2, width=128, depth=2, heads=4)


def test_initial_output_is_zero(fresh):
    x, t = torch.randn(3, 1, 8, 8), torch.rand(3)
    assert fresh(x, t, t / 2, torch.tensor([0, 5, NUM_CLASSES])).abs().max() == 0


def test_initial_biases_modulations_and_output_layer_are_zero(fresh):
    zero = {name for name, value in fresh.named_parameters() if not value.any()}
    names = {name for name, _ in fresh.named_parameters()}
    biases = {name for name in names if name.endswith("bias")}
    assert zero == biases | {name for name in names if "adaLN_modulation" in name} | {"final_layer.linear.weight"}


def test_initial_spread(fresh):
    parameters = dict(fresh.named_parameters())
    # A sample's standard deviation over n normal draws scatters by 1/sqrt(2n): under 2 % for the smallest, the 1,408
    # numbers of the label table, so 8 % is four of these.
    for name in ("t_embedder.mlp.0.weight", "t_embedder.mlp.2.weight", "y_embedder.embedding_table.weight"):
        assert parameters[name].std().item() == pytest.approx(0.02, rel=0.08)
    xavier = {name for name in parameters if name.endswith("weight") and parameters[name].any()}
    xavier -= {"t_embedder.mlp.0.weight", "t_embedder.mlp.2.weight", "y_embedder.embedding_table.weight"}
    assert {"s_embedder.mlp.0.weight", "x_embedder.proj.weight", "blocks.1.attn.qkv.weight"} <= xavier
    for name in xavier:
        matrix = parameters[name].flatten(1)  # the patch embedding counts as a linear layer
        bound = math.sqrt(6 / sum(matrix.shape))
        assert matrix.abs().max() <= bound
        # The uniform law's standard deviation; 512 numbers of the patch embedding scatter by 2 %.
        assert matrix.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.08)

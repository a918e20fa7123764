"""EDM's augmentation: each transform against what it should do, and how often it does."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from soflow.data.augmentation import EDM, NUM_PARAMETERS, SYM6, UPRIGHT, augment, resample, rotation

SIDE = 32
# Columns of each transform's parameters.
COLUMNS = {"xflip": [0], "yflip": [1], "scale": [2], "rotate": [3, 4], "aniso": [5, 6], "translate": [7, 8]}
# By this many pixels the wavelet filter's mean lies off the tap that counts as its middle.
OFF_CENTER = (sum(index * tap for index, tap in enumerate(SYM6)) / math.sqrt(2) - 5) / 2


def only(name: str) -> dict[str, float]:
    return dict.fromkeys(EDM, 0.0) | {name: EDM[name]}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(batch: int, side: int = 8, channels: int = 3) -> Tensor:
    return torch.rand(batch, channels, side, side, generator=seeded(99)) * 2 - 1


def coordinates(side: int = SIDE) -> Tensor:
    """Two channels [1, 2, side, side] that hold each pixel's x and y from the center."""
    line = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    return torch.stack(torch.meshgrid(line, line, indexing="xy"))[None]


def identity(batch: int = 1) -> Tensor:
    return torch.eye(2, dtype=torch.float64).expand(batch, 2, 2)


def smooth(side: int = SIDE) -> Tensor:
    """An image whose waves are 16 pixels and longer."""
    x, y = coordinates(side)[0]
    return torch.sin(2 * math.pi * x / 16 + 1)[None, None] + torch.cos(2 * math.pi * (x / 40 + y / 20))[None, None]


def test_probability_zero_is_the_identity():
    images = noise(16)
    augmented, parameters = augment(images, 0.0, seeded())
    assert torch.equal(augmented, images)
    assert parameters.shape == (16, NUM_PARAMETERS)
    assert parameters.dtype == torch.float32
    assert not parameters.any()


def test_the_generator_decides_everything():
    images, state = noise(16), torch.get_rng_state()
    first, again, other = (augment(images, 0.5, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images, noise(16))  # the given images stay as they are


@pytest.mark.parametrize(("name", "axis"), [("xflip", 3), ("yflip", 2)])
def test_flips_are_exact(name, axis):
    images = noise(64)
    augmented, parameters = augment(images, 1.0, seeded(), only(name))
    flipped = parameters[:, COLUMNS[name][0]] == 1
    assert 0 < flipped.sum() < 64
    assert torch.equal(augmented[flipped], images[flipped].flip(axis))
    assert torch.equal(augmented[~flipped], images[~flipped])


@pytest.mark.parametrize("name", EDM)
def test_only_the_asked_for_transform_happens(name):
    images = noise(32)
    augmented, parameters = augment(images, 0.7, seeded(), only(name))
    others = [column for other in EDM if other != name for column in COLUMNS[other]]
    assert not parameters[:, others].any()
    touched = parameters.any(dim=1)
    assert 0 < touched.sum() < 32
    assert torch.equal(augmented[~touched], images[~touched])
    assert ((augmented - images)[touched].flatten(1).abs().amax(dim=1) > 1e-3).all()


def inverse_map(name: str, parameters: Tensor) -> tuple[Tensor, Tensor]:
    """The 2 x 2 matrix and the shift that one sample's parameters stand for."""
    matrix, shift = torch.eye(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    a, *rest = parameters.double()[COLUMNS[name]]
    if name == "scale":  # the image grows by 2^(a / 5)
        matrix = matrix * 2 ** (-a / 5)
    elif name == "rotate":
        matrix = torch.tensor([[1 + a, -rest[0]], [rest[0], 1 + a]], dtype=torch.float64)
    elif name == "translate":  # in eighths of the side
        shift = torch.stack([a, *rest]) * SIDE / 8
    return matrix, shift


@pytest.mark.parametrize("name", ["scale", "rotate", "translate"])
def test_parameters_say_what_was_applied(name):
    plain = coordinates()
    augmented, parameters = augment(plain.repeat(40, 1, 1, 1), 1.0, seeded(), only(name))
    center = slice(SIDE // 2 - 3, SIDE // 2 + 3)
    position = plain[0, :, center, center]
    checked = 0
    for image, row in zip(augmented, parameters, strict=True):
        matrix, shift = inverse_map(name, row)
        # The filters shift a linear image before and after the transform; without one, the two cancel.
        off = (matrix - torch.eye(2, dtype=torch.float64)).sum(dim=1) * OFF_CENTER
        expected = torch.einsum("ij,jhw->ihw", matrix, position - shift[:, None, None]) + off[:, None, None]
        if expected.abs().max() < SIDE / 2 - 5:  # farther out, the image's reflection shows
            checked += 1
            assert (image[:, center, center] - expected).abs().max() < 1e-5  # parameters are float32
    assert checked >= 25


def test_anisotropy_keeps_areas_and_has_its_parameters_axis():
    plain = coordinates()
    augmented, parameters = augment(plain.repeat(40, 1, 1, 1), 1.0, seeded(), only("aniso"))
    middle = SIDE // 2
    # Differences between neighbors give the matrix: [B, source, output axis].
    matrix = torch.stack(
        [
            augmented[:, :, middle, middle] - augmented[:, :, middle, middle - 1],
            augmented[:, :, middle, middle] - augmented[:, :, middle - 1, middle],
        ],
        dim=2,
    )
    assert torch.allclose(torch.linalg.det(matrix), torch.ones(40, dtype=torch.float64), atol=1e-5)
    amount = parameters[:, 5:7].double()
    assert (amount[:, 1] == 0).any()  # along the image's own axes
    assert (amount[:, 1] != 0).any()
    # The axis (x, −y) is stretched by 2^(w / 5); the sign of w is the one thing the parameters leave open.
    axis = F.normalize(amount, dim=1) * amount.new_tensor([1, -1])
    factor = 2 ** (amount.norm(dim=1, keepdim=True) / 5)
    seen = (matrix @ axis[:, :, None])[:, :, 0]
    error = torch.minimum((seen - axis / factor).norm(dim=1), (seen - axis * factor).norm(dim=1))
    assert error.max() < 1e-5


def test_filter_is_orthogonal_to_its_even_shifts():
    taps = torch.tensor(SYM6, dtype=torch.float64)
    assert taps.sum().item() == pytest.approx(math.sqrt(2), abs=1e-12)
    products = [(taps[: 12 - shift] * taps[shift:]).sum().item() for shift in range(0, 12, 2)]
    assert products == pytest.approx([1, 0, 0, 0, 0, 0], abs=1e-11)


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 1, 6, 10)])
def test_resampling_nothing_gives_the_image_back(shape):
    images = torch.rand(shape, dtype=torch.float64)
    assert torch.allclose(resample(images, identity(2), torch.zeros(2, 2)), images, atol=1e-10)


@pytest.mark.parametrize("shift", [(3, -2), (-7, 0), (0, 30)])
def test_whole_pixel_translation_is_exact(shift):
    images = noise(2, side=8).double()
    moved = resample(images, identity(2), torch.tensor([shift, shift], dtype=torch.float64))
    for row in range(8):
        for column in range(8):
            x, y = (
                7 - abs(7 - position % 14)  # reflected about the outermost pixels, again and again
                for position in (column - shift[0], row - shift[1])
            )
            assert torch.allclose(moved[:, :, row, column], images[:, :, y, x], atol=1e-10)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_quarter_turns(quarters):
    turned = resample(smooth(), rotation(torch.tensor([quarters * math.pi / 2]).double()), torch.zeros(1, 2))
    # Output (x, y) shows input (−y, x): seen with y pointing down, a turn against the clock.
    expected = torch.rot90(smooth(), quarters, dims=(2, 3))
    # The filter's mean ends up to 0.1 pixels off in x and in y, where the image changes by up to 0.74 a pixel: 0.103,
    # and a little for the edges, where the reflection has a kink.
    assert (turned - expected).abs().max() < 0.12


@pytest.mark.parametrize("side", [8, 32])
def test_constant_images_stay_constant(side):
    images = torch.full((64, 1, side, side), 0.7, dtype=torch.float64)
    augmented, parameters = augment(images, 1.0, seeded())
    assert parameters.any(dim=1).all()
    assert (augmented - 0.7).abs().max() < 1e-10  # the filter's coefficients are given to 12 digits


@pytest.mark.parametrize("shift", [(0.5, 0.5), (-0.5, 0.25), (-3.7, 9.1)])
def test_padding_is_wide_enough(shift):
    images = torch.ones(1, 1, 8, 8, dtype=torch.float64)
    shifted = resample(images, identity(), torch.tensor([shift], dtype=torch.float64))
    assert (shifted - 1).abs().max() < 1e-10


def test_brightness_stays_and_values_are_finite():
    images = torch.rand(64, 3, 32, 32, generator=seeded())
    augmented, _ = augment(images, 1.0, seeded())
    assert augmented.isfinite().all()
    assert augmented.mean().item() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("multipliers", [EDM, UPRIGHT])
def test_how_often_each_transform_happens(multipliers):
    batch, runs, probability = 500, 4, 0.12
    images = torch.zeros(batch, 1, 4, 4)
    parameters = torch.cat([augment(images, probability, seeded(seed), multipliers)[1] for seed in range(runs)])
    for name, columns in COLUMNS.items():
        share = parameters[:, columns].any(dim=1).float().mean().item()
        # Half of the candidates for a flip are flipped, and every image is one from left to right.
        expected = min(1.0, probability * multipliers[name]) * (0.5 if "flip" in name else 1.0)
        # Five standard deviations of a share of 2,000 independent samples.
        assert abs(share - expected) <= 5 * math.sqrt(expected * (1 - expected) / (batch * runs)), name


def test_parameters_have_their_laws_spread():
    parameters = augment(torch.zeros(2000, 1, 4, 4), 1.0, seeded())[1]
    # A sample's standard deviation over n normal draws scatters by 1 / sqrt(2n), 1.6 %; five of these.
    for column in (2, 7, 8):
        assert parameters[:, column].std().item() == pytest.approx(1, rel=0.08)
    assert parameters[:, 5:7].square().sum(dim=1).mean().item() == pytest.approx(1, rel=0.16)
    # Uniform angles: cosine and sine have mean 0 and standard deviation 1/√2, so means scatter by 1.6 %.
    assert (parameters[:, 3] + 1).mean().abs() < 0.08
    assert parameters[:, 4].mean().abs() < 0.08
    assert torch.allclose((parameters[:, 3] + 1) ** 2 + parameters[:, 4] ** 2, torch.ones(2000), atol=1e-5)
    assert (parameters[:, 6] == 0).float().mean().item() == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(2000))

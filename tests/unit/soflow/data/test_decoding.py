"""Image files of every mode of Pillow's, at their right values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from soflow.data.base import DataError
from soflow.data.decoding import as_rgb, open_rgb


def rgb(image: Image.Image) -> np.ndarray:
    return np.asarray(as_rgb(image))


def saved(image: Image.Image, path: Path, **options) -> np.ndarray:
    image.save(path, **options)
    return np.asarray(open_rgb(path))


def test_16_bit_gray_values_are_scaled(tmp_path):
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.rint(ramp / 257).astype(np.uint8)  # 65535 = 255 · 257
    for image in (Image.fromarray(ramp), Image.fromarray(ramp.astype(np.int32))):
        assert np.array_equal(rgb(image), np.stack([expected] * 3, axis=-1))
    found = saved(Image.fromarray(ramp), tmp_path / "ramp.png")
    assert np.array_equal(found[..., 0], expected)


def test_floating_point_values_are_scaled():
    values = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    assert np.array_equal(rgb(Image.fromarray(values))[..., 1], np.arange(256).reshape(16, 16))


@pytest.mark.parametrize("values", [np.full((2, 2), 1.5, np.float32), np.full((2, 2), 70000, np.int32)])
def test_values_without_a_meaning_are_refused(values, tmp_path):
    with pytest.raises(ValueError, match="must lie in 0 to"):
        as_rgb(Image.fromarray(values))
    Image.fromarray(values).save(tmp_path / "image.tiff")
    with pytest.raises(DataError, match=r"image\.tiff: cannot be read as an image \(gray values of mode"):
        open_rgb(tmp_path / "image.tiff")


GRAY = Image.fromarray(np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8))
COLOR = Image.merge(
    "RGB", [GRAY, GRAY.transpose(Image.Transpose.ROTATE_90), GRAY.transpose(Image.Transpose.ROTATE_180)]
)
TOLERANCE = {"1": 0, "L": 0, "P": 0, "RGB": 0, "RGBX": 0, "YCbCr": 3, "HSV": 5, "CMYK": 0, "LAB": 3}
"""Largest error of an 8-bit value after a conversion to the mode and back: of YCbCr, whose values are cut off rather
than rounded, up to 1 + 1.772 + 1; of HSV, up to the 6 · 255 / 256 of a step in hue. LAB is tried with grays, because
its rounding in dark saturated colors is much magnified."""


@pytest.mark.parametrize("mode", TOLERANCE)
def test_opaque_modes_keep_their_colors(mode):
    if mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        expected = GRAY.convert("RGB")
        image = ImageCms.applyTransform(expected, ImageCms.buildTransform(*profiles, "RGB", "LAB"))
    elif mode in ("1", "L"):
        image = GRAY.point(lambda value: 255 * (value > 99)).convert(mode) if mode == "1" else GRAY
        expected = image.convert("L").convert("RGB")
    elif mode == "P":
        image = GRAY.quantize(64)
        expected = GRAY.convert("RGB")
    else:
        image, expected = COLOR.convert(mode), COLOR
    assert image.mode == mode
    error = np.abs(rgb(image).astype(int) - np.asarray(expected).astype(int))
    assert error.max() <= TOLERANCE[mode]


@pytest.mark.parametrize("mode", ["LA", "La", "RGBA", "RGBa", "PA", "P"])
def test_transparent_images_are_laid_on_white(mode):
    alpha = np.array([[0, 255, 128]], np.uint8)
    layers = np.dstack([np.full((1, 3, 3), 100, np.uint8), alpha])
    image = Image.fromarray(layers)
    if mode in ("LA", "RGBa"):
        image = image.convert(mode)
    elif mode == "La":
        image = image.convert("LA").convert("La")
    elif mode == "PA":
        image = Image.fromarray(np.full((1, 3), 100, np.uint8)).convert("P").convert("PA")
        image.putalpha(Image.fromarray(alpha))
    elif mode == "P":
        image = Image.fromarray(np.array([[0, 1, 1]], np.uint8), "L").convert("P")
        image.putpalette([0, 0, 0, 100, 100, 100])
        image.info["transparency"] = 0
        assert rgb(image).tolist() == [[[255] * 3, [100] * 3, [100] * 3]]
        return
    assert image.mode == mode
    found = rgb(image)
    assert found[0, 0].tolist() == [255, 255, 255]
    assert found[0, 1].tolist() == [100, 100, 100]
    assert np.abs(found[0, 2].astype(int) - 177).max() <= 1  # 100 · 128/255 + 255 · 127/255 = 177.2


def test_the_orientation_of_a_photograph_is_applied(tmp_path):
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255  # the left half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown rotated by 90° clockwise: the left side is at the top
    found = saved(Image.fromarray(pixels), tmp_path / "photo.png", exif=exif)
    assert found.shape == (16, 8, 3)
    assert (found[:8] == 255).all()
    assert (found[8:] == 0).all()


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    found = saved(frames[0], tmp_path / "two.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert (found == [255, 0, 0]).all()

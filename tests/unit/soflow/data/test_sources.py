"""Data sources: what they hold, what they refuse, fingerprints; and the way between pixels and networks."""

from __future__ import annotations

import gzip
import os
import re
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from soflow.codecs.pixels import Pixels
from soflow.config import parse, to_dict
from soflow.config_base import ConfigError
from soflow.data import fashion_mnist, open_source
from soflow.data.base import DataError
from soflow.data.config import DatasetConfig
from soflow.data.digits import read_digits
from soflow.data.image_folder import center_square
from soflow.data.in_memory import InMemorySource
from soflow.data.latents import write_latents
from soflow.data.registry import SOURCES
from soflow.training.grids import write_grid


def everything(source) -> tuple[np.ndarray, np.ndarray]:
    return source.batch(np.arange(len(source)))


@pytest.fixture(scope="module")
def digits():
    return open_source(DatasetConfig(name="digits"))


def test_digits(digits):
    images, labels = everything(digits)
    assert len(digits) == 1797
    assert images.shape == (1797, 1, 8, 8)
    assert (images.dtype, labels.dtype) == (np.uint8, np.int64)
    assert digits.num_classes == 10
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # as published
    # 17 gray levels over the whole range of a byte.
    assert np.unique(images).tolist() == [round(level * 255 / 16) for level in range(17)]
    assert DatasetConfig(name="digits").image_shape == images.shape[1:]


def test_digits_are_those_of_scikit_learn():
    expected = load_digits()
    gray, labels = read_digits()
    assert np.array_equal(gray, expected.images)
    assert np.array_equal(labels, expected.target)


def test_a_batch_is_what_its_indices_say(digits):
    images, labels = everything(digits)
    indices = np.array([5, 0, 1796, 5])
    batch_images, batch_labels = digits.batch(indices)
    assert np.array_equal(batch_images, images[indices])
    assert np.array_equal(batch_labels, labels[indices])


def test_a_fingerprint_stays_with_its_data(digits):
    assert open_source(DatasetConfig(name="digits")).fingerprint == digits.fingerprint
    assert re.fullmatch("[0-9a-f]{64}", digits.fingerprint)
    images, labels = everything(digits)
    assert InMemorySource(images.copy(), labels.copy(), 10).fingerprint == digits.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        lambda images, labels: (images[::-1], labels),
        lambda images, labels: (images, labels[::-1]),
        lambda images, labels: (images[:-1], labels[:-1]),
        lambda images, labels: (images.reshape(-1, 1, 4, 16), labels),
        lambda images, labels: (np.where(np.arange(images.size).reshape(images.shape) == 9, 77, images), labels),
    ],
    ids=["images reversed", "labels reversed", "one fewer", "another shape", "one pixel"],
)
def test_a_fingerprint_changes_with_the_data(change: Callable, digits):
    images, labels = change(*everything(digits))
    assert InMemorySource(images.astype(np.uint8), labels, 10).fingerprint != digits.fingerprint


# Fashion-MNIST: the real files where they are installed, and small ones of the same format.


@pytest.mark.skipif(
    not fashion_mnist.DEBIAN_PACKAGE.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed"
)
def test_fashion_mnist():
    source = open_source(DatasetConfig(name="fashion_mnist"))
    images, labels = everything(source)
    assert images.shape == (60_000, 1, 28, 28)
    assert (images.dtype, labels.dtype) == (np.uint8, np.int64)
    assert np.bincount(labels).tolist() == [6000] * 10
    assert source.num_classes == 10
    test = fashion_mnist.open_split(None, "t10k")
    assert len(test) == 10_000
    assert test.fingerprint != source.fingerprint


def idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


IMAGES = np.random.default_rng(0).integers(0, 256, (6, 28, 28), np.uint8)
CLASSES = np.array([3, 1, 4, 1, 5, 9], np.uint8)


def write_idx(folder: Path, compressed: bool, images: bytes = idx(IMAGES), labels: bytes = idx(CLASSES)) -> Path:
    """Writes a training split and returns the file of its images."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("train-images-idx3-ubyte", images), ("train-labels-idx1-ubyte", labels)):
        path = folder / (f"{name}.gz" if compressed else name)
        path.write_bytes(gzip.compress(content) if compressed else content)
    return folder / ("train-images-idx3-ubyte" + (".gz" if compressed else ""))


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("folder", ["", "FashionMNIST/raw"], ids=["given folder", "torchvision's folder"])
def test_idx_files(folder, compressed, tmp_path):
    write_idx(tmp_path / folder, compressed)
    source = open_source(DatasetConfig(name="fashion_mnist", root=tmp_path))
    images, labels = everything(source)
    assert np.array_equal(images[:, 0], IMAGES)
    assert labels.tolist() == CLASSES.tolist()
    assert source.num_classes == 10
    assert DatasetConfig(name="fashion_mnist").image_shape == images.shape[1:]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("content", [idx(IMAGES)[:-1], idx(IMAGES)[:7], b"", idx(IMAGES) + b"x", b"no IDX" * 100])
def test_a_damaged_idx_file_is_refused_by_name(content, compressed, tmp_path):
    path = write_idx(tmp_path, compressed, images=content)
    with pytest.raises(DataError, match=re.escape(f"{path}: is not a complete IDX file")):
        open_source(DatasetConfig(name="fashion_mnist", root=tmp_path))


@pytest.mark.parametrize("damage", ["cut short", "no gzip file", "a byte changed"])
def test_a_damaged_gzip_file_is_refused_by_name(damage, tmp_path):
    path = write_idx(tmp_path, compressed=True)
    content = bytearray(path.read_bytes())
    if damage == "cut short":
        del content[-100:]
    elif damage == "no gzip file":
        content = bytearray(idx(IMAGES))
    else:
        content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(str(path))):
        open_source(DatasetConfig(name="fashion_mnist", root=tmp_path))


def test_images_and_labels_must_be_as_many_and_of_the_right_size(tmp_path):
    config = DatasetConfig(name="fashion_mnist", root=tmp_path)
    write_idx(tmp_path, compressed=False, labels=idx(CLASSES[:-1]))
    with pytest.raises(DataError, match="train-"):
        open_source(config)
    write_idx(tmp_path, compressed=False, images=idx(IMAGES[:, :20, :20]))
    with pytest.raises(DataError, match="train-"):
        open_source(config)
    write_idx(tmp_path, compressed=False, labels=idx(CLASSES + 1))  # 10 is no class: it would be the null label
    with pytest.raises(DataError, match="train-"):
        open_source(config)


def test_missing_idx_files_are_named_with_the_ways_out(tmp_path):
    with pytest.raises(DataError) as caught:
        open_source(DatasetConfig(name="fashion_mnist", root=tmp_path))
    for part in (f"dataset.root = {tmp_path}", "train-images-idx3-ubyte", "dataset-fashion-mnist", "dataset.download"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"dataset.download = True: needs dataset.root"):
        open_source(DatasetConfig(name="fashion_mnist", download=True))
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"dataset.root = .*/file: cannot be downloaded to \("):
        open_source(DatasetConfig(name="fashion_mnist", root=tmp_path / "file", download=True))


# Folders of images.


def write_image(path: Path, color: tuple[int, int, int], size: tuple[int, int] = (12, 12)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


@pytest.fixture
def folder(tmp_path):
    """Two classes: three red images and two blue ones, one of them deeper."""
    for name in ("b.png", "a.png", "c.JPEG"):
        write_image(tmp_path / "cats" / name, (200, 10, 10))
    write_image(tmp_path / "dogs" / "x.bmp", (10, 10, 200))
    write_image(tmp_path / "dogs" / "deeper" / "y.webp", (10, 10, 200))
    (tmp_path / "cats" / "notes.txt").write_text("no image")
    (tmp_path / "readme.md").write_text("no class")
    return tmp_path


def folder_config(root: Path, image_size: int = 8) -> DatasetConfig:
    return DatasetConfig(name="image_folder", root=root, image_size=image_size)


def test_image_folder(folder):
    source = open_source(folder_config(folder))
    assert len(source) == 5
    assert source.num_classes == 2
    images, labels = everything(source)
    assert images.shape == (5, 3, 8, 8)
    assert (images.dtype, labels.dtype) == (np.uint8, np.int64)
    assert labels.tolist() == [0, 0, 0, 1, 1]
    for image, label in zip(images, labels, strict=True):
        expected = (200, 10, 10) if label == 0 else (10, 10, 200)
        found = image.reshape(3, -1).mean(1)
        assert np.abs(found - expected).max() < 8  # JPEG and WebP lose a little
    assert np.array_equal(source.batch(np.array([4, 0]))[0], images[[4, 0]])
    assert folder_config(folder).image_shape == (3, 8, 8)


def test_grey_and_transparent_files_become_rgb(tmp_path):
    (tmp_path / "one").mkdir()
    Image.fromarray(np.full((20, 10, 4), 128, np.uint8)).save(tmp_path / "one" / "tall.png")
    Image.fromarray(np.full((20, 10), 77, np.uint8)).save(tmp_path / "one" / "wide.png")
    images, _ = everything(open_source(folder_config(tmp_path, image_size=4)))
    assert images.shape == (2, 3, 4, 4)
    assert [np.unique(image).tolist() for image in images] == [[191], [77]]  # 128 · 128/255 + 255 · 127/255 = 191.2


def test_hidden_and_empty_folders_are_no_classes(tmp_path):
    image = Image.fromarray(np.full((8, 8, 3), 9, np.uint8))
    for path in ("a/1.png", "c/sub/2.png", "a/._1.png", ".ipynb_checkpoints/1-checkpoint.png", "stray.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / path)
    (tmp_path / "b").mkdir()
    for name in ("a/labels.txt", "a/x.tiff", "a/y.tiff", ".DS_Store"):
        (tmp_path / name).write_text("")
    source = open_source(folder_config(tmp_path))
    assert [path.name for path in source.paths] == ["1.png", "2.png"]
    assert source.labels.tolist() == [0, 1]
    assert source.num_classes == 2
    assert source.notes == [
        f"{tmp_path}: 1 folders without images are no classes: b",
        f"{tmp_path}: 1 images outside the class folders are left out",
        f"{tmp_path}: 3 files are left out (2 with .tiff, 1 with .txt)",
    ]


def test_a_folder_without_sub_folders_is_one_class(tmp_path):
    for i in range(3):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(tmp_path / f"{i}.png")
    source = open_source(folder_config(tmp_path))
    assert source.labels.tolist() == [0, 0, 0]
    assert (source.num_classes, source.notes) == (1, [])


def bicubic(before: int, after: int) -> np.ndarray:
    """Weights [after, before] of cubic convolution (Keys 1981, a = -1/2), widened where a side gets smaller."""
    scale = before / after
    centres = (np.arange(after)[:, None] + 0.5) * scale
    x = np.abs(np.arange(before) + 0.5 - centres) / max(scale, 1)
    weights = np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0))
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize(
    ("height", "width", "halvings", "resized", "corner"),
    [
        (40, 80, 2, (8, 16), (0, 4)),  # 10x20 is left, below twice the 8 wanted
        (60, 24, 1, (20, 8), (6, 0)),
        (16, 16, 1, (8, 8), (0, 0)),  # exactly twice: halved, nothing left to resize
        (8, 13, 0, (8, 13), (0, 2)),  # cropped only; the odd pixel goes from the right
        (15, 15, 0, (8, 8), (0, 0)),
        (5, 6, 0, (8, 10), (0, 1)),  # enlarged
    ],
)
def test_images_are_resized_and_cropped_as_adm_does(height, width, halvings, resized, corner):
    """Against means of blocks and Keys' filter as matrices."""
    pixels = np.random.default_rng(0).uniform(0, 255, (height, width)).astype(np.float32)
    expected = pixels.astype(float)
    for _ in range(halvings):
        expected = expected.reshape(len(expected) // 2, 2, -1, 2).mean((1, 3))
    expected = bicubic(len(expected), resized[0]) @ expected @ bicubic(expected.shape[1], resized[1]).T
    top, left = corner
    found = np.asarray(center_square(Image.fromarray(pixels), 8))  # of floats, which nothing rounds
    # float32: sums of up to 8 terms below 300, each rounded by 6e-8 of that, in up to six passes.
    assert np.abs(found - expected[top : top + 8, left : left + 8]).max() < 6 * 8 * 300 * 6e-8


def test_what_is_read_is_the_center_square(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 31, 3), np.uint8))
    (tmp_path / "one").mkdir()
    image.save(tmp_path / "one" / "image.png")
    (found,), _ = everything(open_source(folder_config(tmp_path)))
    assert np.array_equal(found, np.asarray(center_square(image, 8)).transpose(2, 0, 1))


def test_the_folder_s_fingerprint(folder, tmp_path_factory):
    before = open_source(folder_config(folder)).fingerprint
    assert open_source(folder_config(folder)).fingerprint == before
    assert open_source(folder_config(folder, image_size=16)).fingerprint != before
    fingerprints = {before}
    write_image(folder / "cats" / "d.png", (200, 10, 10))
    fingerprints.add(open_source(folder_config(folder)).fingerprint)
    (folder / "cats" / "d.png").rename(folder / "dogs" / "d.png")
    fingerprints.add(open_source(folder_config(folder)).fingerprint)
    (folder / "dogs" / "x.bmp").unlink()
    fingerprints.add(open_source(folder_config(folder)).fingerprint)
    assert len(fingerprints) == 4


def test_the_folder_s_fingerprint_sees_a_change_that_keeps_the_file_size(folder):
    """Cached reference statistics are looked up by it."""
    before = open_source(folder_config(folder)).fingerprint
    path = folder / "dogs" / "x.bmp"
    old = path.stat()
    write_image(path, (250, 250, 250))
    assert path.stat().st_size == old.st_size
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns + 10**9))  # a second later, whatever the clock's resolution
    assert open_source(folder_config(folder)).fingerprint != before


def test_the_size_of_equal_images_need_not_be_given(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (20, 12)).save(tmp_path / name / "1.png")
    Image.new("RGB", (12, 20)).save(tmp_path / "b" / "2.png")
    with pytest.raises(ConfigError, match=r"^dataset: image_size must be set .* \(1\.png 20 x 12, 2\.png 12 x 20\)$"):
        parse({"dataset": {"name": "image_folder", "root": str(tmp_path)}})
    (tmp_path / "b" / "2.png").unlink()
    config = parse({"dataset": {"name": "image_folder", "root": str(tmp_path)}})
    assert config.dataset.image_size == 12
    assert to_dict(config)["dataset"]["image_size"] == 12
    assert open_source(config.dataset).batch(np.arange(2))[0].shape == (2, 3, 12, 12)
    with pytest.raises(ConfigError, match=f"^dataset: root = {tmp_path / 'c'} must be a folder of images"):
        parse({"dataset": {"name": "image_folder", "root": str(tmp_path / "c")}})


def test_uneven_classes_are_noted(tmp_path):
    for name, number in (("a", 7), ("b", 3)):
        (tmp_path / name).mkdir()
        for i in range(number):
            Image.new("RGB", (8, 8)).save(tmp_path / name / f"{i}.png")
    (note,) = open_source(folder_config(tmp_path)).notes
    assert "classes have 3 to 7 images" in note
    (tmp_path / "a" / "6.png").unlink()  # twice as many
    assert open_source(folder_config(tmp_path)).notes == []


@pytest.mark.parametrize("root", [None, "nowhere", "file.txt"])
def test_no_folder_is_refused_by_name(root, tmp_path):
    (tmp_path / "file.txt").write_text("")
    root = root and tmp_path / root
    with pytest.raises(DataError, match=re.escape(f"dataset.root = {root}: must be a folder")):
        open_source(folder_config(root))


def test_a_folder_that_may_not_be_read_is_refused_by_name():
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users
        root, closed = Path(name), Path(name) / "cats"
        root.chmod(0o755)
        write_image(root / "dogs" / "a.png", (0, 0, 0))
        closed.mkdir(mode=0)
        user = os.geteuid()
        try:
            if user == 0:  # may read everything
                try:
                    os.seteuid(65534)
                except OSError:
                    pytest.skip("there is no other user")
            with pytest.raises(DataError, match=rf"^{closed}: cannot be read \(Permission denied\)"):
                open_source(DatasetConfig(name="image_folder", root=root, image_size=8))
        finally:
            os.seteuid(user)


def test_a_folder_without_images_is_refused_by_name(tmp_path):
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "notes.txt").write_text("")
    (tmp_path / ".hidden.png").write_bytes(b"")
    refusal = re.escape(f"dataset.root = {tmp_path}: no images found") + r".*\(1 with \.txt\)"
    with pytest.raises(DataError, match=refusal):
        open_source(folder_config(tmp_path))


def test_a_damaged_image_is_refused_by_name(folder):
    path = folder / "cats" / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 30, 3), np.uint8)).save(path)
    half = path.read_bytes()[:1000]
    broken_chunk = path.read_bytes()[:37] + bytes(20)
    for content in (b"no image at all", half, b"", broken_chunk):
        path.write_bytes(content)
        with pytest.raises(DataError, match=re.escape(f"{path}: cannot be read as an image")):
            everything(open_source(folder_config(folder)))


def test_every_source_is_what_its_registry_entry_says(folder, tmp_path_factory):
    files = tmp_path_factory.mktemp("files")
    for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"):
        (files / f"{name}.bin").write_bytes(bytes(3073))
    write_latents(files / "latents.h5", [np.ones((3, 8, 2, 2), np.float32)], np.arange(3), side=2, num_classes=3)
    given = {
        "image_folder": {"root": folder, "image_size": 8},
        "cifar10": {"root": files},
        "latents": {"root": files / "latents.h5", "image_size": 16},
    }
    for name, info in SOURCES.items():
        config = DatasetConfig(name=name, **given.get(name, {}))
        if name == "fashion_mnist" and not fashion_mnist.DEBIAN_PACKAGE.is_dir():
            continue
        source = open_source(config)
        stored, labels = source.batch(np.arange(3))
        channels, *sides = config.sample_shape
        assert stored.shape[1:] == ((2 * channels if info.latent else channels), *sides)  # of latents two moments
        assert config.image_shape[0] == info.channels
        assert labels.max() < source.num_classes


# Pixels.


def test_pixels_survive_the_way_to_the_network_and_back():
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    seen = Pixels().encode(torch.from_numpy(pixels))
    assert (seen.min(), seen.max(), seen.dtype) == (-1, 1, torch.float32)
    assert np.array_equal(Pixels().decode(seen).numpy(), pixels)


def test_impossible_values_become_pixels():
    values = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0, float("nan"), float("inf"), -float("inf")]).view(1, 1, 2, 4)
    assert Pixels().decode(values).flatten().tolist() == [0, 0, 128, 255, 255, 0, 255, 0]


def test_a_grid_is_written_whole(tmp_path):
    images = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).expand(6, 3, 16, 16) * 40
    path = tmp_path / "new folder" / "grid.png"
    write_grid(images, path, columns=3)
    assert [file.name for file in path.parent.iterdir()] == ["grid.png"]
    with Image.open(path) as grid:
        assert grid.size == (3 * 34 + 2, 2 * 34 + 2)  # 16 pixels shown as 32, two between them
        assert [grid.getpixel((17 + 34 * column, 17 + 34 * row)) for row in range(2) for column in range(3)] == [
            (40 * i,) * 3 for i in range(6)
        ]
